"""Tables of a cohort that was never scanned: what the group level reads, with effects that are known.

For tests, benchmarks and rehearsals of an analysis: counts grow with age by a known rate, two methods and two raters
see the same EPVS with errors of their own, some people come twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_epvs.derivatives import columns, paths, write
from bids_epvs.measure.ratings import SUMMARY_COLUMNS, potter
from bids_epvs.prepare.regions import NAMES
from bids_epvs.records import Scan

TYPICAL = {"BasalGanglia": 20, "CentrumSemiovale": 120, "Hippocampus": 5, "Midbrain": 3, "Thalamus": 2}
"""Mean number of EPVS at the age of 65; other regions: a tenth of the centrum semiovale."""
MM3 = {"BasalGanglia": 36_000, "CentrumSemiovale": 150_000, "Hippocampus": 8_000, "Midbrain": 7_000, "Thalamus": 15_000}
METHODS = {"unet": 0.12, "frangi": 0.35}
"""Standard deviation of the logarithm of a method's error."""


@dataclass(frozen=True)
class Design:
    """Of a cohort.

    Attributes
    ----------
    people, sessions : int
    rate : float
        Ratio of the numbers of EPVS of people a year apart.
    spread : float
        Variance of the number over mean squared, beyond Poisson (alpha of NB2).
    seed : int
    """

    people: int
    sessions: int = 1
    rate: float = 1.02
    spread: float = 0.3
    seed: int = 0


def write_cohort(raw: Path, out: Path, design: Design) -> None:
    """Write participants.tsv and phenotype/visual.tsv to `raw`, the summaries of all sessions to `out`."""
    rng = np.random.default_rng(design.seed)
    people, visual = [], []
    for number in range(1, design.people + 1):
        subject = f"{number:05d}"
        age, sex = float(rng.integers(45, 91)), "FM"[int(rng.integers(2))]
        people.append({"participant_id": f"sub-{subject}", "age": age, "sex": sex, "site": "ABC"[int(rng.integers(3))]})
        size = float(np.exp(rng.normal(0, 0.1)))
        true = _truth(rng, design, age, size)
        visual.append({"participant_id": f"sub-{subject}", **_raters(rng, true)})
        for session in range(design.sessions):
            scan = Scan(subject, str(session + 1) if design.sessions > 1 else None, {})
            rows = [r for m, error in METHODS.items() for r in _summary(rng, m, error, true, size)]
            path = paths.derivative(out, scan, desc="summary", suffix="epvs", extension=".tsv")
            meta = {**columns.SUMMARY, "BrainVolume_mm3": 1.45e6 * size, "QualityNotes": []}
            write.table(path, pd.DataFrame(rows, columns=SUMMARY_COLUMNS), meta=meta)
    write.as_json(raw / "dataset_description.json", {"Name": "Simulated tables", "BIDSVersion": "1.10.0"})
    write.table(raw / "participants.tsv", pd.DataFrame(people))
    write.table(raw / "phenotype" / "visual.tsv", pd.DataFrame(visual))


def _truth(rng: np.random.Generator, design: Design, age: float, size: float) -> dict[str, tuple[int, int]]:
    """EPVS on the left and on the right in each region."""
    shape = 1 / design.spread
    out = {}
    for region in NAMES:
        mean = TYPICAL.get(region, 12) * size * np.exp(np.log(design.rate) * (age - 65))
        count = int(rng.poisson(mean * rng.gamma(shape, 1 / shape)))
        left = int(rng.binomial(count, 0.5))
        out[region] = left, count - left
    return out


def _raters(rng: np.random.Generator, true: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Grades of two raters; the slice they look at shows a quarter of the EPVS of a side."""
    out: dict[str, Any] = {}
    for rater in ("anna", "ben"):
        for region in ("BasalGanglia", "CentrumSemiovale"):
            seen = max(true[region]) / 4 * np.exp(rng.normal(0, 0.2))
            out[f"{rater}_{region}_rating"] = potter(round(seen), region)
    return out


def _summary(
    rng: np.random.Generator, model: str, error: float, true: dict[str, tuple[int, int]], size: float
) -> list[dict[str, Any]]:
    """The rows of one method."""
    rows = []
    for region, sides in true.items():
        seen = {
            s: round(n * float(np.exp(rng.normal(0, error)))) for s, n in zip(("left", "right"), sides, strict=True)
        }
        for side, count in (*seen.items(), ("both", sum(seen.values()))):
            mm3 = MM3.get(region, 200_000) * size / (1 if side == "both" else 2)
            top = round(max(seen.values()) / 4) if side == "both" else round(count / 4)
            rating = potter(count if region == "Midbrain" else top, region)
            row = {"model": model, "region": region, "hemisphere": side, "count": count, "volume_mm3": 3.5 * count}
            row |= {
                "volume_fraction": round(3.5 * count / mm3, 6),
                "region_volume_mm3": round(mm3, 1),
                "rating": rating,
            }
            rows.append({**row, "rating_scale": None if rating is None else "Potter", "slice_count": top})
    return rows
