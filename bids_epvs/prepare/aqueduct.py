"""The cerebral aqueduct: fluid in the midbrain that looks like an EPVS on axial slices.

No segmentation names it reliably: it is 1-2 mm wide, and half brainstem in label maps of 1 mm.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage

from bids_epvs.prepare.intensity import Levels
from bids_epvs.prepare.regions import indices
from bids_epvs.prepare.resample import bounding_box

COURSE = np.array(
    [[0.0, -24.5, -4.0], [0.0, -28.5, -8.0], [0.0, -30.5, -12.0], [0.0, -33.0, -16.0], [0.0, -37.0, -21.0]]
)
"""From the third to the fourth ventricle (mm, ICBM152), as the packaged atlas has it."""
MIDDLE = COURSE[2]
REACH_MM = 7.0
"""How far from its course it may lie in a scan."""
SPREAD_MM = 3.0
"""Standard deviation of that distance: of two spots in a slice the nearer one is the aqueduct, unless it is fainter."""
FAINT, SIGMAS = 0.12, 3.0
"""Least contrast of it: share of the step to fluid, and standard deviations of noise."""
WIDEST_MM, MARGIN_MM = 3.0, 1.0
"""Reach of it around its brightest voxel, and what is left out around it, where it fills voxels in part."""
SMOOTH_MM = 0.5
"""Standard deviation in the plane of the smoothing before it is looked for."""


def aqueduct(
    image: np.ndarray, found: np.ndarray, to_template: np.ndarray, spacing: tuple[float, ...], level: Levels
) -> np.ndarray:
    """Voxels of the midbrain that hold the aqueduct: in each axial slice the brightest spot near its course.

    What grows brighter towards the rim of the midbrain is fluid around it and no spot. Where there is no spot, nothing
    is found: often the aqueduct is dark, because its fluid moves. Its middle may be fluid already, so that only what it
    fills in part was called midbrain.

    Parameters
    ----------
    image : ndarray
        Fluid is bright.
    found : ndarray of int
        Indices of `REGIONS`.
    to_template : ndarray
        4 x 4, voxels to ICBM152 millimetres, as near to the truth around the midbrain as can be.
    spacing : tuple of float
        Voxel sizes, mm.
    level : Levels
        Of the image.

    Returns
    -------
    ndarray of bool
    """
    out = np.zeros(found.shape, bool)
    midbrain = np.isin(found, indices("Midbrain"))
    if not midbrain.any():
        return out
    box = bounding_box(midbrain, [int(np.ceil(MARGIN_MM / s)) for s in spacing])
    inside, away = midbrain[box], distance(midbrain.shape, to_template, box)
    values = ndimage.gaussian_filter(image[box], (SMOOTH_MM / spacing[0], SMOOTH_MM / spacing[1], 0))
    tissue = inside & (away <= 2 * REACH_MM)
    if not tissue.any():
        return out
    usual = float(np.median(values[tissue]))
    least = usual + max(FAINT * (level.fluid - usual), SIGMAS * level.noise)
    whole = np.stack([ndimage.binary_fill_holes(inside[..., k]) for k in range(inside.shape[2])], axis=-1)
    tops = whole & (away <= REACH_MM) & (values > least) & (values == ndimage.maximum_filter(values, (3, 3, 1)))
    score = np.where(tops, values - usual, 0) * np.exp(-0.5 * (away / SPREAD_MM) ** 2)
    part = out[box]
    for k in np.flatnonzero(tops.any(axis=(0, 1))):
        peak = np.unravel_index(np.argmax(score[..., k]), score.shape[:2])
        part[..., k] = _spot(values[..., k] > 0.5 * (usual + values[..., k][peak]), peak, spacing)
    return out & midbrain


def _spot(bright: np.ndarray, peak: tuple[np.intp, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """What of the bright touches its peak and lies near it, and `MARGIN_MM` around."""
    here = np.ones(bright.shape, bool)
    here[peak] = False
    near = ndimage.distance_transform_edt(here, sampling=spacing[:2]) <= WIDEST_MM
    pieces, _ = ndimage.label(bright & near, np.ones((3, 3)))
    return np.asarray(ndimage.distance_transform_edt(pieces != pieces[peak], sampling=spacing[:2]) <= MARGIN_MM)


def distance(shape: tuple[int, ...], to_template: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """Distance (mm) of each voxel of a box from the `COURSE`."""
    at = [np.arange(n, dtype=float)[b] for n, b in zip(shape, box, strict=True)]
    grid = np.stack(np.meshgrid(*at, indexing="ij"), axis=-1) @ to_template[:3, :3].T + to_template[:3, 3]
    out = np.full(grid.shape[:3], np.inf)
    for first, second in pairwise(COURSE):
        along = second - first
        share = np.clip((grid - first) @ along / (along @ along), 0, 1)
        out = np.minimum(out, np.linalg.norm(grid - first - share[..., None] * along, axis=-1))
    return out
