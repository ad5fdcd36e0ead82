"""Where the voxels of a scan lie in the atlas, and what the atlas has there."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.prepare import atlas
from bids_epvs.prepare.register import Alignment
from bids_epvs.prepare.resample import gathered, iso_grid

NEAR_MM, NEAR_LEAST_MM3 = 30.0, 50_000.0
"""Reach of `affine_near`, and the least of the brain (by weight) that it needs. With the midbrain's planes on heads 12
and 17 (1 and 5 mm, three contrasts) Dice of the midbrain is 0.82 through the deformation itself and 0.83, 0.86, 0.87,
0.87 and 0.88 with a reach of 15, 25, 30, 35 and 40 mm (truth lies in the pose of the whole head); overlap of T1w and
FLAIR with the T2w in the two sessions of sub-01 is 0.82 and then 0.84, 0.85, 0.85, 0.85 and 0.85."""


def atlas_voxels(alignment: Alignment, grid: Nifti1Image) -> np.ndarray:
    """Where each voxel of a grid of the scan lies in the atlas (fractional voxels), float32 (X, Y, Z, 3).

    Outside it is -1.
    """
    from bids_epvs.prepare import ants

    source = atlas.probabilities()
    ramps = np.meshgrid(*[np.arange(n, dtype=np.float32) + 1 for n in source.shape[:3]], indexing="ij")
    image = nib.Nifti1Image(np.stack(ramps, -1), source.affine)
    return np.asarray(ants.apply(image, grid, alignment.transform).dataobj) - 1


def template_points(alignment: Alignment, image: Nifti1Image, spacing: float = 2.0) -> Nifti1Image:
    """ICBM152 millimetres of each voxel of a coarse grid over a scan, (X, Y, Z, 3); NaN outside the atlas."""
    grid = iso_grid(image, spacing)
    where = atlas_voxels(alignment, grid)
    affine = atlas.probabilities().affine
    points = where @ affine[:3, :3].T + affine[:3, 3]
    points[(where < 0).any(axis=-1)] = np.nan
    return nib.Nifti1Image(points.astype(np.float32), grid.affine)


def affine_near(points: Nifti1Image, inside: np.ndarray, place: np.ndarray) -> np.ndarray | None:
    """The affine that follows `template_points` best around a place of the template.

    A deformation between pictures of structures knows where a structure without landmarks ends, but not where a plane
    cuts through it: along the brainstem it slides by some millimetres from contrast to contrast. What surrounds the
    plane tells better.

    Parameters
    ----------
    points : Nifti1Image
        (X, Y, Z, 3).
    inside : ndarray of bool
        Brain, (X, Y, Z).
    place : ndarray
        ICBM152 millimetres; points count by a Gaussian of `NEAR_MM` around it.

    Returns
    -------
    ndarray or None
        4 x 4, millimetres of the scan to ICBM152 millimetres; None where there is too little of the brain.
    """
    reached = np.asarray(points.dataobj)
    known = inside & np.isfinite(reached).all(axis=-1)
    there = reached[known].astype(float) - place
    weight = np.exp(-0.5 * (there**2).sum(axis=1) / NEAR_MM**2)
    if weight.sum() * np.prod(voxel_sizes(points.affine)) < NEAR_LEAST_MM3:
        return None
    near = weight > 0.01
    here = np.c_[np.argwhere(known)[near], np.ones(np.count_nonzero(near))] @ points.affine.T
    middle = np.eye(4)
    middle[:3, 3] = -here[:, :3].mean(axis=0)
    rows = np.sqrt(weight[near, None])
    fit = np.linalg.lstsq((here @ middle.T) * rows, there[near] * rows, rcond=None)[0]
    out = np.eye(4)
    out[:3] = fit.T
    out[:3, 3] += place
    return out @ middle


def inside_skull(where: np.ndarray) -> np.ndarray:
    """Probability of brain or its fluid at `atlas_voxels`, float32 (X, Y, Z); 0 outside the atlas."""
    data = np.asarray(atlas.brain().dataobj)
    return ndimage.map_coordinates(data, np.moveaxis(where, -1, 0), order=1, mode="constant")


def priors(where: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Atlas probabilities, float32 (X, Y, Z, labels), at `atlas_voxels`; all labels interpolated together (trilinear).

    Parameters
    ----------
    where : ndarray
        (X, Y, Z, 3).
    wanted : ndarray of bool
        Voxels to compute; the others, and those outside the atlas, are 0.
    """
    data = np.asarray(atlas.probabilities().dataobj)
    out = np.zeros((*where.shape[:3], data.shape[3]), np.float32)
    valid = wanted & (where >= 0).all(axis=-1) & (where < np.array(data.shape[:3]) - 1).all(axis=-1)
    out[valid] = gathered(data, where[valid]) / np.float32(255)
    return out
