"""Intensity inhomogeneity: N4 at 2 mm, then the smooth field under which each tissue has one intensity.

N4 sees a histogram, no tissues. Knots close enough to take all of a coil's field (25 mm) take contrast of the deep
nuclei with it (3 and 6 % of their intensity in simulated heads 12 and 17), so N4 stops at wider ones, and what it
leaves is found by `even` as soon as tissues are known.
"""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.prepare.resample import iso_grid, resample

COARSE_MM = 2.0
FIELD_MM = 4.0
"""Voxel size at which the smooth field is drawn."""
DEGREE = 3
"""Of its polynomial. This, `SURE` and `TEMPER` were chosen on simulated heads 12 and 17 and on openms sub-01."""
DEGREE_BY_ATLAS = 2
"""The same where the atlas alone tells the tissues: it is sure of no solid one above 75 mm, where a third degree ran
away (unevenness of white matter in simulated head 05, 1 mm, 0.046 before, 0.092 after a third, 0.058 after a second
degree; once the network has seen the image 0.033 and 0.026)."""
SURE = 0.9
"""Least probability of the likeliest tissue in a voxel that takes part: what lies between two tells of no field."""
TEMPER = 0.5
"""Power of the probabilities, which count less than they say: who made them may have taken the field for anatomy."""
_ROUNDS, _SAMPLES, _FEW = 12, 60_000, 2_000
_REACH_MM = 70.0


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


def even(image: Nifti1Image, tissues: Nifti1Image, to_template: np.ndarray, degree: int = DEGREE) -> Nifti1Image:
    """Divide by the smooth field that leaves each solid tissue one intensity.

    A mixture of Gaussians, whose mixing shares are known in each voxel, times a polynomial of the place, fitted
    where one tissue is all but certain; outside the box of these voxels the field is that of its nearest face. Where
    they are hardly any the image stays as it is.

    Parameters
    ----------
    image : Nifti1Image
        3-D, any contrast and resolution.
    tissues : Nifti1Image
        (X, Y, Z, tissues), probabilities in template space; the first is fluid, which takes no part in the field.
    to_template : ndarray
        4 x 4, millimetres of the image to those of the template.
    degree : int
        Of the polynomial.

    References
    ----------
    Van Leemput et al. 1999, doi:10.1109/42.811268; Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018.
    """
    shares = np.asarray(tissues.dataobj)
    there = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shares.shape[:3]), np.linalg.inv(to_template) @ tissues.affine)
    values = np.asarray(resample(image, there).dataobj)
    known = (shares.max(axis=-1) > SURE) & (values > 0)
    if np.count_nonzero(known) < _FEW:
        return image
    at = np.argwhere(known) @ tissues.affine[:3, :3].T + tissues.affine[:3, 3]
    middle, low, high = at.mean(axis=0), at.min(axis=0), at.max(axis=0)
    step = max(1, len(at) // _SAMPLES)
    slopes = _slopes(values[known][::step], shares[known][::step], _powers((at[::step] - middle) / _REACH_MM, degree))
    grid = iso_grid(image, FIELD_MM)
    matrix = to_template @ grid.affine
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape[:3]), indexing="ij"), axis=-1).reshape(-1, 3)
    place = np.clip(voxels @ matrix[:3, :3].T + matrix[:3, 3], low, high)
    factor = _factor(_powers((place - middle) / _REACH_MM, degree), slopes).reshape(grid.shape[:3])
    field = _extended(nib.Nifti1Image(factor.astype(np.float32), grid.affine), image)
    return nib.Nifti1Image(np.asarray(image.dataobj) / np.asarray(field.dataobj), image.affine)


def _powers(place: np.ndarray, degree: int) -> np.ndarray:
    """Products of coordinates (n, 3) up to a degree, without the constant, (n, terms)."""
    exponents = [e for e in product(range(degree + 1), repeat=3) if 0 < sum(e) <= degree]
    return np.stack([np.prod([place[:, a] ** p for a, p in enumerate(e) if p], axis=0) for e in exponents], axis=1)


def _factor(powers: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    return np.clip(1 + powers @ slopes, 0.5, 2)


def _slopes(values: np.ndarray, shares: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """What the polynomial's terms are multiplied with, (terms,), from samples (n,), (n, tissues) and (n, terms)."""
    values = values.astype(np.float64) / np.percentile(values, 99)
    prior = np.maximum(shares.T, 1e-3).astype(np.float64) ** TEMPER  # tissues first: their sums are much faster
    prior /= prior.sum(axis=0)
    weight, slopes = prior**2, np.zeros(powers.shape[1])
    for _ in range(_ROUNDS):
        flat = values / _factor(powers, slopes)
        total = np.maximum(weight.sum(axis=1), 1e-6)
        mean = weight @ flat / total
        away = np.square(flat - mean[:, None])
        variance = np.einsum("tn,tn->t", weight, away) / total + 0.02**2
        weight = prior * (np.exp(away / (-2 * variance[:, None])) / np.sqrt(variance)[:, None] + 1e-12)
        weight /= weight.sum(axis=0)
        sure = weight[1:] / variance[1:, None]
        share = mean[1:] ** 2 @ sure  # of sum over tissues of sure * (value - mean * factor) ** 2
        rows = powers * share[:, None]
        slopes = np.linalg.lstsq(powers.T @ rows, powers.T @ (mean[1:] @ sure * values - share), rcond=None)[0]
    return slopes


def _extended(field: Nifti1Image, grid: Nifti1Image) -> Nifti1Image:
    """The field on the full grid; the border voxels that a coarse grid misses repeat their neighbours."""
    data = np.pad(np.asarray(field.dataobj, dtype=np.float32), 1, mode="edge")
    affine = field.affine.copy()
    affine[:3, 3] -= field.affine[:3, :3].sum(axis=1)
    return resample(nib.Nifti1Image(data, affine), grid, antialias=False)
