"""EPVS where the attention of a counting network peaks: weak detections.

References
----------
Dubost et al. 2020, doi:10.1016/j.media.2020.101767: the highest local maxima, as many as the network counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from bids_epvs.models.count import COUNTED
from bids_epvs.prepare.regions import REGIONS, indices
from bids_epvs.prepare.resample import bounding_box
from bids_epvs.records import Prediction, Prepared

RADIUS_MM = 1.5
"""Peaks are at least this far apart (and in another than the neighbouring slice)."""
PART = 0.5
"""A detection holds the voxels near its peak that reach this share of it."""


def ball(spacing: tuple[float, ...], radius: float = RADIUS_MM) -> np.ndarray:
    """Offsets within a radius, and at least the neighbouring slices, as a footprint (odd sides, bool)."""
    reach = [max(1, int(radius / s)) for s in spacing]
    radii = [max(radius, s) for s in spacing]
    grid = np.ogrid[tuple(slice(-n, n + 1) for n in reach)]
    away = sum((g * s / r) ** 2 for g, s, r in zip(grid, spacing, radii, strict=True))
    return np.asarray(away) <= 1 + 1e-6


def peaks(saliency: np.ndarray, where: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Local maxima of a map inside a mask, the highest first.

    Returns
    -------
    points : ndarray of int
        (n, 3) voxels; of equal ones the first in memory order comes first.
    values : ndarray of float32
        (n,).
    """
    if not where.any():
        return np.zeros((0, 3), int), np.zeros(0, np.float32)
    margin = tuple(int(np.ceil(2 * RADIUS_MM / s)) + 1 for s in spacing)
    box = bounding_box(where, margin)
    own = np.where(where[box], saliency[box], 0)
    top = (own > 0) & (own >= ndimage.maximum_filter(own, footprint=ball(spacing), mode="constant"))
    points = np.argwhere(top)
    values = own[top]
    order = np.argsort(-values, kind="stable")
    return points[order] + [b.start for b in box], values[order]


def grown(saliency: np.ndarray, points: np.ndarray, where: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Detections around points (n, 3) as instances 1 ... n, int32; a voxel goes to the first that claims it."""
    out = np.zeros(saliency.shape, np.int32)
    near = np.argwhere(ball(spacing)) - (np.array(ball(spacing).shape) // 2)
    size = np.array(saliency.shape)
    for number, point in enumerate(points, start=1):
        at = near + point
        at = at[((at >= 0) & (at < size)).all(axis=1)]
        index = tuple(at.T)
        claimed = (saliency[index] >= PART * saliency[tuple(point)]) & where[index] & (out[index] == 0)
        out[tuple(at[claimed].T)] = number
    return out


def explain(prepared: Prepared, made: Prediction, parameters: Mapping[str, Any]) -> Prediction:
    """Mark the highest peaks of each region and hemisphere, as many as are counted there."""
    if made.saliency is None:
        return made
    counts = {(f.region, f.hemisphere): f.count for f in made.findings}
    chosen: list[np.ndarray] = []
    for index, region in REGIONS.items():
        number = counts.get((region.name, region.side.lower()))
        if region.name in COUNTED and number:
            points, _ = peaks(made.saliency, (prepared.regions == index) & ~prepared.csf, prepared.spacing)
            chosen.append(points[: round(number)])
    points = np.concatenate(chosen) if chosen else np.zeros((0, 3), int)
    allowed = np.isin(prepared.regions, indices(*COUNTED)) & ~prepared.csf
    found = grown(made.saliency, points, allowed, prepared.spacing)
    return replace(made, mask=found > 0, instances=found)
