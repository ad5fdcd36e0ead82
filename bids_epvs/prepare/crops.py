"""One region of one hemisphere as a small image at a fixed resolution, and results on it back to the scan.

References
----------
Dubost et al. 2019, doi:10.1016/j.neuroimage.2018.10.026 (masks dilated, smoothed, multiplied with the intensities).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

from bids_epvs.prepare.intensity import fluid_step, grain
from bids_epvs.prepare.regions import WHITE_MATTER
from bids_epvs.prepare.resample import along_axes, bounding_box, overlap

SPACING_MM = (0.5, 0.5, 0.8)
DILATED_MM = 2.0
SMOOTHED_MM = 1.0
MARGIN_MM = 4.0
"""Around the region: what dilation and smoothing reach."""
RANGE = (-0.7, 1.0)
"""Normalised intensities are cut here."""
CONTRAST, SEEN = 6.0, (-1.0, 2.0)
"""Factor on intensities around that of the tissue, and where they are cut then."""


@dataclass(frozen=True)
class Crop:
    """A region at `SPACING_MM`, the right hemisphere mirrored so that both look alike.

    Attributes
    ----------
    image : ndarray of float32
        (X, Y, Z); intensities, 0 in white matter and 1 in fluid.
    soft : ndarray of float32
        The dilated and smoothed mask, 0-1.
    mask : ndarray of bool
        The region itself.
    box : tuple of slice
        Part of the scan it was made from.
    spacing : tuple of float
        Of the scan.
    mirrored : bool
    """

    image: np.ndarray
    soft: np.ndarray
    mask: np.ndarray
    box: tuple[slice, slice, slice]
    spacing: tuple[float, float, float]
    mirrored: bool

    @property
    def seen(self) -> np.ndarray:
        """What a network sees: `stretched`, times the soft mask."""
        return stretched(self.image, level(self.image, self.mask)) * self.soft


def level(image: np.ndarray, mask: np.ndarray) -> float:
    """Median of a region: its tissue."""
    return float(np.median(image[mask])) if mask.any() else 0.0


def noise(image: np.ndarray, mask: np.ndarray) -> float:
    """`intensity.grain` of a region; of one too thin for that, its rim included; 0 without any."""
    return grain(image, mask, SPACING_MM) or grain(image, mask, SPACING_MM, rim=0)


USUAL_STEP = 1.9
"""From white matter to fluid on a T2w without fluid, as a share of white matter (as in `synth.contrast.MEANS`)."""


def scan_scale(image: np.ndarray, regions: np.ndarray, csf: np.ndarray) -> tuple[float, float]:
    """`fluid_step` of a T2w, by which crops are normalised; without white matter all regions are taken for it.

    Parameters
    ----------
    image : ndarray
    regions : ndarray
        Indices of `REGIONS`.
    csf : ndarray of bool
        Large fluid.
    """
    white = np.isin(regions, WHITE_MATTER) & ~csf
    return fluid_step(image, white if white.any() else (regions > 0) & ~csf, csf, else_step=USUAL_STEP)


def stretched(image: np.ndarray, tissue: float) -> np.ndarray:
    """Tissue 0, what is a little brighter or darker spread out, the rest cut at `SEEN`.

    EPVS are far nearer to tissue than to the fluid outside the region; with tissue at 0 the soft mask draws no edges.
    """
    return np.clip((image - np.float32(tissue)) * np.float32(CONTRAST), *SEEN)


def crop(
    image: np.ndarray,
    region: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    scale: tuple[float, float],
    mirrored: bool,
) -> Crop | None:
    """Cut a region out of a scan, resample it linearly, mask and normalise it.

    The scale is that of the scan and not of the region: how bright the brightest voxels around a region are depends on
    how much of the fluid beside it the mask leaves out, and noise would be stretched along.

    Parameters
    ----------
    image : ndarray
        Canonical frame.
    region : ndarray of bool
    spacing : tuple of float
        Voxel sizes, mm.
    scale : tuple of float
        Intensity of white matter and the distance from there to fluid (`intensity.fluid_step`).
    mirrored : bool
        For the right hemisphere.

    Returns
    -------
    Crop or None
        None where the scan does not show the region.
    """
    if not region.any():
        return None
    box = bounding_box(region, tuple(int(np.ceil(MARGIN_MM / s)) for s in spacing))
    fine = resampled(np.asarray(image[box], np.float32), spacing)
    inside = resampled(region[box].astype(np.float32), spacing) >= 0.5
    if not inside.any():
        return None
    near = dilated(inside, DILATED_MM, SPACING_MM)
    soft = ndimage.gaussian_filter(near.astype(np.float32), [SMOOTHED_MM / s for s in SPACING_MM])
    scaled = (fine - np.float32(scale[0])) / np.float32(scale[1])
    fine, side = np.clip(scaled, *RANGE), slice(None, None, -1 if mirrored else 1)
    turned = [np.ascontiguousarray(a[side]) for a in (fine, soft, inside)]
    return Crop(turned[0], turned[1], turned[2], box, spacing, mirrored)


def dilated(mask: np.ndarray, reach: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """All voxels whose centre lies within `reach` mm of that of a voxel of a mask, bool.

    As a threshold on the distance transform, some ten times faster where the reach is a few voxels.
    """
    x, y, z = spacing
    far = [int(reach / s + 1e-6) for s in spacing]
    runs, grown = [mask], mask
    for step in range(1, far[0] + 1):  # dilated along x by 0, 1, ... voxels
        grown = grown.copy()
        grown[step:] |= mask[:-step]
        grown[:-step] |= mask[step:]
        runs.append(grown)
    out = np.zeros_like(mask)
    for j, k in product(range(-far[1], far[1] + 1), range(-far[2], far[2] + 1)):
        left = reach**2 - (j * y) ** 2 - (k * z) ** 2
        if left > -1e-9:
            own = runs[int(np.sqrt(max(left, 0.0)) / x + 1e-6)]
            (to_y, from_y), (to_z, from_z) = _shifted(j), _shifted(k)
            out[:, to_y, to_z] |= own[:, from_y, from_z]
    return out


def _shifted(step: int) -> tuple[slice, slice]:
    """Where voxels come to along an axis, and where from, when all move by a step."""
    back = slice(None, -abs(step) or None), slice(abs(step), None)
    return back if step < 0 else back[::-1]


def resampled(block: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """A block at `SPACING_MM` over the same extent, linear between voxel centres, border repeated; float32."""
    out = block
    for axis, (size, step) in enumerate(zip(spacing, SPACING_MM, strict=True)):
        count = size_of(block.shape[axis], size, step)
        centres = np.clip(((np.arange(count) + 0.5) * step) / size - 0.5, 0, block.shape[axis] - 1)
        low = np.minimum(np.floor(centres).astype(int), max(block.shape[axis] - 2, 0))
        high = np.minimum(low + 1, block.shape[axis] - 1)
        part = (centres - low).astype(np.float32)
        part = part.reshape([-1 if a == axis else 1 for a in range(3)])
        out = np.take(out, low, axis=axis) * (1 - part) + np.take(out, high, axis=axis) * part
    return out.astype(np.float32, copy=False)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """`Crop.image` as uint8, its `RANGE` over 0-255."""
    return np.rint((image - RANGE[0]) / (RANGE[1] - RANGE[0]) * 255).astype(np.uint8)


def from_bytes(stored: np.ndarray) -> np.ndarray:
    """The image that `as_bytes` stored, float32."""
    return stored.astype(np.float32) / 255 * (RANGE[1] - RANGE[0]) + RANGE[0]


def size_of(count: int, size: float, step: float) -> int:
    """Voxels of `step` mm that cover `count` voxels of `size` mm."""
    return max(1, int(np.ceil(count * size / step - 1e-6)))


def back(values: np.ndarray, made: Crop, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a crop on the scan: the mean over each of its voxels, 0 elsewhere; float32.

    Where the scan's voxels are smaller than the crop's, neighbours are averaged over the width of the latter.
    """
    block = values[::-1] if made.mirrored else values
    part = tuple(b.stop - b.start for b in made.box)
    sizes = zip(part, made.spacing, block.shape, SPACING_MM, strict=True)
    out = np.zeros(shape, np.float32)
    out[made.box] = along_axes(block, [overlap(*s) for s in sizes])
    return out


def voxel_of(points_mm: np.ndarray, made: Crop) -> np.ndarray:
    """Voxels (n, 3) of a crop that hold points, given in mm from the centre of the scan's first voxel."""
    corner = np.array([b.start for b in made.box]) * np.array(made.spacing)
    at = np.floor((points_mm + np.array(made.spacing) / 2 - corner) / np.array(SPACING_MM)).astype(int)
    if made.mirrored:
        at[:, 0] = made.image.shape[0] - 1 - at[:, 0]
    return at
