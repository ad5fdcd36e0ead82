"""Label maps by fixed rules: pieces that cannot be what they are called, and borders on a finer grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.prepare import planes
from bids_epvs.prepare.intensity import levels
from bids_epvs.prepare.labels import INDICES
from bids_epvs.prepare.regions import grown_in_slices, opened_in_slices
from bids_epvs.prepare.resample import affine_sample

FLUID = 24
LAKES, SOLID = (FLUID, 3, 42), (2, 41, 10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 28, 60)
"""Labels of pieces that may be an EPVS or a lesion; labels they may lie in."""
COMPACT, STRAY = (10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 17, 53, 18, 54), 0.1
"""Structures in one piece; share of the largest piece below which another one is no part of it."""
LAKE_MM3, LAKE_MM2, ENCLOSED = 500.0, 40.0, 0.6
DROP_MM2, DROP_MM3, BESIDE = 12.0, 100.0, 0.15
"""Area in the plane of the slices and volume of a drop of fluid that may be an EPVS even where much of its surroundings
is cortex, and the share of these, within two voxels, that is white matter or basal ganglia at least: between the walls
of a sulcus it is less, and the tip of a sulcus is part of a large piece. In ten simulated clinical scans 69 of 92 such
drops held an EPVS, in five scans of heads 12 and 17 5 of 21; of pieces of larger volume 13 of 45 and 2 of 398 (a script
that is not in the project)."""
BAY_MM = 2.5
"""Half the width of a bay of fluid or cortex in white matter or basal ganglia that is too narrow for a sulcus."""
BRIGHT, NEAR_MM = 0.25, 1.5
"""From white matter (0) to fluid (1): intensity above which a bay holds an EPVS; how far its rim reaches from there."""
BANKS = tuple(index for index in SOLID if index not in (10, 49, 28, 60))
"""Labels around such drops and bays: cisterns between the thalamus and the ventral diencephalon are as narrow."""


def kept_solid(labels: np.ndarray, prior: np.ndarray, mask: np.ndarray, sure: float) -> np.ndarray:
    """Labels that are white matter or a nucleus wherever the priors of these add up to at least `sure`.

    The most probable of them is taken. EPVS are as bright as fluid: without this the brightest lie in no region.
    """
    columns = np.isin(INDICES, SOLID)
    other = mask & ~np.isin(labels, SOLID)
    solid = prior[other][:, columns]
    lost = solid.sum(axis=-1) >= sure
    out = labels.copy()
    out[other] = np.where(lost, INDICES[columns][np.argmax(solid, axis=-1)], labels[other])
    return out


@planes.along_slices
def without_lakes(labels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Labels without fluid and cortex in the midst of white matter and nuclei: these are large EPVS or lesions.

    A piece of cortex (26 neighbours) of at most `LAKE_MM3`, or of fluid with the cortex at its rim in the plane of the
    slices (8 neighbours, as EPVS of the basal ganglia open into the cistern below) of at most `LAKE_MM2`, whose
    surroundings in these planes are white matter or nuclei to `ENCLOSED` takes the nearest of those labels, so that
    EPVS in it are looked for and counted. So does a drop of fluid beside white matter or basal ganglia (`DROP_MM2`),
    with the cortex at its rim: an EPVS that touches the cortex.

    Parameters
    ----------
    labels : ndarray of int16
        (X, Y, Z).
    spacing : sequence of float
        mm.
    """
    out = labels.copy()
    solid, banks = np.isin(labels, SOLID), np.isin(labels, BANKS)
    plane = np.zeros((3, 3, 3), bool)
    plane[:, :, 1] = True
    fluid = labels == FLUID
    wholes, _ = ndimage.label(fluid | (labels == 0), np.ones((3, 3, 3)))
    small = (np.bincount(wholes.ravel()) <= DROP_MM3 / float(np.prod(spacing)))[wholes]
    for kind in ((FLUID,), (3,), (42,), LAKES):
        flat = FLUID in kind
        most = LAKE_MM2 / (spacing[0] * spacing[1]) if flat else LAKE_MM3 / float(np.prod(spacing))
        pieces, _ = ndimage.label(np.isin(labels, kind), plane if flat else np.ones((3, 3, 3)))
        for number, found in enumerate(ndimage.find_objects(pieces), start=1):
            box = _grown(found, (2, 2, 2))
            piece = pieces[box] == number
            if piece.sum() > most or (flat and not fluid[box][piece].any()):
                continue
            ring = ndimage.binary_dilation(piece, plane) & ~piece
            if ring.any() and solid[box][ring].mean() >= ENCLOSED:
                out[box][piece] = _nearest(labels[box], solid[box], spacing)[piece]
            elif kind == (FLUID,) and small[box][piece].all() and piece.sum() * spacing[0] * spacing[1] <= DROP_MM2:
                near = ndimage.binary_dilation(piece, plane, iterations=2) & ~piece
                if near.any() and banks[box][near].mean() >= BESIDE:
                    drop = piece | (ring & np.isin(labels[box], LAKES))
                    out[box][drop] = _nearest(labels[box], banks[box], spacing)[drop]
    return out


@planes.along_slices
def without_bays(labels: np.ndarray, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Labels without bright spots in narrow bays and gaps of white matter and basal ganglia: EPVS near the cortex.

    They are brighter than white matter and run together with the cortex beside them, and lay in no region, where they
    are not looked for. What a disc of `BAY_MM` in the plane of the slices cannot reach takes the nearest of `BANKS`
    where it is `BRIGHT`, and `NEAR_MM` around; between two walls of a sulcus, or across a fold of cortex, there is more
    room.

    Parameters
    ----------
    labels : ndarray of int16
        (X, Y, Z).
    image : ndarray
        T2w; where fluid is dark (T1w, FLAIR), EPVS look like cortex, and nothing is changed.
    spacing : sequence of float
        mm.
    """
    white, fluid = np.isin(labels, (2, 41)), np.isin(labels, (4, 43))
    fluid = fluid if fluid.any() else labels == FLUID
    if not white.any() or not fluid.any():
        return labels.copy()
    level = levels(image, white, fluid)
    if np.median(image[fluid]) <= level.white:
        return labels.copy()
    banks = np.isin(labels, BANKS)
    narrow = ~opened_in_slices(~banks, tuple(spacing), BAY_MM) & np.isin(labels, LAKES)
    seeds = narrow & (image > level.white + BRIGHT * (level.fluid - level.white))
    if not seeds.any():
        return labels.copy()
    spots = narrow & grown_in_slices(seeds, tuple(spacing), NEAR_MM)
    return np.where(spots, _nearest(labels, banks, spacing), labels)


def _grown(box: tuple[slice, ...], margin: Sequence[int]) -> tuple[slice, ...]:
    """A box with so many voxels more at both ends of each axis, as far as there are any."""
    return tuple(slice(max(0, b.start - m), b.stop + m) for b, m in zip(box, margin, strict=True))


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
            box = _grown(boxes[number], (2, 2, 2))
            own = labels[box] == index
            if own.all():
                continue
            piece = pieces[box] == number + 1
            out[box][piece] = _nearest(labels[box], ~own, spacing)[piece]
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
        source = _grown(found, margin)
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
