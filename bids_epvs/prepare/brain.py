"""Brain mask, anatomical labels and cerebrospinal fluid of one scan.

Atlas priors come through the transform; the scan's own intensities then decide between tissues (expectation
maximisation), so that ventricles and sulci follow the subject and not the average of the atlas. `Anatomy` is the same
whatever the source of the labels: this module, a segmentation given with ``-d``, or later a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.prepare import atlas, deep, regions
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.register import Alignment
from bids_epvs.prepare.resample import affine_sample, coarse_grid, iso_grid, resample
from bids_epvs.records import Transform

WORK_MM = 1.0
AIR_MM = 6.0
"""Margin around the head's structures; what lies beyond is not looked at."""
SMOOTH_MM = 0.8
"""Standard deviation (mm) of the smoothing of label scores along axes with small voxels."""
_CLASSES = ("CSF", "GM", "WM", "DGM")
_CLASS_OF = {"CSF": "CSF", "GM": "GM", "WM": "WM", "DGM": "DGM", "Pallidum": "DGM"}
MIXED = (7, 46, 8, 47, 16, 28, 60)
"""Labels that hold several tissues, or one unlike the cerebrum's: intensities do not decide about them."""
KEPT = (*MIXED, 11, 50, 13, 52, 26, 58)
"""Those, and caudate, pallidum and accumbens, where the network that found them has seen the intensities itself: one
Gaussian for all nuclei takes the dark pallidum for white matter, and voxels between ventricle and white matter for
caudate (compared on simulated T2w of heads 12 and 17)."""
BORDER = 0.15
"""Share of the grey matter voxels that hold fluid too. Without a class for them the Gaussian of grey matter is so broad
that on FLAIR cortex is taken for white matter (heads 12 and 17 at 1 mm: white matter 0.85 and 0.86, with it 0.87 both;
T2w and T1w gain less or nothing)."""
NEAR_MM, NEAR_LEAST_MM3 = 30.0, 50_000.0
"""Reach of `affine_near`, and the least of the brain (by weight) that it needs. With the midbrain's planes on heads 12
and 17 (1 and 5 mm, three contrasts) Dice of the midbrain is 0.82 through the deformation itself and 0.83, 0.86, 0.87,
0.87 and 0.88 with a reach of 15, 25, 30, 35 and 40 mm (truth lies in the pose of the whole head); overlap of T1w and
FLAIR with the T2w in the two sessions of sub-01 is 0.82 and then 0.84, 0.85, 0.85, 0.85 and 0.85."""
STEPS = 0.7
"""Standard deviation, in voxels of the work grid, of what takes its steps off the borders where voxels of the scan are
smaller. Head 17, T2w, 0.5 x 0.5 x 5 mm: Dice of all structures grows by 0.001 to 0.007 (pallidum 0.881 to 0.889, white
matter 0.898 to 0.900); 0.6 does nearly nothing, 0.8 and 0.9 the same
(a script that is not in the project)."""
OUTSIDE = 0.4
"""Least probability of brain or fluid in the deformed atlas."""
FLUID = 24
LAKES, SOLID = (FLUID, 3, 42), (2, 41, 10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 28, 60)
"""Labels of pieces that may be an EPVS or a lesion; labels they may lie in."""
SURE = 0.7
"""Probability of white matter and nuclei by the network that intensities cannot overrule; chosen on sub-03 of
``make demo``, where EPVS voxels inside regions rose from 0.60 to 0.69 (``benchmarks/coverage.py``)."""
AGREED = 0.6
"""Least mean Dice of the structures of a sequence with those of the first (`Parcels.agreement`): below, their
alignment failed, or the network cannot read the sequence."""
COVERED = 0.98
"""Least share of the white matter and nuclei of the first sequence that another one must show to be looked at with it
on the grid of the scan."""
COMPACT, STRAY = (10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 17, 53, 18, 54), 0.1
"""Structures in one piece; share of the largest piece below which another one is no part of it."""
LAKE_MM3, LAKE_MM2, ENCLOSED = 500.0, 40.0, 0.6
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


@dataclass(frozen=True)
class Parcels:
    """What a network says about the structures of a head that was brought into the pose of the template.

    Attributes
    ----------
    probability : Nifti1Image
        (X, Y, Z, labels), float32, template millimetres; what is missing to 1 is background.
    labels : tuple of int
        FreeSurfer index of each volume.
    fine : Nifti1Image, optional
        The same with smaller voxels, of a part of the head; there it is what counts.
    to_template : ndarray
        4 x 4, millimetres of the images to template millimetres: the pose it was brought into.
    agreement : tuple of float
        Of each image: mean Dice of its structures with those found in the first; below `AGREED` it was not used.
    """

    probability: Nifti1Image
    labels: tuple[int, ...]
    fine: Nifti1Image | None = None
    to_template: np.ndarray = field(default_factory=lambda: np.eye(4))
    agreement: tuple[float, ...] = ()

    def expected_dice(self) -> dict[int, float]:
        """Dice of each structure with a truth drawn from the probabilities: a quality score, 1 where all is certain.

        For the voxels M where structure k is the most probable, with probabilities p: 2 sum_M p / (size of M + sum p).
        """
        data = np.asarray(self.probability.dataobj)
        best = np.where(2 * data.max(axis=-1) > data.sum(axis=-1), np.argmax(data, axis=-1), -1)
        out = {}
        for k, label in enumerate(self.labels):
            own = best == k
            total = float(own.sum() + data[..., k].sum())
            out[label] = 2 * float(data[..., k][own].sum()) / total if total > 1 else 0.0
        return out


def work_grid(image: Nifti1Image) -> Nifti1Image:
    """Axes of the scan, at least 1 mm along each: anatomy needs no more."""
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    return coarse_grid(image, tuple(np.maximum(spacing, WORK_MM)))


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
    out[valid] = _gathered(data, where[valid]) / np.float32(255)
    return out


def _gathered(data: np.ndarray, points: np.ndarray) -> np.ndarray:
    """All volumes of (X, Y, Z, labels) at fractional voxels (n, 3) inside it, trilinear, float32 (n, labels)."""
    base = np.minimum(np.floor(points).astype(np.intp), np.array(data.shape[:3]) - 2)
    part = (points - base).astype(np.float32)
    total = np.zeros((len(points), data.shape[3]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1, dtype=np.float32)
        at = base + corner
        total += data[at[:, 0], at[:, 1], at[:, 2]] * weight[:, None]
    return total


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

    Expectation maximisation of one Gaussian a class over the sequences together, and one for what lies between fluid
    and grey matter (`BORDER`), weighted by the priors at each voxel; where `MIXED` labels prevail the prior stays.

    References
    ----------
    Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018 (without its deformation).
    """
    kinds = [_CLASS_OF.get(e.tissue) if e.brain else None for e in ATLAS_LABELS.values()]
    inside = prior[mask]
    clear = inside[:, np.isin(_INDICES, MIXED)].sum(axis=1) < 0.5
    weights = np.stack([inside[:, [k for k, c in enumerate(kinds) if c == name]].sum(-1) for name in _CLASSES], 1)
    weights = np.maximum(weights, 1e-3)
    weights /= weights.sum(axis=1, keepdims=True)
    values = np.stack([_scaled(i, mask) for i in images], axis=1)
    found = weights.copy()
    seen, shares = values[clear].astype(np.float64), weights[clear].astype(np.float64)
    found[clear] = expectation_maximisation(seen, shares, border=BORDER)
    out = {}
    for k, name in enumerate(_CLASSES):
        out[name] = np.zeros(mask.shape, np.float32)
        out[name][mask] = found[:, k]
    return out


def expectation_maximisation(
    values: np.ndarray, priors: np.ndarray, *, iterations: int = 25, most: int = 150_000, border: float = 0.0
) -> np.ndarray:
    """Posteriors of a Gaussian mixture whose mixing proportions are given at each sample.

    Parameters
    ----------
    values : ndarray
        (samples, channels).
    priors : ndarray
        (samples, classes), rows sum to 1; the first posterior.
    iterations : int
    most : int
        Means and covariances are estimated from every n-th sample, so that about as many take part.
    border : float
        Share of the second class that is mixed with the first, evenly in all proportions; it has a Gaussian between
        theirs, and its posterior is added to that of the second.

    Returns
    -------
    ndarray
        (samples, classes), rows sum to 1.
    """
    step = max(1, round(len(values) / most))
    some, shares = values[::step], _with_border(priors[::step], border)
    classes = priors.shape[1]
    weight = shares**2
    for _ in range(iterations):
        gaussians = [_gaussian(some, w) for w in weight[:, :classes].T]
        if border:
            (first, _), (second, spread) = gaussians[:2]
            gaussians.append(((first + second) / 2, spread + np.outer(second - first, second - first) / 12))
        weight = _posterior(some, shares, gaussians)
    found = _posterior(values, _with_border(priors, border), gaussians)
    found[:, 1] += found[:, classes:].sum(axis=1)
    return found[:, :classes]


def _with_border(priors: np.ndarray, border: float) -> np.ndarray:
    """(samples, classes) with the share `border` of the second class in a column of its own, if any."""
    if not border:
        return priors
    out = np.concatenate([priors, border * priors[:, 1:2]], axis=1)
    out[:, 1] *= 1 - border
    return out


def _gaussian(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (channels,) and covariance (channels, channels)."""
    total = max(float(weight.sum()), 1e-9)
    mean = weight @ values / total
    centred = values - mean
    return mean, (weight[:, None] * centred).T @ centred / total + 1e-4 * np.eye(values.shape[1])


def _posterior(
    values: np.ndarray, priors: np.ndarray, gaussians: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Priors (samples, classes) times the density of each class, rows sum to 1."""
    joint = np.empty_like(priors)
    for k, (mean, covariance) in enumerate(gaussians):
        centred = values - mean
        distance = np.einsum("ij,ij->i", centred @ np.linalg.inv(covariance), centred)
        joint[:, k] = np.exp(-0.5 * distance) / np.sqrt(np.linalg.det(covariance)) + 1e-12
    joint *= priors
    return joint / joint.sum(axis=1, keepdims=True)


def _scaled(image: Nifti1Image, mask: np.ndarray) -> np.ndarray:
    """Intensities in the mask, cut at the percentiles 0.5 and 99 and scaled to 0-1."""
    inside = np.asarray(image.dataobj, np.float32)[mask]
    low, high = np.percentile(inside, [0.5, 99])
    return (np.clip(inside, low, high) - low) / max(high - low, 1e-6)


def label_map(
    prior: np.ndarray,
    posterior: dict[str, np.ndarray],
    mask: np.ndarray,
    spacing: Sequence[float],
    *,
    kept: tuple[int, ...] = MIXED,
) -> np.ndarray:
    """Most probable label: prior of the label, reweighted by posterior over prior of its tissue (int16).

    Cortex and deep grey matter share one weight: their intensities overlap, so the prior decides between them. Labels
    of `kept` keep their prior. The scores are smoothed by `SMOOTH_MM`, so that noise makes no islands.
    """
    sigma = [SMOOTH_MM / s if s < 2 * SMOOTH_MM else 0.0 for s in spacing]
    kinds = [_CLASS_OF.get(e.tissue) if e.brain else None for e in ATLAS_LABELS.values()]
    best = np.full(mask.shape, -1.0, np.float32)
    out = np.zeros(mask.shape, np.int16)
    rest = 1 - prior[..., np.isin(_INDICES, kept)].sum(axis=-1)
    for names in (("CSF",), ("GM", "DGM"), ("WM",)):
        members = [k for k, c in enumerate(kinds) if c in names]
        total = np.maximum(prior[..., members].sum(-1), 1e-3)
        weight = rest * sum(posterior[name] for name in names) / total
        for k in members:
            own = prior[..., k] if _INDICES[k] in kept else prior[..., k] * weight
            score = ndimage.gaussian_filter(own, sigma, truncate=3)
            better = mask & (score > best)
            best[better] = score[better]
            out[better] = _INDICES[k]
    return out


def upsample_labels(labels: np.ndarray, grid: Nifti1Image, target: Nifti1Image, *, smooth: float = 0.0) -> np.ndarray:
    """Labels on a finer grid: each label's indicator is interpolated linearly, the largest wins (ties: lowest index).

    Parameters
    ----------
    labels : ndarray of int
        On `grid`.
    grid, target : Nifti1Image
        In the same space.
    smooth : float
        Standard deviation, in voxels of `grid`, of a Gaussian that takes the steps of these voxels off the borders; it
        acts along axes whose voxels become smaller (much smaller ones: whole, voxels of the same size: not at all).
    """
    if grid.shape[:3] == target.shape[:3] and np.allclose(grid.affine, target.affine):
        return labels.copy()
    matrix = np.linalg.inv(grid.affine) @ target.affine
    steps = np.linalg.norm(np.linalg.inv(matrix[:3, :3]), axis=0)  # target voxels in one of the grid, along its axes
    sigma = smooth * np.sqrt(np.maximum(0, 1 - 1 / np.maximum(steps, 1) ** 2))
    margin = [int(np.ceil(3 * s)) + 1 for s in sigma]

    def indicator(part: np.ndarray, index: int) -> np.ndarray:
        own = (part == index).astype(np.float32)
        return ndimage.gaussian_filter(own, sigma, truncate=3, mode="nearest") if sigma.any() else own

    best = affine_sample(indicator(labels, 0), matrix, target.shape[:3], order=1)
    out = np.zeros(target.shape[:3], labels.dtype)
    for index, found in enumerate(ndimage.find_objects(labels), start=1):
        if found is None:
            continue
        source = tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(found, margin, strict=True))
        box = _reached(source, matrix, target.shape[:3])
        corner = np.eye(4)
        corner[:3, 3] = [b.start for b in box]
        there = matrix @ corner
        there[:3, 3] -= [s.start for s in source]
        shape = tuple(b.stop - b.start for b in box)
        score = affine_sample(indicator(labels[source], index), there, shape, order=1)
        better = score > best[box]
        best[box] = np.where(better, score, best[box])
        out[box] = np.where(better, index, out[box])
    return out


def _reached(box: tuple[slice, ...], matrix: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of a target grid that a box of source voxels reaches; `matrix` leads to the source."""
    ends = np.array([(b.start - 1.0, b.stop) for b in box])
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    back = np.linalg.inv(matrix)
    there = back[:3, :3] @ corners + back[:3, 3:]
    low, high = np.floor(there.min(axis=1)).astype(int), np.ceil(there.max(axis=1)).astype(int) + 1
    return tuple(slice(max(0, int(a)), min(n, max(0, int(b)))) for a, b, n in zip(low, high, shape, strict=True))


def kept_solid(labels: np.ndarray, prior: np.ndarray, mask: np.ndarray, sure: float) -> np.ndarray:
    """Labels that are white matter or a nucleus wherever the priors of these add up to at least `sure`.

    The most probable of them is taken. EPVS are as bright as fluid: without this the brightest lie in no region.
    """
    columns = np.isin(_INDICES, SOLID)
    other = mask & ~np.isin(labels, SOLID)
    solid = prior[other][:, columns]
    lost = solid.sum(axis=-1) >= sure
    out = labels.copy()
    out[other] = np.where(lost, _INDICES[columns][np.argmax(solid, axis=-1)], labels[other])
    return out


def without_lakes(labels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Labels without fluid and cortex in the midst of white matter and nuclei: these are large EPVS or lesions.

    A piece of cortex (26 neighbours) of at most `LAKE_MM3`, or of fluid in an axial plane (8 neighbours, as EPVS of the
    basal ganglia open into the cistern below) of at most `LAKE_MM2`, whose surroundings in its planes are white matter
    or nuclei to `ENCLOSED` takes the nearest of those labels, so that EPVS in it are looked for and counted.

    Parameters
    ----------
    labels : ndarray of int16
        (X, Y, Z).
    spacing : sequence of float
        mm.
    """
    out = labels.copy()
    solid = np.isin(labels, SOLID)
    plane = np.zeros((3, 3, 3), bool)
    plane[:, :, 1] = True
    for index in LAKES:
        fluid = index == FLUID
        most = LAKE_MM2 / (spacing[0] * spacing[1]) if fluid else LAKE_MM3 / float(np.prod(spacing))
        pieces, _ = ndimage.label(labels == index, plane if fluid else np.ones((3, 3, 3)))
        for number, found in enumerate(ndimage.find_objects(pieces), start=1):
            box = tuple(slice(max(0, b.start - 2), b.stop + 2) for b in found)
            piece = pieces[box] == number
            if piece.sum() > most:
                continue
            ring = ndimage.binary_dilation(piece, plane) & ~piece
            if not ring.any() or solid[box][ring].mean() < ENCLOSED:
                continue
            out[box][piece] = _nearest(labels[box], solid[box], spacing)[piece]
    return out


def _nearest(labels: np.ndarray, wanted: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The label of the nearest voxel of a mask, at each voxel."""
    where = ndimage.distance_transform_edt(~wanted, sampling=spacing, return_distances=False, return_indices=True)
    return labels[tuple(where)]


def without_strays(labels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Labels without small pieces of `COMPACT` structures away from the rest; the nearest other label takes them.

    Parameters
    ----------
    labels : ndarray of int16
        (X, Y, Z).
    spacing : sequence of float
        mm.
    """
    out = labels.copy()
    for index in COMPACT:
        pieces, n = ndimage.label(labels == index, np.ones((3, 3, 3)))
        if n < 2:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        boxes = ndimage.find_objects(pieces)
        for number in np.flatnonzero(sizes < STRAY * sizes.max()):
            box = tuple(slice(max(0, b.start - 2), b.stop + 2) for b in boxes[number])
            own = labels[box] == index
            if own.all():
                continue
            piece = pieces[box] == number + 1
            out[box][piece] = _nearest(labels[box], ~own, spacing)[piece]
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
    where = atlas_voxels(alignment, grid)
    skull = inside_skull(where)
    prior = priors(where, skull > 0.01)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    if alignment.stripped:
        inside = np.asarray(coarse[0].dataobj)
        foreground = inside > 0.12 * np.percentile(inside[skull > 0.5], 98)
        mask = brain_mask(ndimage.binary_closing(foreground, iterations=2) & (skull > 0.01), spacing)
    else:
        mask = brain_mask(skull, spacing)
    labels = label_map(prior, tissue_posteriors(coarse, mask, prior), mask, spacing)
    return _finished(full, grid, labels, prior, mask, mask.astype(np.float32))


def _finished(
    full: Nifti1Image,
    grid: Nifti1Image,
    labels: np.ndarray,
    prior: np.ndarray,
    mask: np.ndarray,
    inside: np.ndarray,
    *,
    sure: float = np.inf,
) -> Anatomy:
    """Labels on the work grid without lakes and strays, brought to the full grid.

    Parameters
    ----------
    full, grid : Nifti1Image
        The result's grid and the work grid.
    labels : ndarray
        (X, Y, Z) there.
    prior : ndarray
        (X, Y, Z, labels) there.
    mask : ndarray of bool
        Brain and fluid there.
    inside : ndarray of float32
        Above one half where `mask` is; its half-way surface becomes the border of the brain.
    sure : float
        Where the priors of `SOLID` add up to this, intensities cannot make fluid or cortex of it.
    """
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    labels = without_strays(without_lakes(kept_solid(labels, prior, mask, sure), spacing), spacing)
    smooth = nib.Nifti1Image(inside, grid.affine)
    brain = np.asarray(resample(smooth, full, antialias=False).dataobj) > 0.5
    fine = upsample_labels(labels, grid, full, smooth=STEPS)
    return Anatomy(np.where(brain, fine, 0).astype(np.int16), brain)


def tissues(parcels: Parcels) -> Nifti1Image:
    """Probability of each of `atlas.TISSUES`, template space, float32 (X, Y, Z, tissues)."""
    sums = atlas.tissue_sums(np.asarray(parcels.probability.dataobj), parcels.labels)
    return nib.Nifti1Image(sums, parcels.probability.affine)


def structure_look(parcels: Parcels) -> Nifti1Image:
    """Structures of a scan, drawn with the intensities of ``structures`` in `atlas.CONTRASTS`, in template pose."""
    data = np.asarray(parcels.probability.dataobj)
    out = np.zeros(data.shape[:3], np.float32)
    for k, index in enumerate(parcels.labels):
        out += data[..., k] * np.float32(atlas.CONTRASTS["structures"][ATLAS_LABELS[index].tissue])
    return nib.Nifti1Image(out, parcels.probability.affine)


def skull(warp: Transform, frame: Nifti1Image) -> Nifti1Image:
    """How far a place counts as head: 0 where the deformed atlas has no brain (orbits, neck), 1 from `OUTSIDE` on.

    Parameters
    ----------
    warp : Transform
        From `register.structures_onto_atlas`.
    frame : Nifti1Image
        Grid in template pose.
    """
    from bids_epvs.prepare import ants

    inside = np.asarray(ants.apply(atlas.brain(), frame, warp).dataobj)
    return nib.Nifti1Image(np.clip(inside / np.float32(OUTSIDE), 0, 1), frame.affine)


def placed(parcels: Parcels, to_template: np.ndarray, grid: Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of structures on a grid of the scan, interpolated all together (trilinear).

    Parameters
    ----------
    parcels : Parcels
    to_template : ndarray
        4 x 4, millimetres of the scan to those of `parcels`.
    grid : Nifti1Image

    Returns
    -------
    prior : ndarray of float32
        (X, Y, Z, ATLAS_LABELS).
    inside : ndarray of float32
        Probability of any structure, (X, Y, Z).
    """
    prior = np.zeros((*grid.shape[:3], len(ATLAS_LABELS)), np.float32)
    first = np.linalg.inv(parcels.probability.affine) @ to_template @ grid.affine
    total = np.asarray(parcels.probability.dataobj).sum(axis=-1)
    inside = affine_sample(total, first, grid.shape[:3], order=1)
    wanted = np.argwhere(inside > 0.01)
    columns = [list(ATLAS_LABELS).index(index) for index in parcels.labels]
    for part in filter(None, (parcels.probability, parcels.fine)):
        data = np.asarray(part.dataobj)
        matrix = np.linalg.inv(part.affine) @ to_template @ grid.affine
        points = wanted @ matrix[:3, :3].T + matrix[:3, 3]
        held = ((points >= 0) & (points <= np.array(data.shape[:3]) - 1)).all(axis=1)
        i, j, k = wanted[held].T
        found = _gathered(data, points[held])
        prior[i[:, None], j[:, None], k[:, None], columns] = found
        inside[i, j, k] = found.sum(axis=1)
    return prior, inside


Outline = Callable[[Sequence[Nifti1Image], np.ndarray], "np.ndarray | None"]
"""A network that knows the grid of the scan: images and `placed` probabilities there, to better ones, or to None where
it has nothing to say."""


def covering(images: Sequence[Nifti1Image], prior: np.ndarray) -> list[Nifti1Image]:
    """The first image, and those of the others that reach as far: what is 0 beyond their border would mislead.

    Parameters
    ----------
    images : sequence of Nifti1Image
        On one grid.
    prior : ndarray
        (X, Y, Z, ATLAS_LABELS) on it. Solid tissue counts; fluid can be 0 in a whole T1w.
    """
    if len(images) == 1:
        return [*images]
    inside = prior[..., np.isin(_INDICES, SOLID)].sum(axis=-1) > SURE
    inside &= np.asarray(images[0].dataobj) > 0
    least = COVERED * np.count_nonzero(inside)
    return [images[0], *(i for i in images[1:] if np.count_nonzero(np.asarray(i.dataobj)[inside] > 0) >= least)]


def from_parcels(
    images: Sequence[Nifti1Image],
    parcels: Parcels,
    to_template: np.ndarray,
    *,
    outline: Outline | None = None,
    within: Callable[[], Nifti1Image] | None = None,
) -> Anatomy:
    """Labels and brain mask from probabilities on a coarse grid, sharpened by the intensities of the scan.

    Parameters
    ----------
    images : sequence of Nifti1Image
        T2w first, then T1w where present; one grid, canonical frame, bias-corrected; see `covering`.
    parcels : Parcels
    to_template : ndarray
        4 x 4, millimetres of the scan to those of `parcels`.
    outline : callable, optional
        A network that sharpens; where it says nothing expectation maximisation does.
    within : callable, optional
        `skull`, which all probabilities are multiplied with. It is asked for as late as possible, so that it can be
        computed meanwhile.
    """
    whole = images[0].shape[:3]
    box = _around(parcels, to_template, images[0])
    near = [image.slicer[box] for image in images]
    full, grid = near[0], work_grid(near[0])
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    prior, inside = placed(parcels, to_template, grid)
    coarse = covering([resample(image, grid) for image in near], prior)
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
        labels = label_map(prior, tissue_posteriors(coarse, mask, prior), mask, spacing, kept=KEPT)
    else:
        labels = np.where(mask, _INDICES[np.argmax(better, axis=-1)], 0)
    labels = deep.sharpened(labels, found, [np.asarray(image.dataobj) for image in coarse], spacing)
    made = _finished(full, grid, labels, found, mask, border, sure=SURE)
    out = Anatomy(np.zeros(whole, made.labels.dtype), np.zeros(whole, bool))
    out.labels[box], out.brain[box] = made.labels, made.brain
    return out


def _around(parcels: Parcels, to_template: np.ndarray, image: Nifti1Image) -> tuple[slice, ...]:
    """The part of a scan that holds the head's structures, and `AIR_MM` more; all of it where there are none."""
    somewhere = np.argwhere(np.asarray(parcels.probability.dataobj).sum(axis=-1) > 0.01)
    matrix = np.linalg.inv(to_template @ image.affine) @ parcels.probability.affine
    points = somewhere @ matrix[:3, :3].T + matrix[:3, 3]
    sizes = np.array(image.shape[:3])
    if not ((points > -1) & (points < sizes)).all(axis=1).any():
        return tuple(slice(0, n) for n in sizes)
    margin = AIR_MM / np.linalg.norm(image.affine[:3, :3], axis=0)
    low = np.clip(np.floor(points.min(axis=0) - margin), 0, sizes - 1).astype(int)
    high = np.clip(np.ceil(points.max(axis=0) + margin) + 1, low + 1, sizes).astype(int)
    return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))


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
