"""Visual rating scales computed from instances, and the summary table by region and hemisphere.

References
----------
Potter et al. 2015, doi:10.1159/000375153; Adams et al. 2013, doi:10.1161/STROKEAHA.111.000620.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_epvs.measure import agreement
from bids_epvs.prepare.planes import AXIAL
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.prepare.resample import slice_axis
from bids_epvs.records import GRADES, POTTER, SEVERITY, Finding

SUMMARY_COLUMNS = [
    *("model", "region", "hemisphere", "count", "count_low", "count_high", "volume_mm3", "volume_fraction"),
    *("volume_expected_mm3", "rating", "rating_scale", "p_0", "p_1", "p_2", "p_3", "p_4"),
    *("slice", "slice_count", "adams_count", "region_volume_mm3"),
]
GRADED = ("BasalGanglia", "CentrumSemiovale")
"""Regions that Potter's scale grades from 0 to 4."""
SEVERE_GRADE = 2
"""Potter grade from which EPVS are moderate to severe (more than ten in the fullest slice)."""
APART = 2
"""Grades of two methods that differ by this much or more disagree."""
SLAB_MM = 4.0
"""What is counted together where slices are thick and not axial: an axial plane of such a scan is a line of each slice,
half a millimetre high, and shows half as many EPVS as an axial slice of 4 mm of the same brain (``benchmarks``)."""
_ADAMS_SLICE = {"BasalGanglia": "anterior_commissure", "CentrumSemiovale": "adams_cso"}


@dataclass(frozen=True)
class Certainty:
    """How far the lesions of a method can be relied on, measured on held-out brains.

    Attributes
    ----------
    slope, offset : float
        The chance that a lesion is an EPVS is ``1 / (1 + exp(-(slope * logit(p) + offset)))``, where p is its mean
        probability.
    missed : float
        EPVS missed for each that is found.
    """

    slope: float
    offset: float
    missed: float

    def chances(self, probability: np.ndarray) -> np.ndarray:
        """Chance of each lesion to be an EPVS."""
        p = np.clip(probability, 1e-4, 1 - 1e-4)
        return 1 / (1 + np.exp(-(self.slope * np.log(p / (1 - p)) + self.offset)))

    def distribution(self, probability: np.ndarray) -> np.ndarray:
        """Distribution of the true number of EPVS, P(0), P(1), ..., given the lesions found."""
        chances = self.chances(np.asarray(probability, float))
        return agreement.count_distribution(chances, self.missed * max(float(chances.sum()), 0.5))


def potter(count: int, region: str) -> int | None:
    """Potter grade of the number of EPVS in the fullest slice of a hemisphere (midbrain: anywhere).

    Basal ganglia and centrum semiovale: 0 none, 1: 1-10, 2: 11-20, 3: 21-40, 4: more than 40. Midbrain: 0 or 1.
    None for regions that the scale does not rate.

    >>> [potter(n, "BasalGanglia") for n in (0, 1, 10, 11, 20, 21, 40, 41)]
    [0, 1, 1, 2, 2, 3, 3, 4]
    """
    if region == "Midbrain":
        return int(count > 0)
    if region not in GRADED:
        return None
    return int(np.searchsorted([0, 10, 20, 40], count, side="left"))


def severe(table: pd.DataFrame) -> pd.Series:
    """0 none or mild, 1 moderate to severe, for each row of a summary; nan where no scale says so.

    Potter's scale of the midbrain (none, some) does not.
    """
    graded = (table["rating_scale"] != SEVERITY) & table["region"].isin(GRADED) & table["rating"].notna()
    own = table["rating"].where(table["rating_scale"] == SEVERITY)
    return own.where(~graded, (table["rating"] >= SEVERE_GRADE).astype(float))


def slab(spacing: Sequence[float]) -> int:
    """Axial planes of a scan that visual scales see as one slice: one, or `SLAB_MM` if slices are thick and not axial.

    Parameters
    ----------
    spacing : sequence of float
        Voxel sizes in mm along R, A, S.

    >>> slab((0.5, 0.5, 4.0)), slab((1.0, 1.0, 1.0)), slab((0.5, 4.0, 0.5)), slab((4.0, 0.6, 0.6))
    (1, 1, 8, 7)
    """
    return 1 if slice_axis(spacing) == AXIAL else max(1, round(SLAB_MM / spacing[AXIAL]))


def within(middle: int, depth: int, height: int) -> slice:
    """Planes of a slab of `depth` ones around a middle one, as far as the scan goes.

    >>> within(5, 1, 9), within(5, 4, 9), within(1, 8, 9)
    (slice(5, 6, None), slice(3, 7, None), slice(0, 5, None))
    """
    start = middle - depth // 2
    return slice(max(start, 0), min(start + depth, height))


def shown(labels: np.ndarray, depth: int = 1) -> np.ndarray:
    """Each instance of a volume with each axial slice (third axis) that shows it, (n, 2).

    With `depth` slices are slabs of so many planes (`within`), each named by its middle one.
    """
    occupied = np.nonzero(labels)
    pairs = np.unique(np.c_[labels[occupied], occupied[2]], axis=0)
    if depth == 1:
        return pairs
    moved = [pairs + np.array([0, away]) for away in range(depth // 2 - depth + 1, depth // 2 + 1)]
    every = np.unique(np.concatenate(moved), axis=0)
    return every[(every[:, 1] >= 0) & (every[:, 1] < labels.shape[2])]


def slice_counts(pairs: np.ndarray, indices: np.ndarray, slices: int) -> np.ndarray:
    """Number of the instances `indices` that each of so many axial slices shows; `pairs` is from `shown`."""
    return np.bincount(pairs[np.isin(pairs[:, 0], indices), 1], minlength=slices)


def fullest(counts: np.ndarray) -> int | None:
    """Slice with the most EPVS (ties: the lowest), None where there is none."""
    return int(np.argmax(counts)) if counts.size and counts.max() > 0 else None


def summarise(
    lesions: pd.DataFrame,
    labels: np.ndarray,
    regions: np.ndarray,
    *,
    voxel_mm3: float,
    slices: Mapping[str, int],
    names: Iterable[str],
    model: str = "",
    certainty: Certainty | None = None,
    share: np.ndarray | None = None,
    depth: int = 1,
) -> pd.DataFrame:
    """A row per region and hemisphere (left, right, both).

    Parameters
    ----------
    lesions : DataFrame
        From `lesions.describe`.
    labels : ndarray of int32
        Instances, canonical frame.
    regions : ndarray of uint8
        Indices of `REGIONS`.
    slices : mapping
        From `regions.rating_slices`.
    names : iterable of str
        Regions to report; one that the scan does not show has missing values.
    certainty : Certainty, optional
        Without it there are no intervals and no probabilities of grades.
    share : ndarray, optional
        Calibrated share of each voxel that EPVS fill, 0 to 1, canonical frame; without it there is no expected volume.
        That of EPVS that run on outside all regions counts where they do.
    depth : int
        Axial planes that count as one slice, from `slab`.

    Returns
    -------
    DataFrame
        Columns `SUMMARY_COLUMNS`. `rating` of ``both`` is the higher hemisphere's. `slice` is the canonical index
        (of a slab: of its middle).
    """
    rows = []
    pairs = shown(labels, depth)
    outside = (labels > 0) & (regions == 0)
    for name in names:
        sides = {}
        for index, region in REGIONS.items():
            if region.name == name:
                size = float((regions == index).sum() * voxel_mm3)
                side = region.side.lower()
                chosen = lesions[(lesions["region"] == name) & (lesions["hemisphere"] == side)]
                filled = np.nan
                if share is not None:
                    beyond = share[outside][np.isin(labels[outside], chosen["index"])]
                    filled = float((share[regions == index].sum(dtype=np.float64) + beyond.sum()) * voxel_mm3)
                sides[side] = _side(chosen, pairs, labels.shape[2], name, size, filled, slices, certainty)
        for side, row in {**sides, "both": _both(sides)}.items():
            rows.append({"model": model, "region": name, "hemisphere": side, **row})
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def _side(
    chosen: pd.DataFrame,
    pairs: np.ndarray,
    height: int,
    name: str,
    size: float,
    filled: float,
    slices: Mapping[str, int],
    certainty: Certainty | None,
) -> dict[str, Any]:
    """Numbers of one region of one hemisphere; `chosen` are its lesions, `pairs` is from `shown`."""
    if size == 0:
        return {"region_volume_mm3": 0.0}
    counts = slice_counts(pairs, chosen["index"].to_numpy(int), height)
    best = fullest(counts)
    top = int(counts[best]) if best is not None else 0
    rating = potter(len(chosen) if name == "Midbrain" else top, name)
    wanted = _ADAMS_SLICE.get(name)
    adams = None if wanted else len(chosen) if name in ("Hippocampus", "Midbrain") else None
    if wanted is not None and wanted in slices:
        adams = int(counts[slices[wanted]])
    volume = float(chosen["volume_mm3"].sum())
    sure: dict[str, Any] = {}
    if certainty:
        likely = chosen["probability"].to_numpy(float)
        there = chosen["index"].isin(pairs[pairs[:, 1] == best, 0]) if best is not None else np.zeros(len(chosen), bool)
        rated = certainty.distribution(likely if name == "Midbrain" else likely[np.asarray(there)])
        grades = None if rating is None else grade_chances(rated, name)
        sure = _sure(certainty.distribution(likely), grades)
    return {
        **sure,
        "count": len(chosen),
        "volume_mm3": round(volume, 3),
        "volume_fraction": round(volume / size, 6),
        "volume_expected_mm3": round(filled, 3),
        "rating": rating,
        "rating_scale": None if rating is None else POTTER,
        "slice": best,
        "slice_count": top,
        "adams_count": adams,
        "region_volume_mm3": round(size, 1),
    }


def grade_chances(distribution: np.ndarray, region: str) -> np.ndarray:
    """Probability of each Potter grade from the distribution of the count that decides, (`GRADES`,)."""
    grades = [potter(n, region) or 0 for n in range(len(distribution))]
    return np.bincount(grades, weights=distribution, minlength=GRADES)


def _sure(distribution: np.ndarray, grades: np.ndarray | None) -> dict[str, Any]:
    """Interval of the count and probabilities of grades as columns; the distributions stay with them."""
    low, high = agreement.interval(distribution)
    columns = {} if grades is None else {f"p_{k}": round(float(p), 4) for k, p in enumerate(grades)}
    return {"count_low": low, "count_high": high, **columns, _COUNTS: distribution, _GRADES: grades}


def from_findings(found: Iterable[Finding], model: str) -> pd.DataFrame:
    """Findings of a method as rows with the `SUMMARY_COLUMNS` that they know."""
    rows = []
    for f in found:
        row = {"model": model, "region": f.region, "hemisphere": f.hemisphere, "count": f.count}
        row |= {"count_low": f.low, "count_high": f.high, "rating": f.rating, "rating_scale": f.scale}
        rows.append({**row, **{f"p_{k}": round(p, 4) for k, p in enumerate(f.chances)}, "slice": f.slice})
    table = pd.DataFrame(rows, columns=[c for c in SUMMARY_COLUMNS if c in _FOUND])
    words = ("model", "region", "hemisphere", "rating_scale")
    return table.astype({c: float for c in table.columns if c not in words})


_FOUND = (
    *("model", "region", "hemisphere", "count", "count_low", "count_high", "rating", "rating_scale", "slice"),
    *(f"p_{k}" for k in range(GRADES)),
)
_MARKED = ("slice", "slice_count")
"""What marks say of a region even where a method gives the count itself."""


def merged(summary: pd.DataFrame, found: pd.DataFrame, *, marks: bool) -> pd.DataFrame:
    """A summary in which a method's own findings stand for what `summarise` counts.

    Parameters
    ----------
    summary : DataFrame
        From `summarise`; supplies rows, volumes of regions and, where `marks`, the fullest slice.
    found : DataFrame
        From `from_findings`. A region that it does not name keeps its row, with missing values.
    marks : bool
        Whether the method marks EPVS.

    Returns
    -------
    DataFrame
        Columns `SUMMARY_COLUMNS`. Counts of hippocampus and midbrain are Adams' too; the midbrain is graded by Potter.
    """
    keep = ["model", "region", "hemisphere", "region_volume_mm3", *(_MARKED if marks else ())]
    own = found.drop(columns=[c for c in _MARKED if marks and c in found])
    out = summary[keep].merge(own, on=["model", "region", "hemisphere"], how="left")
    counted = out["count"].notna() & (out["region_volume_mm3"] > 0)
    whole = counted & out["region"].isin(["Hippocampus", "Midbrain"])
    out["adams_count"] = out["count"].where(whole)
    small = counted & (out["region"] == "Midbrain") & out["rating"].isna()
    out["rating"] = out["rating"].astype(float).where(~small, (out["count"].astype(float) >= 0.5).astype(float))
    out["rating_scale"] = out["rating_scale"].astype(object).where(~small, POTTER)
    return out.reindex(columns=SUMMARY_COLUMNS)


_COUNTS, _GRADES = "distribution of the count", "probabilities of grades"


def _both(sides: Mapping[str, dict]) -> dict:
    """Both hemispheres together: sums, and the hemisphere with the higher rating decides (ties: left)."""
    present = [s for s in sides.values() if s["region_volume_mm3"] > 0]
    if not present:
        return {"region_volume_mm3": 0.0}
    decisive = max(present, key=lambda s: s["slice_count"])
    size = sum(s["region_volume_mm3"] for s in present)
    volume = sum(s["volume_mm3"] for s in present)
    adams = [s["adams_count"] for s in present if s["adams_count"] is not None]
    sure: dict[str, Any] = {}
    if all(_COUNTS in s for s in present):
        counts, grades = np.ones(1), None
        for own in present:
            counts = np.convolve(counts, own[_COUNTS])
            if own[_GRADES] is not None:  # the higher grade of the two sides
                below = np.cumsum(own[_GRADES])
                grades = below if grades is None else grades * below
        sure = _sure(counts, None if grades is None else np.diff(grades, prepend=0.0))
    return {
        **decisive,
        **sure,
        "count": sum(s["count"] for s in present),
        "volume_mm3": round(volume, 3),
        "volume_fraction": round(volume / size, 6),
        "volume_expected_mm3": round(sum(s["volume_expected_mm3"] for s in present), 3),
        "rating": None if decisive["rating"] is None else max(s["rating"] for s in present),
        "adams_count": sum(adams) if adams else None,
        "region_volume_mm3": round(size, 1),
    }
