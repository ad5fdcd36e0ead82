"""Heads to simulate: label maps of real people or the packaged atlas, deformed at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.prepare import atlas
from bids_epvs.prepare.brain import upsample_labels
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.regions import simplify
from bids_epvs.prepare.resample import affine_sample, iso_grid

NEEDED = (2, 41, 3, 42, 4, 43, 11, 50, 12, 51, 13, 52, 10, 49, 16)
"""Labels without which a map is no head: white matter, cortex, ventricles, nuclei, brainstem."""


@dataclass(frozen=True)
class Anatomy:
    """A head as labels.

    Attributes
    ----------
    labels : ndarray of int16
        (X, Y, Z), axes R, A, S; indices of `ATLAS_LABELS`, 0 is air.
    affine : ndarray
        4 x 4, voxels to millimetres of the head's own space.
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


@cache
def average() -> Anatomy:
    """The packaged atlas as labels at its own 1.5 mm: every voxel its most probable label, or air."""
    source = atlas.probabilities()
    data = np.asarray(source.dataobj)
    air = 255.0 - data.sum(axis=-1, dtype=np.float32)
    best = np.argmax(data, axis=-1)
    certain = np.take_along_axis(data, best[..., None], axis=-1)[..., 0]
    labels = np.where(certain > air, np.array(list(ATLAS_LABELS), np.int16)[best], 0).astype(np.int16)
    return Anatomy(_filled(labels), source.affine, np.eye(4))


@cache
def packaged() -> Anatomy:
    """`average` at 1 mm with smooth borders."""
    coarse = as_image(average().labels, average())
    grid = iso_grid(coarse, 1.0)
    return Anatomy(upsample_labels(average().labels, coarse, grid), grid.affine, np.eye(4))


def _filled(labels: np.ndarray) -> np.ndarray:
    """Air inside the head becomes soft tissue (where no label has the majority)."""
    inside = ndimage.binary_fill_holes(labels > 0)
    return np.where(inside & (labels == 0), 507, labels).astype(np.int16)


def from_labelmap(path: Path) -> Anatomy:
    """A head from a label map with FreeSurfer indices (extra-cerebral tissue 500-530).

    Raises
    ------
    DataError
        Not 3-D, not whole numbers, or without the labels of a head.
    """
    image = nib.as_closest_canonical(nib.load(path))
    data = np.asarray(image.dataobj)
    if data.ndim != 3:
        raise DataError(f"expected a 3-D label map, found shape {data.shape}.", where=path)
    if not np.all(data == np.rint(data)):
        raise DataError("expected whole numbers, found fractions: this is no label map.", where=path)
    labels = simplify(data)
    missing = [ATLAS_LABELS[i].name for i in NEEDED if not (labels == i).any()]
    if missing:
        raise DataError(f"labels are missing: {', '.join(missing)}.", where=path, remedy="Use FreeSurfer indices.")
    return Anatomy(labels, image.affine, centroid_affine(labels, image.affine))


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


def deformed(
    head: Anatomy, rng: np.random.Generator, *, spacing: float = 0.8, amount: float = 1.0, warp_mm: float = 2.5
) -> Anatomy:
    """A new head: random size, shear, rotation and smooth deformation of another.

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
    centre = (head.affine @ np.r_[(np.array(head.labels.shape) - 1) / 2, 1.0])[:3]
    linear = _random_linear(rng, amount)
    box = _bounds(head)
    corners = (box - centre) @ np.linalg.inv(linear).T
    low, high = corners.min(axis=0) - 4, corners.max(axis=0) + 4
    shape = np.ceil((high - low) / spacing).astype(int)
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = low
    knots = np.maximum(4, np.ceil((high - low) / 40).astype(int) + 1)
    shift = np.stack([smooth_field(rng.normal(0, warp_mm * amount, knots), shape) for _ in range(3)])
    to_old = np.linalg.inv(head.affine)
    matrix = to_old[:3, :3] @ linear
    offset = to_old[:3, :3] @ (linear @ low + centre) + to_old[:3, 3]
    labels = np.zeros(shape, np.int16)
    x, y = np.meshgrid(np.arange(shape[0]) * spacing, np.arange(shape[1]) * spacing, indexing="ij")
    for k in range(shape[2]):  # slice by slice: all coordinates at once would take a gigabyte
        here = np.stack([x, y, np.full_like(x, k * spacing)])
        voxel = np.einsum("ij,jxy->ixy", matrix, here) + np.einsum("ij,jxy->ixy", to_old[:3, :3], shift[..., k])
        voxel += offset[:, None, None]
        labels[:, :, k] = ndimage.map_coordinates(head.labels, voxel, order=0, mode="constant")
    to_old_mm = np.eye(4)
    to_old_mm[:3, :3], to_old_mm[:3, 3] = linear, centre
    return Anatomy(labels, affine, head.to_template @ to_old_mm)


def smooth_field(knots: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Values at knots spread over a grid: cubic to an eighth of it, then linear (float32)."""
    middle = np.maximum(4, np.asarray(shape) // 8)
    coarse = ndimage.zoom(knots, middle / knots.shape, order=3, mode="nearest", grid_mode=True).astype(np.float32)
    scale = np.array(coarse.shape) / np.asarray(shape)
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = (scale - 1) / 2
    padded = np.pad(coarse, 1, mode="edge")
    matrix[:3, 3] += 1
    return affine_sample(padded, matrix, tuple(int(n) for n in shape), order=1)


def _bounds(head: Anatomy) -> np.ndarray:
    """Corners (8, 3) of the box around everything but air, mm."""
    box = ndimage.find_objects((head.labels > 0).astype(np.uint8))[0]
    ends = [(b.start, b.stop) for b in box]
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1).T
    return corners @ head.affine[:3, :3].T + head.affine[:3, 3]


def _random_linear(rng: np.random.Generator, amount: float) -> np.ndarray:
    """New millimetres to old ones: rotation (sd 5 degrees), scale (sd 5 %) and shear (sd 2 %)."""
    angles = np.deg2rad(rng.normal(0, 5, 3) * amount)
    out = np.diag(np.exp(rng.normal(0, 0.05, 3) * amount)) + np.triu(rng.normal(0, 0.02, (3, 3)) * amount, 1)
    for axis, angle in enumerate(angles):
        a, b = [(1, 2), (0, 2), (0, 1)][axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        out = step @ out
    return out


def as_image(data: np.ndarray, head: Anatomy) -> Nifti1Image:
    """An array on the grid of a head."""
    return nib.Nifti1Image(data, head.affine)
