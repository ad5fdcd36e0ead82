"""Smooth fields and rotations: what simulation and training draw at random is spread over a grid with these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_epvs.prepare.resample import along_axes


def linear_weights(fine: int, coarse: int) -> np.ndarray:
    """(fine, coarse) matrix of linear interpolation between grids over the same field of view, border repeated."""
    at = np.clip((np.arange(fine) + 0.5) * coarse / fine - 0.5, 0, coarse - 1)
    low = np.minimum(np.floor(at).astype(int), max(coarse - 2, 0))
    out = np.zeros((fine, coarse), np.float32)
    out[np.arange(fine), low] = 1 - (at - low)
    if coarse > 1:
        out[np.arange(fine), low + 1] = at - low
    return out


def coarse_field(knots: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Cubic interpolation of knots to an eighth of a grid."""
    middle = np.maximum(4, np.asarray(shape) // 8)
    return ndimage.zoom(knots, middle / knots.shape, order=3, mode="nearest", grid_mode=True).astype(np.float32)


def smooth_field(knots: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Values at knots spread over a grid: cubic to an eighth of it, then linear (float32)."""
    coarse = coarse_field(knots, shape)
    weights = [linear_weights(int(n), m) for n, m in zip(shape, coarse.shape, strict=True)]
    return np.ascontiguousarray(along_axes(coarse, weights))


def rotation(axis: int, angle: float) -> np.ndarray:
    """3 x 3 rotation by `angle` (radians) in the plane of the two other axes."""
    a, b = [k for k in range(3) if k != axis]
    out = np.eye(3)
    out[a, a] = out[b, b] = np.cos(angle)
    out[a, b], out[b, a] = -np.sin(angle), np.sin(angle)
    return out


def turned(matrix: np.ndarray, angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """A 3 x 3 matrix followed by `rotation` about each axis in turn, by `angles` (radians)."""
    for axis, angle in enumerate(angles):
        matrix = rotation(axis, angle) @ matrix
    return matrix
