"""Brain mask, anatomical labels and cerebrospinal fluid of one scan.

Atlas priors come through the transform; the scan's own intensities then decide between tissues (expectation maximisation), so that
ventricles and sulci follow the subject and not the average of the atlas. `Anatomy` is the same whatever the source
of the labels: this module, a segmentation given with ``-d``, or later a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.prepare import atlas, regions
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.register import Alignment
from bids_epvs.prepare.resample import coarse_grid, resample

if TYPE_CHECKING:
    from bids_epvs.prepare.ants import Transform

WORK_MM = 1.0
_CLASSES = ("CSF", "GM", "WM", "DGM")
_CLASS_OF = {"CSF": "CSF", "GM": "GM", "WM": "WM", "DGM": "DGM", "Pallidum": "DGM"}
_INDICES = np.array(list(ATLAS_LABELS), np.int16)
_IN_SKULL = np.array([e.brain for e in ATLAS_LABELS.values()])


@dataclass(frozen=True)
class Anatomy:
    """Anatomy on the grid of the T2w, canonical frame.

    Attributes
    ----------
    labels : ndarray of int16
        Indices of `ATLAS_LABELS`, 0 outside the brain.
    brain : ndarray of bool
        Brain with its fluid, without holes.
    """

    labels: np.ndarray
    brain: np.ndarray


def work_grid(image: Nifti1Image) -> Nifti1Image:
    """Axes of the scan, at least 1 mm along each: anatomy needs no more."""
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    return coarse_grid(image, tuple(np.maximum(spacing, WORK_MM)))


def priors(alignment: Alignment, grid: Nifti1Image) -> np.ndarray:
    """Atlas probabilities on a grid of the scan, float32 (X, Y, Z, labels); 0 outside the atlas.

    The transform is evaluated once, on template coordinates; all labels are then interpolated together (trilinear).
    """
    from bids_epvs.prepare import ants

    source = atlas.probabilities()
    data = np.asarray(source.dataobj)
    ramps = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) + 1 for n in data.shape[:3]], indexing="ij"), -1)
    ramp_image = nib.Nifti1Image(ramps, source.affine)
    where = np.asarray(ants.apply(ramp_image, grid, alignment.transform).dataobj) - 1
    out = np.zeros((*grid.shape[:3], data.shape[3]), np.float32)
    valid = (where >= 0).all(axis=-1) & (where < np.array(data.shape[:3]) - 1).all(axis=-1)
    points = where[valid]
    base = np.floor(points).astype(np.intp)
    part = points - base
    total = np.zeros((len(points), data.shape[3]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1, dtype=np.float32) / np.float32(255)
        at = base + corner
        total += data[at[:, 0], at[:, 1], at[:, 2]] * weight[:, None]
    out[valid] = total
    return out


def brain_mask(inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Probability of being in the skull above one half; one piece, without holes in any axial slice."""
    mask = inside > 0.5
    labels, n = ndimage.label(mask)
    if n > 1:
        mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    mask = ndimage.binary_fill_holes(mask)
    return np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], axis=-1)


def tissue_posteriors(images: Sequence[Nifti1Image], mask: np.ndarray, prior: np.ndarray) -> dict[str, np.ndarray]:
    """Posterior of each tissue class from intensities and atlas priors.

    Expectation maximisation of one Gaussian a class over the sequences together, weighted by the priors at each voxel.

    References
    ----------
    Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018 (without its deformation).
    """
    kinds = [_CLASS_OF.get(e.tissue) if e.brain else None for e in ATLAS_LABELS.values()]
    inside = prior[mask]
    weights = np.stack([inside[:, [k for k, c in enumerate(kinds) if c == name]].sum(-1) for name in _CLASSES], 1)
    weights = np.maximum(weights, 1e-3)
    weights /= weights.sum(axis=1, keepdims=True)
    values = np.stack([_scaled(i, mask) for i in images], axis=1)
    found = expectation_maximisation(values.astype(np.float64), weights.astype(np.float64))
    out = {}
    for k, name in enumerate(_CLASSES):
        out[name] = np.zeros(mask.shape, np.float32)
        out[name][mask] = found[:, k]
    return out


def expectation_maximisation(values: np.ndarray, priors: np.ndarray, *, iterations: int = 25) -> np.ndarray:
    """Posteriors of a Gaussian mixture whose mixing proportions are given at each sample.

    Parameters
    ----------
    values : ndarray
        (samples, channels).
    priors : ndarray
        (samples, classes), rows sum to 1; the first posterior.
    iterations : int

    Returns
    -------
    ndarray
        (samples, classes), rows sum to 1.
    """
    posterior = priors
    for _ in range(iterations):
        density = np.empty_like(priors)
        for k in range(priors.shape[1]):
            weight = posterior[:, k] ** 2 if posterior is priors else posterior[:, k]
            total = max(float(weight.sum()), 1e-9)
            mean = weight @ values / total
            centred = values - mean
            covariance = (weight[:, None] * centred).T @ centred / total + 1e-4 * np.eye(values.shape[1])
            distance = np.einsum("ij,jk,ik->i", centred, np.linalg.inv(covariance), centred)
            density[:, k] = np.exp(-0.5 * distance) / np.sqrt(np.linalg.det(covariance))
        joint = priors * density + 1e-12 * priors
        posterior = joint / joint.sum(axis=1, keepdims=True)
    return posterior


def _scaled(image: Nifti1Image, mask: np.ndarray) -> np.ndarray:
    """Intensities in the mask, cut at the percentiles 0.5 and 99 and scaled to 0-1."""
    inside = np.asarray(image.dataobj, np.float32)[mask]
    low, high = np.percentile(inside, [0.5, 99])
    return (np.clip(inside, low, high) - low) / max(high - low, 1e-6)


def label_map(prior: np.ndarray, posterior: dict[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Most probable label: prior of the label, reweighted by posterior over prior of its tissue (int16)."""
    kinds = [_CLASS_OF.get(e.tissue) if e.brain else None for e in ATLAS_LABELS.values()]
    best = np.full(mask.shape, -1.0, np.float32)
    out = np.zeros(mask.shape, np.int16)
    for name in _CLASSES:
        members = [k for k, c in enumerate(kinds) if c == name]
        total = np.maximum(prior[..., members].sum(-1), 1e-3)
        weight = posterior[name] / total
        for k in members:
            score = prior[..., k] * weight
            better = mask & (score > best)
            best[better] = score[better]
            out[better] = _INDICES[k]
    return out


def upsample_labels(labels: np.ndarray, grid: Nifti1Image, target: Nifti1Image) -> np.ndarray:
    """Labels on a finer grid: each label's indicator is interpolated linearly, the largest wins (ties: lowest index).

    Parameters
    ----------
    labels : ndarray of int
        On `grid`.
    grid, target : Nifti1Image
        In the same space.
    """
    if grid.shape[:3] == target.shape[:3] and np.allclose(grid.affine, target.affine):
        return labels.copy()
    best = np.full(target.shape[:3], 0.0, np.float32)
    out = np.zeros(target.shape[:3], labels.dtype)
    for index in np.unique(labels):
        one = nib.Nifti1Image((labels == index).astype(np.float32), grid.affine)
        score = np.asarray(resample(one, target, antialias=False).dataobj)
        better = score > best
        best[better] = score[better]
        out[better] = index
    return out


def from_atlas(images: Sequence[Nifti1Image], alignment: Alignment) -> Anatomy:
    """Labels and brain mask of a scan from the aligned atlas and the intensities of its sequences.

    Parameters
    ----------
    images : sequence of Nifti1Image
        T2w first, then T1w where present; one grid, canonical frame, bias-corrected.
    alignment : Alignment
        Of the template with the T2w.
    """
    full = images[0]
    grid = work_grid(full)
    coarse = [resample(i, grid) for i in images]
    prior = priors(alignment, grid)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    if alignment.stripped:
        inside = np.asarray(coarse[0].dataobj)
        prior_inside = prior[..., _IN_SKULL].sum(-1)
        foreground = inside > 0.12 * np.percentile(inside[prior_inside > 0.5], 98)
        mask = brain_mask(ndimage.binary_closing(foreground, iterations=2) & (prior_inside > 0.01), spacing)
    else:
        mask = brain_mask(prior[..., _IN_SKULL].sum(-1), spacing)
    posterior = tissue_posteriors(coarse, mask, prior)
    labels = label_map(prior, posterior, mask)
    as_image = nib.Nifti1Image(mask.astype(np.float32), grid.affine)
    brain = np.asarray(resample(as_image, full, antialias=False).dataobj) > 0.5
    fine = upsample_labels(labels, grid, full)
    return Anatomy(np.where(brain, fine, 0).astype(np.int16), brain)


def from_segmentation(segmentation: Nifti1Image, t2w: Nifti1Image, transform: Transform | None) -> Anatomy:
    """Labels and brain mask from a segmentation made elsewhere (FreeSurfer, SynthSeg).

    Parameters
    ----------
    segmentation : Nifti1Image
        FreeSurfer indices, canonical frame of the T2w.
    t2w : Nifti1Image
        Defines the grid.
    transform : Transform, optional
        From the T2w to the image the segmentation was made on; header geometry alone without it.

    Raises
    ------
    DataError
        It holds no cerebral white matter on the T2w.
    """
    labels = regions.simplify(np.asarray(segmentation.dataobj))
    source = nib.Nifti1Image(labels.astype(np.float32), segmentation.affine)
    if transform is None:
        moved = np.asarray(resample(source, t2w, order=0).dataobj)
    else:
        from bids_epvs.prepare import ants

        moved = np.asarray(ants.apply(source, t2w, transform, interpolation="genericLabel").dataobj)
    fine = np.rint(moved).astype(np.int16)
    if not np.isin(fine, (2, 41)).any():
        raise DataError(
            "the segmentation given with -d has no white matter (labels 2, 41) where the T2w lies.",
            remedy="It must use FreeSurfer indices and the scanner space of the T2w or T1w.",
        )
    inside = np.isin(fine, _INDICES[_IN_SKULL])
    spacing = np.linalg.norm(t2w.affine[:3, :3], axis=0)
    near = ndimage.distance_transform_edt(~inside, sampling=spacing) <= 2.0
    brain = brain_mask(ndimage.distance_transform_edt(near, sampling=spacing) > 2.0, spacing)
    return Anatomy(np.where(brain, fine, 0).astype(np.int16), brain)
