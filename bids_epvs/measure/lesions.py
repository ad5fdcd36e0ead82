"""Instances of EPVS and their shape: pure functions of a mask, the regions and the voxel size.

All work in the canonical frame, so that no number depends on how the file stores its axes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from skimage.morphology import skeletonize

from bids_epvs.prepare.regions import REGIONS

LESION_COLUMNS = [
    *("model", "index", "region", "hemisphere", "x_mm", "y_mm", "z_mm", "i", "j", "k", "volume_mm3", "length_mm"),
    *("width_mean_mm", "width_max_mm", "linearity", "orientation_x", "orientation_y", "orientation_z", "probability"),
]
VISIBLE = 0.3
"""Share of some voxel that an EPVS whose course is known must fill to count as one that can be seen."""
_SUPERSAMPLING = 3


def instances(mask: np.ndarray, voxel_mm3: float, *, minimum: float, maximum: float) -> np.ndarray:
    """Label connected EPVS (26-connectivity) of allowed volume.

    Parameters
    ----------
    mask : ndarray of bool
    voxel_mm3 : float
        Volume of a voxel.
    minimum, maximum : float
        Volumes in mm3, both allowed.

    Returns
    -------
    ndarray of int32
        1 ... n in scan order, 0 background.
    """
    found, n = ndimage.label(mask, np.ones((3, 3, 3)))
    volume = np.bincount(found.ravel(), minlength=n + 1) * voxel_mm3
    keep = (volume >= minimum - 1e-9) & (volume <= maximum + 1e-9)
    keep[0] = False
    return renumbered(found, keep)


def renumbered(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Labels without gaps, 1 ... n in their order, int32; `kept` says of each label, from 0 (False), whether it stays.

    >>> renumbered(np.array([0, 5, 3, 5]), np.array([False, False, False, True, False, True])).tolist()
    [0, 2, 1, 2]
    """
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def present(labels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Instances that lie in a mask, or partly so, `renumbered`.

    >>> present(np.array([1, 1, 2, 3]), np.array([False, True, False, True])).tolist()
    [1, 1, 0, 2]
    """
    there = np.bincount(labels[where], minlength=int(labels.max(initial=0)) + 1) > 0
    there[0] = False
    return renumbered(labels, there)


def majority(values: np.ndarray) -> int:
    """The commonest value above 0; ties go to the lowest, no value gives 0.

    >>> majority(np.array([0, 3, 2, 3, 2]))
    2
    """
    counts = np.bincount(values[values > 0])
    return int(np.argmax(counts)) if counts.size else 0


def skeleton_length(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Longest path along the skeleton plus one voxel's extent along it, in mm.

    Parameters
    ----------
    mask : ndarray of bool
        One instance.
    spacing : tuple of float
        Voxel sizes in mm.
    """
    points = np.argwhere(skeletonize(np.pad(mask, 1)))
    if len(points) == 0:
        points = np.argwhere(mask)[:1]
    millimetres = points * np.asarray(spacing)
    if len(points) == 1:
        return float(_extent(mask, spacing))
    difference = np.abs(points[:, None] - points[None]).max(axis=-1)
    a, b = np.nonzero(np.triu(difference == 1, 1))
    steps = np.linalg.norm(millimetres[a] - millimetres[b], axis=1)
    graph = coo_matrix((steps, (a, b)), shape=(len(points),) * 2)
    reach = dijkstra(graph, directed=False, indices=0)
    start = int(np.argmax(np.where(np.isfinite(reach), reach, -1)))
    path = dijkstra(graph, directed=False, indices=start)
    end = int(np.argmax(np.where(np.isfinite(path), path, -1)))
    direction = millimetres[end] - millimetres[start]
    norm = np.linalg.norm(direction)
    tip = np.abs(direction / norm) @ np.asarray(spacing) if norm > 0 else min(spacing)
    return float(path[end] + tip)


def _extent(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Largest side of the bounding box in mm."""
    points = np.argwhere(mask)
    return float(((np.ptp(points, axis=0) + 1) * np.asarray(spacing)).max())


def widest(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Diameter of the largest inscribed ball in mm, from a distance transform at a third of the voxel."""
    fine = np.pad(mask, 1)
    for axis in range(3):
        fine = np.repeat(fine, _SUPERSAMPLING, axis=axis)
    step = np.asarray(spacing) / _SUPERSAMPLING
    return float(2 * ndimage.distance_transform_edt(fine, sampling=step).max() - step.min() / 2)


def principal_axis(points_mm: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, float]:
    """Unit vector of largest spread and linearity (l1 - l2) / l1 in 0-1; voxels count with their extent."""
    covariance = np.diag(np.square(spacing) / 12.0)
    if len(points_mm) > 1:
        covariance = covariance + np.cov(points_mm.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    axis = vectors[:, 2]
    sign = next((np.sign(v) for v in axis[::-1] if abs(v) > 1e-6), 1.0)
    return axis * sign, float((values[2] - values[1]) / values[2])


def describe(
    labels: np.ndarray,
    regions: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    to_world: np.ndarray,
    to_native_voxel: np.ndarray,
    probability: np.ndarray | None = None,
    model: str = "",
) -> pd.DataFrame:
    """A row per instance.

    Parameters
    ----------
    labels : ndarray of int32
        Instances, 0 background.
    regions : ndarray of uint8
        Indices of `REGIONS`.
    spacing : tuple of float
        Voxel sizes in mm.
    to_world : ndarray
        4 x 4, canonical voxels to scanner millimetres (RAS).
    to_native_voxel : ndarray
        4 x 4, canonical voxels to voxels of the file.
    probability : ndarray, optional
        Averaged over each instance.

    Returns
    -------
    DataFrame
        Columns `LESION_COLUMNS`; mean width is that of the cylinder of the same volume and length.
    """
    rows = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        one = labels[box] == index
        voxels = np.argwhere(one) + [b.start for b in box]
        region = REGIONS.get(majority(regions[box][one]))
        volume = len(voxels) * float(np.prod(spacing))
        length = skeleton_length(one, spacing)
        axis, linearity = principal_axis(voxels * np.asarray(spacing), spacing)
        centre = np.r_[voxels.mean(axis=0), 1.0]
        world, native = (to_world @ centre)[:3], (to_native_voxel @ centre)[:3]
        rotated = to_world[:3, :3] @ (axis / np.asarray(spacing))
        width = 2 * float(np.sqrt(volume / (np.pi * length)))
        rows.append(
            [
                *(model, index, region.name if region else "n/a", region.side.lower() if region else "n/a"),
                *world.round(3),
                *native.round(3),
                *(round(volume, 4), round(length, 3), round(width, 3), round(widest(one, spacing), 3)),
                round(linearity, 4),
                *(rotated / np.linalg.norm(rotated)).round(4),
                np.nan if probability is None else round(float(probability[box][one].mean()), 4),
            ]
        )
    return pd.DataFrame(rows, columns=LESION_COLUMNS)
