"""How many EPVS a ranking of places hits at a given number of wrong marks (FROC)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs.evaluate.cases import Case, Known, about_regions, read_result
from bids_epvs.evaluate.metrics import TOLERANCE_MM, apart, markers, nearest
from bids_epvs.evaluate.tables import WRONG_PER_IMAGE
from bids_epvs.explain.attention import peaks
from bids_epvs.prepare.regions import NAMES, indices

MOST = 400
"""Marks considered in a region of one image, the strongest."""


def marks(case: Case, known: Known, model: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Points (n, 3) and strengths (n,) of a method: peaks of its map, or its lesions by mean probability."""
    path = case.results / f"{case.label}_desc-{model}_saliency.nii.gz"
    if path.is_file():
        values = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, np.float32)
        return peaks(values, known.regions > 0, known.spacing)
    if not Path(case.results / f"{case.label}_label-EPVS_desc-{model}_mask.nii.gz").is_file():
        return None
    found, score = read_result(case, model, known.frame)
    at = markers(found, known.spacing)
    points = np.array(list(at.values()), int).reshape(-1, 3)
    if score is None or not len(points):
        return points, np.ones(len(points))
    size = np.bincount(found.ravel())
    total = np.bincount(found.ravel(), weights=score.ravel())
    index = np.array(list(at))
    return points, total[index] / size[index]


def rows(case: Case, known: Known, model: str, resolution: str) -> Iterator[dict[str, Any]]:
    """A row for each mark (strength, whether an EPVS is near, which one) and one for each image with its EPVS."""
    made = marks(case, known, model)
    if made is None:
        return
    points, values = made
    expected = np.isin(known.truth.lesions, known.truth.expected) & (known.truth.lesions > 0)
    at_truth = markers(np.where(expected, known.truth.lesions, 0), known.spacing)
    centres = np.array(list(at_truth.values()), int).reshape(-1, 3)
    own = known.regions[tuple(points.T)] if len(points) else np.zeros(0, np.uint8)
    home = known.regions[tuple(centres.T)] if len(centres) else np.zeros(0, np.uint8)
    spoken = about_regions(case, model)
    for name in NAMES:
        if spoken is not None and name not in spoken:
            continue
        inside = indices(name)
        chosen = np.flatnonzero(np.isin(own, inside))[:MOST]
        common = {"label": case.label, "model": model, "region": name, "resolution": resolution}
        yield {**common, "kind": "image", "n": int(np.isin(home, inside).sum())}
        if not len(chosen):
            continue
        near = apart(points[chosen], known.truth.lesions > 0, known.spacing) <= TOLERANCE_MM
        away, at = nearest(points[chosen], expected, known.spacing)
        sure = away <= TOLERANCE_MM
        lesion = known.truth.lesions[tuple(at.T)]
        for value, s, faint, hit in zip(values[chosen], sure, near, lesion, strict=True):
            if s or not faint:  # marks of EPVS that hardly show are neither right nor wrong
                yield {**common, "kind": "mark", "value": float(value), "right": bool(s), "hit": int(hit) if s else 0}


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Share of EPVS hit at `WRONG_PER_IMAGE` wrong marks a region of an image, by resolution, method and region.

    The strength from which marks count is one for all images. Where a method makes fewer wrong marks than allowed, all
    its marks count.
    """
    out = []
    for (resolution, model, region), own in found.groupby(["resolution", "model", "region"], sort=False):
        images, made = own[own["kind"] == "image"], own[own["kind"] == "mark"]
        total = int(images["n"].sum())
        if not total:
            continue
        row = {"resolution": resolution, "model": model, "region": region, "images": len(images), "epvs": total}
        made = made.sort_values("value", ascending=False, kind="stable")
        wrong = (~made["right"].astype(bool)).cumsum().to_numpy()
        for allowed in WRONG_PER_IMAGE:
            kept = made[wrong <= allowed * len(images)]
            hit = kept[kept["right"].astype(bool)].drop_duplicates(["label", "hit"])
            row[f"hit_at_{allowed:g}"] = len(hit) / total
        out.append(row)
    return pd.DataFrame(out)
