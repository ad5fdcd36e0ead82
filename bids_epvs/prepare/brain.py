"""Brain mask and anatomical labels of one scan.

Probabilities of the atlas or of a network come through the transform; the scan's own intensities then decide between
tissues, so that ventricles and sulci follow the subject and not the average of the atlas. `Anatomy` is the same
whatever the source of the labels: network, atlas, or a segmentation given with ``-d``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.prepare import deep, places, regions, structures, tidy, tissues
from bids_epvs.prepare.labels import ATLAS_LABELS, INDICES
from bids_epvs.prepare.register import Alignment
from bids_epvs.prepare.resample import affine_sample, coarse_grid, resample
from bids_epvs.records import Transform

WORK_MM = 1.0
STEPS = 0.7
"""Standard deviation, in voxels of the work grid, of what takes its steps off the borders where voxels of the scan are
smaller. Head 17, T2w, 0.5 x 0.5 x 5 mm: Dice of all structures grows by 0.001 to 0.007 (pallidum 0.881 to 0.889, white
matter 0.898 to 0.900); 0.6 does nearly nothing, 0.8 and 0.9 the same
(a script that is not in the project)."""
_IN_SKULL = np.array([e.brain for e in ATLAS_LABELS.values()])
Outline = Callable[[Sequence[Nifti1Image], np.ndarray], "np.ndarray | None"]
"""A network that knows the grid of the scan: images and `structures.placed` probabilities there, to better ones, or to
None where it has nothing to say."""


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


def brain_mask(inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Probability of being in the skull above one half; one piece, without holes in any axial slice."""
    mask = inside > 0.5
    labels, n = ndimage.label(mask)
    if n > 1:
        mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    mask = ndimage.binary_fill_holes(mask)
    return np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], axis=-1)


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
    where = places.atlas_voxels(alignment, grid)
    skull = places.inside_skull(where)
    prior = places.priors(where, skull > 0.01)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    if alignment.stripped:
        inside = np.asarray(coarse[0].dataobj)
        foreground = inside > 0.12 * np.percentile(inside[skull > 0.5], 98)
        mask = brain_mask(ndimage.binary_closing(foreground, iterations=2) & (skull > 0.01), spacing)
    else:
        mask = brain_mask(skull, spacing)
    labels = tissues.label_map(prior, tissues.posteriors(coarse, mask, prior), mask, spacing)
    return _finished(full, coarse[0], labels, prior, mask, mask.astype(np.float32))


def _finished(
    full: Nifti1Image,
    coarse: Nifti1Image,
    labels: np.ndarray,
    prior: np.ndarray,
    mask: np.ndarray,
    inside: np.ndarray,
    *,
    sure: float = np.inf,
) -> Anatomy:
    """Labels on the work grid without lakes, bays and strays, brought to the full grid.

    Parameters
    ----------
    full, coarse : Nifti1Image
        The scan on the result's grid and on the work grid.
    labels : ndarray
        (X, Y, Z) there.
    prior : ndarray
        (X, Y, Z, labels) there.
    mask : ndarray of bool
        Brain and fluid there.
    inside : ndarray of float32
        Above one half where `mask` is; its half-way surface becomes the border of the brain.
    sure : float
        Where the priors of `tidy.SOLID` add up to this, intensities cannot make fluid or cortex of it.
    """
    spacing = np.linalg.norm(coarse.affine[:3, :3], axis=0)
    labels = tidy.without_lakes(tidy.kept_solid(labels, prior, mask, sure), spacing)
    labels = tidy.without_strays(tidy.without_bays(labels, np.asarray(coarse.dataobj), spacing), spacing)
    smooth = nib.Nifti1Image(inside, coarse.affine)
    brain = np.asarray(resample(smooth, full, antialias=False).dataobj) > 0.5
    fine = tidy.upsample_labels(labels, coarse, full, smooth=STEPS)
    return Anatomy(np.where(brain, fine, 0).astype(np.int16), brain)


def from_parcels(
    images: Sequence[Nifti1Image],
    parcels: structures.Parcels,
    to_template: np.ndarray,
    *,
    outline: Outline | None = None,
    within: Callable[[], Nifti1Image] | None = None,
) -> Anatomy:
    """Labels and brain mask from probabilities on a coarse grid, sharpened by the intensities of the scan.

    Parameters
    ----------
    images : sequence of Nifti1Image
        T2w first, then T1w where present; one grid, canonical frame, bias-corrected; see `structures.covering`.
    parcels : Parcels
    to_template : ndarray
        4 x 4, millimetres of the scan to those of `parcels`.
    outline : callable, optional
        A network that sharpens; where it says nothing expectation maximisation does.
    within : callable, optional
        `structures.skull`, which all probabilities are multiplied with. It is asked for as late as possible, so that it
        can be computed meanwhile.
    """
    whole = images[0].shape[:3]
    box = structures.around(parcels, to_template, images[0])
    near = [image.slicer[box] for image in images]
    full, grid = near[0], work_grid(near[0])
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    prior, inside = structures.placed(parcels, to_template, grid)
    coarse = structures.covering([resample(image, grid) for image in near], prior)
    better = outline(coarse, prior) if outline else None
    found = prior if better is None else better
    if within:
        head = within()
        matrix = np.linalg.inv(head.affine) @ to_template @ grid.affine
        share = affine_sample(np.asarray(head.dataobj), matrix, grid.shape[:3], order=1)
        found *= share[..., None]
        inside = inside * share
    if better is not None:
        inside = better.sum(axis=-1)
    mask = brain_mask(inside, spacing)
    border = np.where(mask, np.maximum(inside, 0.51), np.minimum(inside, 0.49))
    if better is None:
        found_tissues = tissues.posteriors(coarse, mask, prior)
        labels = tissues.label_map(prior, found_tissues, mask, spacing, kept=tissues.KEPT)
    else:
        labels = np.where(mask, INDICES[np.argmax(better, axis=-1)], 0)
    labels = deep.sharpened(labels, found, [np.asarray(image.dataobj) for image in coarse], spacing)
    made = _finished(full, coarse[0], labels, found, mask, border, sure=structures.SURE)
    out = Anatomy(np.zeros(whole, made.labels.dtype), np.zeros(whole, bool))
    out.labels[box], out.brain[box] = made.labels, made.brain
    return out


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
    inside = np.isin(fine, INDICES[_IN_SKULL])
    spacing = np.linalg.norm(t2w.affine[:3, :3], axis=0)
    near = ndimage.distance_transform_edt(~inside, sampling=spacing) <= 2.0
    brain = brain_mask(ndimage.distance_transform_edt(near, sampling=spacing) > 2.0, spacing)
    return Anatomy(np.where(brain, fine, 0).astype(np.int16), brain)
