"""Measures of one segmentation against the truth of one scan: pure functions on arrays of one grid.

Voxels are compared where they lie, lesions by a marker: the voxel of the lesion nearest to its centre of mass (the
centre itself may lie outside a winding lesion). A marker counts as hit when the other segmentation has a voxel within
`TOLERANCE_MM`. EPVS that hardly show (see `Truth.expected`) are neither missed nor wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_epvs.measure import agreement
from bids_epvs.prepare.resample import bounding_box

TOLERANCE_MM = 1.5
SURFACE_MM = 1.0
NOTHING = float("nan")


@dataclass(frozen=True)
class Truth:
    """What is known of a scan.

    Attributes
    ----------
    mask : ndarray of bool
        (X, Y, Z), EPVS voxels.
    lesions : ndarray of int32
        One index an EPVS, also where it fills little of a voxel.
    expected : ndarray of int
        Indices of the EPVS that a reader could see; all of them in manual truth.
    share : ndarray of float32, optional
        EPVS in each voxel; the mask where it is not known.
    """

    mask: np.ndarray
    lesions: np.ndarray
    expected: np.ndarray
    share: np.ndarray | None = None

    @property
    def filled(self) -> np.ndarray:
        """`share`, or the mask where it is not known."""
        return self.mask if self.share is None else self.share


def markers(labels: np.ndarray, spacing: tuple[float, float, float]) -> dict[int, tuple[int, int, int]]:
    """The voxel of each lesion that is nearest (mm) to its centre of mass; ties go to the first in memory order."""
    out = {}
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        points = np.argwhere(labels[box] == index)
        away = ((points - points.mean(axis=0)) * spacing) ** 2
        best = points[int(np.argmin(away.sum(axis=1).round(9)))]
        x, y, z = (int(p + b.start) for p, b in zip(best, box, strict=True))
        out[index] = (x, y, z)
    return out


def apart(points: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Distance (mm) of each point, (n, 3) voxels, to the nearest voxel of a mask; inf where the mask is empty."""
    return nearest(points, mask, spacing)[0]


def nearest(points: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """`apart`, and the nearest voxel of the mask to each point, (n, 3); voxel 0 where the mask is empty."""
    targets = np.argwhere(mask)
    if len(targets) == 0 or len(points) == 0:
        return np.full(len(points), np.inf), np.zeros((len(points), 3), int)
    away, index = cKDTree(targets * np.asarray(spacing)).query(points * np.asarray(spacing))
    return away, targets[index]


@dataclass(frozen=True)
class Detection:
    """Lesions found and missed.

    Attributes
    ----------
    hit : mapping
        Expected EPVS -> whether it was found.
    right : mapping
        Lesion of the method -> whether there is an EPVS; those at an EPVS that hardly shows are left out.
    at_truth, at_found : mapping
        Marker of each expected EPVS and of each lesion of the method.
    """

    hit: Mapping[int, bool]
    right: Mapping[int, bool]
    at_truth: Mapping[int, tuple[int, int, int]]
    at_found: Mapping[int, tuple[int, int, int]]

    def inside(self, where: np.ndarray) -> Detection:
        """Those whose marker lies in a region (mask)."""
        return Detection(
            {k: v for k, v in self.hit.items() if where[self.at_truth[k]]},
            {k: v for k, v in self.right.items() if where[self.at_found[k]]},
            {k: p for k, p in self.at_truth.items() if where[p]},
            {k: p for k, p in self.at_found.items() if where[p]},
        )

    @property
    def sensitivity(self) -> float:
        """Share of the expected EPVS that were found; nan without any."""
        return float(np.mean(list(self.hit.values()))) if self.hit else NOTHING

    @property
    def precision(self) -> float:
        """Share of the lesions found that are EPVS; nan without any."""
        return float(np.mean(list(self.right.values()))) if self.right else NOTHING

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), with TP the EPVS found; 1 where there is nothing and nothing was found."""
        found = sum(self.hit.values())
        wrong = len(self.right) - sum(self.right.values())
        total = 2 * found + wrong + len(self.hit) - found
        return 2 * found / total if total else 1.0


def detection(truth: Truth, found: np.ndarray, spacing: tuple[float, float, float]) -> Detection:
    """Match lesions by their markers.

    Parameters
    ----------
    truth : Truth
    found : ndarray of int
        Lesions of the method.
    spacing : tuple of float
    """
    expected = np.isin(truth.lesions, truth.expected) & (truth.lesions > 0)
    at_truth = markers(np.where(expected, truth.lesions, 0), spacing)
    at_found = markers(found, spacing)
    points = [np.array(list(at.values())).reshape(-1, 3) for at in (at_truth, at_found)]
    close = apart(points[0], found > 0, spacing) <= TOLERANCE_MM
    sure = apart(points[1], expected, spacing) <= TOLERANCE_MM
    faint = apart(points[1], truth.lesions > 0, spacing) <= TOLERANCE_MM
    hit = {k: bool(c) for k, c in zip(at_truth, close, strict=True)}
    right = {k: bool(s) for k, s, f in zip(at_found, sure, faint, strict=True) if s or not f}
    return Detection(hit, right, at_truth, at_found)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def volumetric_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """1 - | |A| - |B| | / (|A| + |B|); 1 where both are empty."""
    m, n = int(a.sum()), int(b.sum())
    return 1 - abs(m - n) / (m + n) if m + n else 1.0


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a face outside it."""
    return mask & ~ndimage.binary_erosion(mask)


def distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float]) -> tuple[float, float]:
    """(Hausdorff distance in mm, normalised surface distance at `SURFACE_MM`).

    The second is the share of both surfaces that lies within the tolerance of the other (Nikolov et al. 2021,
    doi:10.2196/26151, on voxel surfaces). nan and 0 where one mask is empty, 0 and 1 where both are.
    """
    if not a.any() or not b.any():
        return (NOTHING, 0.0) if a.any() or b.any() else (0.0, 1.0)
    hausdorff = max(
        float(apart(np.argwhere(a), b, spacing).max()),
        float(apart(np.argwhere(b), a, spacing).max()),
    )
    box = bounding_box(a | b, 1)
    of_a, of_b = surface(a[box]), surface(b[box])
    close = int((apart(np.argwhere(of_a), of_b, spacing) <= SURFACE_MM).sum())
    close += int((apart(np.argwhere(of_b), of_a, spacing) <= SURFACE_MM).sum())
    return hausdorff, close / (int(of_a.sum()) + int(of_b.sum()))


def mahalanobis(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Distance of the mean positions of two masks, in units of their pooled covariance; nan with too few voxels."""
    points = [np.argwhere(m) * np.asarray(spacing) for m in (a, b)]
    if min(len(p) for p in points) < 4:
        return NOTHING
    apart = points[0].mean(axis=0) - points[1].mean(axis=0)
    pooled = sum(len(p) * np.cov(p.T) for p in points) / sum(len(p) for p in points)
    return float(np.sqrt(apart @ np.linalg.pinv(pooled) @ apart))


def auc(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve over voxels (ties count half); nan without both kinds."""
    positive = int(truth.sum())
    negative = truth.size - positive
    if positive == 0 or negative == 0:
        return NOTHING
    order = np.unique(score, return_inverse=True)[1].ravel()
    above = np.bincount(order, weights=truth.ravel(), minlength=order.max() + 1)
    below = np.bincount(order, weights=~truth.ravel(), minlength=order.max() + 1)
    smaller = np.cumsum(below) - below
    return float((above * (smaller + below / 2)).sum() / (positive * negative))


def matched_dice(truth: Truth, found: np.ndarray) -> float:
    """Mean Dice of each expected EPVS with the lesions that touch it, over those touched; nan without any (VALDO)."""
    values = []
    sizes = np.bincount(found.ravel())
    for index, box in enumerate(ndimage.find_objects(truth.lesions), start=1):
        if box is None or index not in truth.expected:
            continue
        own = (truth.lesions[box] == index) & truth.mask[box]
        touching = np.unique(found[box][own])
        touching = touching[touching > 0]
        if touching.size:
            common = int(np.isin(found[box], touching)[own].sum())
            values.append(2 * common / (int(own.sum()) + int(sizes[touching].sum())))
    return float(np.mean(values)) if values else NOTHING


def measures(
    truth: Truth,
    found: np.ndarray,
    score: np.ndarray | None,
    spacing: tuple[float, float, float],
    where: np.ndarray,
    *,
    seen: Detection | None = None,
    calibrated: bool = False,
) -> dict[str, float]:
    """All measures inside a region.

    Parameters
    ----------
    truth : Truth
    found : ndarray of int
        Lesions of the method, 0 elsewhere.
    score : ndarray, optional
        Probability or response, for the ROC curve.
    spacing : tuple of float
        mm.
    where : ndarray of bool
        The region.
    seen : Detection, optional
        Of the whole scan, where it is known already.
    calibrated : bool
        Whether `score` claims to be a probability.

    Returns
    -------
    dict
        ``sensitivity, precision, magnitude_accuracy, f1, dice, volumetric_similarity, auc, hausdorff_mm, surface_1mm,
        mahalanobis, ece, valdo_dice, valdo_volume_mm3, valdo_count, count_truth, count_found, volume_truth_mm3,
        volume_found_mm3``; magnitude accuracy is sqrt(S^2 + P^2) of Rashid et al. 2023, the VALDO measures are those
        of Sudre et al. 2024 (doi:10.1016/j.media.2023.103029): Dice of the EPVS touched, and absolute differences.
    """
    seen = (seen or detection(truth, found, spacing)).inside(where)
    mask, made = truth.mask & where, (found > 0) & where
    hausdorff, close = distances(mask, made, spacing)
    voxel = float(np.prod(spacing))
    counts = len(seen.hit), len(seen.at_found)
    volumes = float(mask.sum()) * voxel, float(made.sum()) * voxel
    inside = Truth(mask, truth.lesions, np.array(sorted(seen.hit), int))
    return {
        "sensitivity": seen.sensitivity,
        "precision": seen.precision,
        "magnitude_accuracy": float(np.hypot(seen.sensitivity, seen.precision)),
        "f1": seen.f1,
        "dice": dice(mask, made),
        "volumetric_similarity": volumetric_similarity(mask, made),
        "auc": NOTHING if score is None else auc(mask[where], score[where]),
        "hausdorff_mm": hausdorff,
        "surface_1mm": close,
        "mahalanobis": mahalanobis(mask, made, spacing),
        "ece": _ece(truth, score, where) if score is not None and calibrated else NOTHING,
        "valdo_dice": matched_dice(inside, np.where(where, found, 0)),
        "valdo_volume_mm3": abs(volumes[0] - volumes[1]),
        "valdo_count": abs(counts[0] - counts[1]),
        "count_truth": counts[0],
        "count_found": counts[1],
        "volume_truth_mm3": volumes[0],
        "volume_found_mm3": volumes[1],
    }


def _ece(truth: Truth, score: np.ndarray, where: np.ndarray) -> float:
    """Calibration error inside a region."""
    return agreement.calibration_error(agreement.reliability(truth.filled[where].astype(float), score[where]))
