"""Grids and resampling with world geometry kept; every function returns a new image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage


def bounding_box(mask: np.ndarray, margin: int | Sequence[int] = 0) -> tuple[slice, slice, slice]:
    """Box around a 3-D mask, a margin in voxels (one or three) added, cut to the array; an empty mask gives it all."""
    flat = np.asarray(mask.any(axis=0))
    found = [np.flatnonzero(side) for side in (mask.any(axis=(1, 2)), flat.any(axis=1), flat.any(axis=0))]
    sides = [(int(f[0]), int(f[-1]) + 1) if f.size else (0, n) for f, n in zip(found, mask.shape, strict=True)]
    pads = (margin,) * 3 if isinstance(margin, int) else margin
    x, y, z = (slice(max(0, a - p), min(n, b + p)) for (a, b), p, n in zip(sides, pads, mask.shape, strict=True))
    return x, y, z


def face_areas(mask: np.ndarray, spacing: Sequence[float], *, depth: int = 0) -> np.ndarray:
    """Area (mm2) of a mask in the faces of its volume, (3, 2): of each axis the first and the last.

    Parameters
    ----------
    mask : ndarray of bool
        (X, Y, Z).
    spacing : sequence of float
        mm.
    depth : int
        Voxels by which the faces lie within those of the volume.
    """
    voxels = np.array([[np.count_nonzero(mask.take(k, axis)) for k in (depth, -1 - depth)] for axis in range(3)])
    return voxels * (np.prod(spacing) / np.asarray(spacing))[:, None]


def coarse_grid(image: Nifti1Image, spacing: tuple[float, float, float]) -> Nifti1Image:
    """An empty grid with the axes and field of view of `image` and other voxel sizes (mm)."""
    old = voxel_sizes(image.affine)
    step = np.asarray(spacing, float) / old
    shape = np.maximum(1, np.ceil(np.asarray(image.shape[:3]) / step - 1e-6)).astype(int)
    affine = image.affine.copy()
    affine[:3, :3] = image.affine[:3, :3] * step
    affine[:3, 3] = (image.affine @ np.r_[(step - 1) / 2, 1.0])[:3]
    return nib.Nifti1Image(np.zeros(shape, np.uint8), affine)


def iso_grid(image: Nifti1Image, spacing: float) -> Nifti1Image:
    """`coarse_grid` with one voxel size in mm."""
    return coarse_grid(image, (spacing,) * 3)


def mapping(source: Nifti1Image, grid: Nifti1Image) -> np.ndarray:
    """4 x 4 matrix from voxels of `grid` to voxels of `source`."""
    return np.linalg.inv(source.affine) @ grid.affine


def resample(source: Nifti1Image, grid: Nifti1Image, *, order: int = 1, antialias: bool = True) -> Nifti1Image:
    """Resample a 3-D image onto a grid in the same world space.

    Parameters
    ----------
    source : Nifti1Image
        3-D, any orientation.
    grid : Nifti1Image
        Defines shape and affine of the result.
    order : int
        Spline order; 0 keeps labels.
    antialias : bool
        Smooth along axes that lose resolution (Gaussian with the missing full width at half maximum), not for order 0.

    Returns
    -------
    Nifti1Image
        float32, or the data type of `source` for order 0; 0 outside the field of view.
    """
    data = np.asanyarray(source.dataobj)
    data = data.astype(np.float32, copy=False) if order else data
    matrix = mapping(source, grid)
    if order and antialias:
        steps = np.abs(matrix[:3, :3]).max(axis=1)
        sigma = np.sqrt(np.maximum(steps**2 - 1, 0)) / 2.355
        if sigma.max() > 0:
            data = ndimage.gaussian_filter(data, sigma, mode="nearest", truncate=3)
    out = affine_sample(data, matrix, grid.shape[:3], order=order)
    return nib.Nifti1Image(out, grid.affine)


def affine_sample(data: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], *, order: int) -> np.ndarray:
    """`scipy.ndimage.affine_transform`, 0 beyond the border; linear interpolation between parallel axes is done here.

    Parameters
    ----------
    data : ndarray
        (X, Y, Z).
    matrix : ndarray
        4 x 4, output voxels to voxels of `data`.
    shape : tuple of int
        Of the output.
    order : int
        Spline order.
    """
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    if not np.allclose(linear, np.diag(np.diag(linear)), atol=1e-9):
        return ndimage.affine_transform(data, linear, offset, output_shape=shape, order=order, mode="grid-constant")
    if order == 1:
        out = np.asarray(data, np.float32)
        for axis in np.argsort([n / m for n, m in zip(shape, data.shape, strict=True)], kind="stable"):
            out = _linear_along(out, int(axis), float(linear[axis, axis]), float(offset[axis]), shape[axis])
        return out
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The behavior of affine_transform")
        scales = np.diag(linear)  # separable, much faster
        return ndimage.affine_transform(data, scales, offset, output_shape=shape, order=order, mode="grid-constant")


def gathered(data: np.ndarray, points: np.ndarray) -> np.ndarray:
    """All volumes of (X, Y, Z, labels) at fractional voxels (n, 3) inside it, trilinear, float32 (n, labels)."""
    base = np.minimum(np.floor(points).astype(np.intp), np.array(data.shape[:3]) - 2)
    part = (points - base).astype(np.float32)
    total = np.zeros((len(points), data.shape[3]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1, dtype=np.float32)
        at = base + corner
        total += data[at[:, 0], at[:, 1], at[:, 2]] * weight[:, None]
    return total


def _linear_along(data: np.ndarray, axis: int, scale: float, offset: float, n: int) -> np.ndarray:
    """Linear interpolation along one axis at ``scale * k + offset``; what lies outside counts as 0."""
    size = data.shape[axis]
    at = np.arange(n) * scale + offset
    low = np.floor(at).astype(np.intp)
    share = (1 - (at - low), at - low)
    shape = [1] * data.ndim
    shape[axis] = n
    total: np.ndarray | None = None
    for step, weight in enumerate(share):
        index = low + step
        inside = (index >= 0) & (index < size)
        part = data.take(np.clip(index, 0, size - 1), axis)
        part *= np.where(inside, weight, 0).astype(np.float32).reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    return data if total is None else total


def overlap(count: int, size: float, others: int, step: float, *, start: float = 0.0) -> np.ndarray:
    """How much each voxel of one row shares with those of another, for means that neither gain nor lose.

    Parameters
    ----------
    count, size : int, float
        Voxels wanted and their size (mm).
    others, step : int, float
        Voxels that there are and their size (mm).
    start : float
        Where the first wanted voxel begins, mm from where the other row does.

    Returns
    -------
    ndarray of float32
        (count, others): shares of the other voxels in a window around each wanted one, as wide as the larger of both
        sizes. Rows sum to 1, or are 0 where the window lies outside the other row.
    """
    width = max(size, step)
    centres = start + (np.arange(count) + 0.5) * size
    edges = np.arange(others + 1) * step
    low, high = centres - width / 2, centres + width / 2
    shared = np.minimum(edges[None, 1:], high[:, None]) - np.maximum(edges[None, :-1], low[:, None])
    shared = np.maximum(shared, 0)
    return (shared / np.maximum(shared.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)


def along_axes(data: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Weighted sums along each axis in turn: `weights[a]` is (wanted, data.shape[a]); float32."""
    out = np.asarray(data, np.float32)
    for axis, matrix in enumerate(weights):
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return out


THICK_MM = 1.5
"""Slices farther apart than this are called thick."""
THICKER = 1.5
"""How many times as far apart as voxels within them sagittal and coronal slices are at least."""


def across(spacing: Sequence[float]) -> int:
    """The axis across the slices: that of the largest voxels (to 0.01 mm; of equal ones the last).

    >>> across((0.5, 0.5, 4.0)), across((3.0, 0.9, 0.9)), across((1.0, 1.0, 1.0))
    (2, 0, 2)
    """
    sizes = np.round(spacing, 2)
    return int(max((2, 1, 0), key=lambda axis: sizes[axis]))


def slice_axis(spacing: Sequence[float]) -> int:
    """The axis across the slices where they are thick (`THICK_MM`, and `THICKER` times the other voxel sizes).

    Else the last: scans whose voxels hardly differ in size look the same in every plane, and axial planes are those
    that networks have learnt from.

    >>> slice_axis((0.5, 0.5, 4.0)), slice_axis((4.0, 0.6, 0.6)), slice_axis((0.4, 2.0, 0.4))
    (2, 0, 1)
    >>> slice_axis((1.0, 1.0, 1.0)), slice_axis((1.2, 0.7, 0.7)), slice_axis((1.8, 1.7, 1.7))
    (2, 2, 2)
    """
    axis = across(spacing)
    others = max(size for a, size in enumerate(spacing) if a != axis)
    return axis if spacing[axis] > THICK_MM and spacing[axis] >= THICKER * others else 2


def thickness(spacing: Sequence[float]) -> str:
    """``thick`` or ``thin`` slices.

    >>> thickness((0.5, 0.5, 4.0)), thickness((1.0, 1.0, 1.0)), thickness((4.0, 0.6, 0.6))
    ('thick', 'thin', 'thick')
    """
    return "thick" if spacing[slice_axis(spacing)] > THICK_MM else "thin"


def voxel_spacing(frame: Nifti1Image) -> tuple[float, float, float]:
    """Voxel sizes (mm) of an image in the canonical frame."""
    x, y, z = (float(v) for v in np.diag(frame.affine)[:3])
    return x, y, z


def canonical(image: Nifti1Image) -> Nifti1Image:
    """The image with axes turned to R, A, S and a centred affine that holds the voxel sizes alone.

    No voxel value changes. What is computed in this frame cannot depend on how the file stores its axes, nor on the
    obliquity that its header claims; `to_native` brings results back.
    """
    turned = nib.as_closest_canonical(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine))
    spacing = np.round(voxel_sizes(turned.affine), 4)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.asarray(turned.shape[:3]) - 1) / 2
    return nib.Nifti1Image(np.ascontiguousarray(turned.dataobj), affine)


def to_native(data: np.ndarray, native: Nifti1Image) -> np.ndarray:
    """Canonical-frame voxels back on the grid of `native` (inverse of `to_canonical`)."""
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.io_orientation(native.affine))
    return np.ascontiguousarray(nib.orientations.apply_orientation(data, back))


def to_canonical(image: Nifti1Image, native: Nifti1Image) -> np.ndarray:
    """Voxels of an image on the grid of `native`, turned to the canonical frame."""
    return np.ascontiguousarray(
        nib.orientations.apply_orientation(np.asanyarray(image.dataobj), nib.io_orientation(native.affine))
    )


def canonical_to_world(native: Nifti1Image) -> np.ndarray:
    """4 x 4 rigid matrix from canonical millimetres to the scanner millimetres of `native`."""
    frame = canonical(nib.Nifti1Image(np.zeros(native.shape[:3], np.uint8), native.affine))
    turned = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(native.shape[:3], np.uint8), native.affine))
    return turned.affine @ np.linalg.inv(frame.affine)
