"""Intensity inhomogeneity: N4 at 2 mm, applied once at full resolution."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.prepare.resample import iso_grid, resample

COARSE_MM = 2.0


def head_mask(image: Nifti1Image) -> Nifti1Image:
    """The head (or the brain, of a stripped image) at coarse resolution: bright, connected, filled."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    smooth = ndimage.gaussian_filter(data, 1)
    level = 0.12 * float(np.percentile(smooth, 98))
    labels, n = ndimage.label(smooth > level)
    if n == 0:
        return nib.Nifti1Image(np.ones(data.shape, np.uint8), image.affine)
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(largest, iterations=2))
    return nib.Nifti1Image(filled.astype(np.uint8), image.affine)


def correct(image: Nifti1Image, mask: Nifti1Image | None = None) -> tuple[Nifti1Image, float]:
    """Divide by the N4 field.

    Parameters
    ----------
    image : Nifti1Image
        3-D, float32, any resolution.
    mask : Nifti1Image, optional
        Where the field is estimated, on any grid in the same space; the head by default.

    Returns
    -------
    corrected : Nifti1Image
        Same grid and scale; not below 0.
    variation : float
        Ratio of the 95th to the 5th percentile of the field in the mask, a quality figure (1 = none).
    """
    from bids_epvs.prepare import ants

    coarse = resample(image, iso_grid(image, COARSE_MM))
    coarse = nib.Nifti1Image(np.maximum(np.asarray(coarse.dataobj), 0), coarse.affine)
    inside = head_mask(coarse) if mask is None else resample(mask, coarse, order=0)
    field = ants.bias_field(coarse, inside)
    values = np.asarray(field.dataobj)[np.asarray(inside.dataobj) > 0]
    variation = float(np.percentile(values, 95) / np.percentile(values, 5))
    full = np.asarray(_extended(field, image).dataobj)
    corrected = np.maximum(np.asarray(image.dataobj), 0) / full
    return nib.Nifti1Image(corrected.astype(np.float32), image.affine), variation


def _extended(field: Nifti1Image, grid: Nifti1Image) -> Nifti1Image:
    """The field on the full grid; the border voxels that a coarse grid misses repeat their neighbours."""
    data = np.pad(np.asarray(field.dataobj, dtype=np.float32), 1, mode="edge")
    affine = field.affine.copy()
    affine[:3, 3] -= field.affine[:3, :3].sum(axis=1)
    return resample(nib.Nifti1Image(data, affine), grid, antialias=False)
