"""Training examples from visual scores: what ``bids_epvs ... participant`` prepared, and one number a session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_epvs.errors import NothingToDoError, UsageError
from bids_epvs.group import human
from bids_epvs.measure.ratings import SEVERE_GRADE
from bids_epvs.models import count, rating2d, resnet152
from bids_epvs.prepare import crops, planes
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.records import Scan
from bids_epvs.train.data import Session, prepared

logger = logging.getLogger(__name__)

VALUES = {"cnn": ("count",), "gpunet": ("count",), "rating2d": ("rating",), "resnet152": ("severity", "rating")}
"""What each network learns from; the first that a table holds."""


def find(results: Path, scores: Path, model: str, region: str, rater: str | None = None) -> list[Session]:
    """Sessions that were prepared and have a score.

    Parameters
    ----------
    results : Path
        Output of ``bids_epvs BIDS results participant``.
    scores : Path
        TSV with ``participant_id``, perhaps ``session_id``, and columns named as `group.human` says, such as
        ``CentrumSemiovale_count`` or ``anna_BasalGanglia_rating``.
    model : str
        Key of `VALUES`.
    region : str
    rater : str, optional
        Needed where several people scored.

    Raises
    ------
    UsageError
        No column fits, or several raters do.
    NothingToDoError
        No scored session was prepared.
    """
    table = human.scores(scores)
    wanted = table[table["region"] == region] if len(table) else table
    value = next((v for v in VALUES[model] if len(wanted) and (wanted["value"] == v).any()), None)
    if value is None:
        raise UsageError(
            f"no column with the {' or '.join(VALUES[model])} of {region}.",
            where=scores,
            remedy=f"Name it {region}_{VALUES[model][0]}, or <rater>_{region}_{VALUES[model][0]}.",
        )
    wanted = wanted[wanted["value"] == value]
    raters = sorted(set(wanted["rater"]))
    if rater is None and len(raters) > 1:
        raise UsageError(f"several raters: {', '.join(raters)}.", where="--rater", remedy="Choose one.")
    if rater is not None and rater not in raters:
        raise UsageError(f"no rater {rater!r}.", where="--rater", remedy=f"There are: {', '.join(raters)}.")
    out = []
    for row in wanted[wanted["rater"] == (rater or raters[0])].dropna(subset="score").to_dict("records"):
        session = str(row.get("session_id") or "").removeprefix("ses-") or None
        score = float(row["score"] >= SEVERE_GRADE) if model == "resnet152" and value == "rating" else row["score"]
        made = Session(Scan(str(row["participant_id"]).removeprefix("sub-"), session, {}), results, score=float(score))
        if made.path(seg="epvs", suffix="dseg").is_file() and "T2w" in made.sequences():
            out.append(made)
        else:
            logger.warning("%s: has a score but was not prepared", made.scan.label)
    if not out:
        raise NothingToDoError(
            "no session has a score and was prepared.", where=scores, remedy="Run the participant level first."
        )
    return out


def maker(model: str, region: str) -> Callable[[Session], dict[str, Any]]:
    """What makes the example of a session for a network.

    Raises
    ------
    UsageError
        The network does not speak about the region.
    """
    known = count.COUNTED if model in ("cnn", "gpunet") else ("BasalGanglia",)
    if region not in known:
        raise UsageError(
            f"{model} knows no region {region!r}.", where="--region", remedy=f"One of: {', '.join(known)}."
        )
    return {"rating2d": rated, "resnet152": graded}.get(model) or partial(counted, region=region)


def counted(session: Session, *, region: str) -> dict[str, Any]:
    """Both hemispheres of a region beside each other, with their common count, as `train.count` reads it.

    Raises
    ------
    NothingToDoError
        The scan does not show the region.
    """
    made = planes.in_slices(prepared(session))
    sides = count.sides(made.regions, made.images["T2w"], made.csf, made.spacing)
    own = [c for k, c in sides.items() if REGIONS[k].name == region]
    if not own:
        raise NothingToDoError(f"the scan does not show the {region}.", where=session.path(seg="epvs", suffix="dseg"))
    first = next(k for k in sides if REGIONS[k].name == region)
    parts = {
        "image": beside([crops.as_bytes(c.image) for c in own]),
        "soft": beside([np.rint(c.soft * 255).astype(np.uint8) for c in own]),
        "mask": beside([c.mask for c in own]),
        "at": np.zeros((0, 3), np.int16),
        "share": np.zeros(0, np.float32),
        "total": np.float32(session.score),
    }
    about = {"spacing": np.array(made.spacing, np.float32), "turned": np.bool_(made.turned)}
    return {**about, **{f"{k}_{first}": v for k, v in parts.items()}}


def beside(blocks: list[np.ndarray]) -> np.ndarray:
    """Blocks next to each other along the first axis, the others padded with 0."""
    size = np.max([b.shape[1:] for b in blocks], axis=0)
    pads = [[(0, 0), *((0, int(n - m)) for n, m in zip(size, b.shape[1:], strict=True))] for b in blocks]
    return np.concatenate([np.pad(b, p) for b, p in zip(blocks, pads, strict=True)])


def rated(session: Session) -> dict[str, Any]:
    """Images of the basal ganglia, all with the grade of the session, as `train.grades.images` reads them."""
    made = prepared(session)
    seen = rating2d.views(
        made.images["T2w"], made.brain, made.regions, made.spacing, made.slices.get("anterior_commissure")
    )
    if not seen:
        raise NothingToDoError("the scan does not show the basal ganglia.", where=session.results)
    plain, sharp = (np.stack([getattr(v, n) for v in seen]) for n in ("plain", "sharp"))
    inside = np.stack([v.inside for v in seen])
    pictures = {"plain": plain / 1.5, "sharp": sharp / 1.5, "inside": inside}
    stored = {k: np.rint(np.clip(v, 0, 1) * 255).astype(np.uint8) for k, v in pictures.items()}
    return {**stored, "grades": np.full(len(seen), round(session.score), np.int16)}


def graded(session: Session) -> dict[str, Any]:
    """Box around the basal ganglia and its severity, as `train.grades.box` reads them."""
    found = resnet152.seen(prepared(session))
    if found is None:
        raise NothingToDoError("the scan does not show the basal ganglia.", where=session.results)
    return {"box": np.rint(found[0] * 255).astype(np.uint8), "severe": np.int16(round(session.score))}
