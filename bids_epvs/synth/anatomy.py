"""Heads to simulate: label maps of real people or the packaged atlas, drawn finely, deformed at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.prepare import atlas
from bids_epvs.prepare.fields import coarse_field, linear_weights, smooth_field, turned
from bids_epvs.prepare.labels import ATLAS_LABELS, INDICES
from bids_epvs.prepare.regions import simplify
from bids_epvs.prepare.resample import bounding_box, iso_grid, resample
from bids_epvs.prepare.tidy import upsample_labels

NEEDED = (2, 41, 3, 42, 4, 43, 11, 50, 12, 51, 13, 52, 10, 49, 16)
"""Labels without which a map is no head: white matter, cortex, ventricles, nuclei, brainstem."""

WMH_LEFT, WMH_RIGHT, LACUNE, LACUNE_RIM, FLOW_VOID = 25, 57, 601, 602, 603
"""Labels that only simulation uses; `plain` turns lesions of white matter into white matter."""
ADDED = (WMH_LEFT, WMH_RIGHT, LACUNE, LACUNE_RIM, FLOW_VOID)
SOFT_TISSUE = 507
FINE_MM = 0.5


@dataclass(frozen=True)
class Anatomy:
    """A head as labels.

    Attributes
    ----------
    labels : ndarray of int16
        (X, Y, Z), axes R, A, S; indices of `ATLAS_LABELS` and the labels above, 0 is air.
    affine : ndarray
        4 x 4, voxels to millimetres of the head's own space; no rotation.
    to_template : ndarray
        4 x 4, millimetres of the head to ICBM152 millimetres.
    """

    labels: np.ndarray
    affine: np.ndarray
    to_template: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def plain(labels: np.ndarray) -> np.ndarray:
    """Labels without what simulation adds: lesions become white matter, flow voids fluid; lacunes stay out of it."""
    table = np.arange(int(max(labels.max(), FLOW_VOID)) + 1, dtype=np.int16)
    table[WMH_LEFT], table[WMH_RIGHT], table[FLOW_VOID] = 2, 41, 24
    table[LACUNE] = table[LACUNE_RIM] = 24
    return table[labels]


def taught(labels: np.ndarray) -> np.ndarray:
    """Labels as networks that name structures learn them: flow voids are fluid, lacunes are lesions."""
    out = labels.copy()
    out[out == FLOW_VOID] = 24
    out[np.isin(out, (LACUNE, LACUNE_RIM))] = WMH_LEFT
    return out


def every_second(head: Anatomy) -> Anatomy:
    """The head at twice its voxel size, every second voxel along each axis."""
    affine = head.affine.copy()
    affine[:3, :3] *= 2
    return replace(head, labels=np.ascontiguousarray(head.labels[::2, ::2, ::2]), affine=affine)


def commonest(labels: np.ndarray, block: Sequence[int]) -> np.ndarray:
    """What fills most of each block of voxels, as a scan of larger voxels shows it; where two fill as much, chance.

    A thick slice shows the mean over its thickness, and no fine voxel lies at the centre of an even number of them.

    Parameters
    ----------
    labels : ndarray
        (X, Y, Z) integers.
    block : sequence of int
        Voxels along each side; a last block that is not full is filled with 0.

    Returns
    -------
    ndarray
        Shape of `labels` divided by `block`, rounded up.
    """
    labels = np.pad(labels, [(0, -n % b) for n, b in zip(labels.shape, block, strict=True)])
    x, y, z = block
    parts = [np.ascontiguousarray(labels[i::x, j::y, k::z]) for i, j, k in np.ndindex(x, y, z)]
    rng = np.random.default_rng(0)
    out = np.zeros_like(parts[0])
    most = np.zeros(out.shape, np.float32)
    for value in np.unique(labels):
        count = np.float32(0.5) * rng.random(out.shape, dtype=np.float32)
        for part in parts:
            count += part == value
        out[count > most] = value
        np.maximum(most, count, out=most)
    return out


@cache
def average() -> Anatomy:
    """The packaged atlas as labels at its own 1.5 mm: every voxel its most probable label, or air."""
    source = atlas.probabilities()
    data = np.asarray(source.dataobj)
    air = 255.0 - data.sum(axis=-1, dtype=np.float32)
    best = np.argmax(data, axis=-1)
    certain = np.take_along_axis(data, best[..., None], axis=-1)[..., 0]
    labels = np.where(certain > air, INDICES[best], 0).astype(np.int16)
    inside = ndimage.binary_fill_holes(labels > 0)
    labels = np.where(inside & (labels == 0), SOFT_TISSUE, labels).astype(np.int16)
    return Anatomy(labels, source.affine, np.eye(4))


@cache
def packaged(spacing: float = FINE_MM) -> Anatomy:
    """`average` drawn finely."""
    return refined(average(), spacing)


@lru_cache(maxsize=1)
def from_labelmap(path: Path, spacing: float = FINE_MM) -> Anatomy:
    """A head from a label map with FreeSurfer indices (extra-cerebral tissue 500-530), drawn finely.

    Raises
    ------
    DataError
        Not 3-D, not whole numbers, or without the labels of a head.
    """
    return refined(read_labelmap(path), spacing)


def read_labelmap(path: Path) -> Anatomy:
    """The label map as it is stored, axes turned to R, A, S; see `from_labelmap`."""
    try:
        image = nib.as_closest_canonical(nib.load(path))
        data = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise DataError(f"not readable as an image ({error}).", where=path) from error
    if data.ndim != 3:
        raise DataError(f"expected a 3-D label map, found shape {data.shape}.", where=path)
    if not np.all(data == np.rint(data)):
        raise DataError("expected whole numbers, found fractions: this is no label map.", where=path)
    labels = simplify(data)
    missing = [ATLAS_LABELS[i].name for i in NEEDED if not (labels == i).any()]
    if missing:
        raise DataError(f"labels are missing: {', '.join(missing)}.", where=path, remedy="Use FreeSurfer indices.")
    for index in (WMH_LEFT, WMH_RIGHT):
        labels[data == index] = index
    pieces, _ = ndimage.label(labels > 0)
    labels[pieces != 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))] = 0  # specks in the air
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(labels.shape) - 1) / 2
    return Anatomy(labels, affine, centroid_affine(plain(labels), affine))


def refined(head: Anatomy, spacing: float) -> Anatomy:
    """The head cut to what is not air, at smaller voxels.

    Borders between structures of the brain become smooth (linear interpolation of indicators); everything outside the
    skull keeps the shape of its voxels.
    """
    labels, affine = cut(head.labels, head.affine, head.labels > 0, 2)
    source = nib.Nifti1Image(labels, affine)
    grid = iso_grid(source, spacing)
    out = np.asarray(resample(source, grid, order=0).dataobj).copy()
    known = np.zeros(1024, np.int16)
    brain = [*(i for i, e in ATLAS_LABELS.items() if e.brain), WMH_LEFT, WMH_RIGHT]
    known[brain] = brain
    inner, inner_affine = cut(known[labels], affine, known[labels] > 0, 1)
    inner_source = nib.Nifti1Image(inner, inner_affine)
    shift = np.rint((inner_affine[:3, 3] - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
    first = np.floor(shift * np.diag(affine)[:3] / spacing).astype(int)
    last = np.minimum(np.ceil((shift + inner.shape) * np.diag(affine)[:3] / spacing).astype(int), out.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    part = nib.Nifti1Image(np.broadcast_to(np.uint8(0), tuple(last - first)), _moved(grid.affine, first))
    smooth = upsample_labels(inner, inner_source, part)
    out[box] = np.where(smooth > 0, smooth, out[box])
    return Anatomy(out, grid.affine, head.to_template)


def _moved(affine: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """The affine of the part of a grid that begins at a voxel."""
    out = affine.copy()
    out[:3, 3] += affine[:3, :3] @ voxels
    return out


def cut(labels: np.ndarray, affine: np.ndarray, mask: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of a grid that holds a mask, with a margin, and its affine."""
    box = bounding_box(mask, margin)
    return labels[box], _moved(affine, np.array([b.start for b in box]))


def centroids(labels: np.ndarray, affine: np.ndarray) -> dict[int, np.ndarray]:
    """Centre of mass (mm) of each brain label that is there."""
    wanted = [i for i, e in ATLAS_LABELS.items() if e.brain and i != 24 and (labels == i).any()]
    points = ndimage.center_of_mass(np.ones(labels.shape, np.uint8), labels, wanted)
    return {i: (affine @ np.r_[p, 1.0])[:3] for i, p in zip(wanted, points, strict=True)}


def centroid_affine(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Least-squares affine from a head to the template, from the centres of its structures."""
    reference = average()
    target, own = centroids(reference.labels, reference.affine), centroids(labels, affine)
    shared = [i for i in own if i in target]
    left = np.array([[*own[i], 1.0] for i in shared])
    right = np.array([target[i] for i in shared])
    out = np.eye(4)
    out[:3] = np.linalg.lstsq(left, right, rcond=None)[0].T
    return out


@dataclass(frozen=True)
class Deformation:
    """How a new head is made of another one.

    Attributes
    ----------
    matrix, offset : ndarray
        (3, 3) and (3,): voxels of the new head to those of the old one, before `knots`.
    knots : ndarray
        (3, x, y, z): what is added, mm of the old head, at knots of a smooth field over the same field of view.
    to_old : ndarray
        (3, 3): those millimetres to voxels.
    shape : tuple of int
    affine, to_template : ndarray
        Of the new head.
    """

    matrix: np.ndarray
    offset: np.ndarray
    knots: np.ndarray
    to_old: np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray
    to_template: np.ndarray


def draw_deformation(
    head: Anatomy, corners: np.ndarray, rng: np.random.Generator, *, spacing: float, amount: float, warp_mm: float
) -> Deformation:
    """Of a head of which only grid, pose and `corners` (mm) of what is not air are looked at; see `deformed`."""
    centre = (head.affine @ np.r_[(np.array(head.labels.shape) - 1) / 2, 1.0])[:3]
    linear = upright(head) @ _random_linear(rng, amount)
    corners = (corners - centre) @ np.linalg.inv(linear).T
    low, high = corners.min(axis=0) - 4, corners.max(axis=0) + 4
    shape = tuple(int(n) for n in np.ceil((high - low) / spacing))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = low
    knots = np.maximum(4, np.ceil((high - low) / 40).astype(int) + 1)
    field = rng.normal(0, warp_mm * amount, (3, *knots))
    to_old = np.linalg.inv(head.affine)
    matrix = to_old[:3, :3] @ linear @ np.diag([spacing] * 3)
    offset = to_old[:3, :3] @ (linear @ low + centre) + to_old[:3, 3]
    to_old_mm = np.eye(4)
    to_old_mm[:3, :3], to_old_mm[:3, 3] = linear, centre
    return Deformation(matrix, offset, field, to_old[:3, :3], shape, affine, head.to_template @ to_old_mm)


def deformed(
    head: Anatomy,
    rng: np.random.Generator,
    *,
    spacing: float = FINE_MM,
    amount: float = 1.0,
    warp_mm: float = 2.5,
) -> Anatomy:
    """A new head, upright as slices are planned: random size, shear, rotation and smooth deformation of another.

    Parameters
    ----------
    head : Anatomy
    rng : Generator
    spacing : float
        Voxel size of the result, mm.
    amount : float
        Scales all randomness; 0 resamples only.
    warp_mm : float
        Standard deviation of the displacement of knots 40 mm apart.
    """
    how = draw_deformation(head, _bounds(head), rng, spacing=spacing, amount=amount, warp_mm=warp_mm)
    coarse = np.stack([coarse_field(f, how.shape) for f in how.knots])
    shift = np.tensordot(how.to_old, coarse, axes=1).astype(np.float32)
    return Anatomy(_warped(head.labels, how.matrix, how.offset, shift, how.shape), how.affine, how.to_template)


def upright(head: Anatomy) -> np.ndarray:
    """3 x 3 rotation from the axes of the template to those of the head (nearest to its affine)."""
    u, _, vt = np.linalg.svd(head.to_template[:3, :3])
    return (u @ vt).T


def _warped(
    labels: np.ndarray, matrix: np.ndarray, offset: np.ndarray, shift: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """Nearest labels at ``matrix @ voxel + offset + shift``, slice by slice (all coordinates would take gigabytes)."""
    out = np.zeros(tuple(shape), labels.dtype)
    known = np.ascontiguousarray(labels).reshape(-1)
    spread = [linear_weights(n, m) for n, m in zip(shape, shift.shape[1:], strict=True)]
    linear, first = matrix.astype(np.float32), offset.astype(np.float32)
    j = np.arange(shape[1], dtype=np.float32)[:, None]
    k = np.arange(shape[2], dtype=np.float32)[None, :]
    for i in range(shape[0]):  # the last axis is contiguous: neighbours are read and written together
        here = spread[1] @ np.tensordot(shift, spread[0][i], axes=(1, 0)) @ spread[2].T
        at = np.zeros(tuple(shape[1:]), np.int32)
        inside = np.ones(tuple(shape[1:]), bool)
        for a, n in enumerate(labels.shape):
            value = linear[a, 1] * j + linear[a, 2] * k + (linear[a, 0] * np.float32(i) + first[a]) + here[a]
            nearest = np.rint(value).astype(np.int32)
            inside &= (nearest >= 0) & (nearest < n)
            at = at * n + nearest
        out[i] = np.where(inside, known[np.where(inside, at, 0)], 0)
    return out


_ATROPHY_MM = 3.0
"""How far ventricles grow at most."""


def widened(rng: np.random.Generator, head: Anatomy) -> Anatomy:
    """The head with wider ventricles (by up to `_ATROPHY_MM` of white matter around them) and sulci, as in atrophy."""
    labels = head.labels.copy()
    reach = float(rng.uniform(0, _ATROPHY_MM))
    table = np.zeros(1024, np.uint8)
    table[[4, 43]], table[[2, 25]], table[[41, 57]], table[[3, 42]], table[24] = 1, 2, 3, 4, 5
    kinds = table[labels]
    box = bounding_box(kinds == 1, int(np.ceil(_ATROPHY_MM / head.spacing[0])) + 1)
    near = ndimage.distance_transform_edt(kinds[box] != 1, sampling=head.spacing) <= reach
    part = labels[box]
    part[near & (kinds[box] == 2)] = 4
    part[near & (kinds[box] == 3)] = 43
    share = float(rng.uniform(0, 0.6))
    sulcal = smooth_field(rng.standard_normal(np.array(labels.shape) // 8), labels.shape)
    edge = (kinds == 4) & ndimage.binary_dilation(kinds == 5)
    labels[edge & (sulcal > np.quantile(sulcal[::4, ::4, ::4], 1 - share))] = 24
    return replace(head, labels=labels)


def _bounds(head: Anatomy) -> np.ndarray:
    """Corners (8, 3) of the box around everything but air, mm."""
    return corners_of([(b.start, b.stop) for b in bounding_box(head.labels > 0)], head.affine)


def corners_of(ends: Sequence[tuple[int, int]], affine: np.ndarray) -> np.ndarray:
    """Corners (8, 3) of a box from first to last voxels, mm."""
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1).T
    return corners @ affine[:3, :3].T + affine[:3, 3]


def _random_linear(rng: np.random.Generator, amount: float) -> np.ndarray:
    """New millimetres to old ones: rotation (sd 5 degrees), scale (sd 5 %) and shear (sd 2 %)."""
    angles = np.deg2rad(rng.normal(0, 5, 3) * amount)
    out = np.diag(np.exp(rng.normal(0, 0.05, 3) * amount)) + np.triu(rng.normal(0, 0.02, (3, 3)) * amount, 1)
    return turned(out, angles)


def as_image(data: np.ndarray, head: Anatomy) -> Nifti1Image:
    """An array on the grid of a head."""
    return nib.Nifti1Image(data, head.affine)
