"""Intensity levels of tissues and what follows from them: fluid that is no EPVS."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bids_epvs.prepare import planes
from bids_epvs.prepare.regions import opened_in_slices
from bids_epvs.prepare.resample import across, bounding_box


class Levels(NamedTuple):
    """Robust intensities of a T2w: medians of white matter and fluid, and the noise of white matter."""

    white: float
    fluid: float
    noise: float


def levels(image: np.ndarray, white: np.ndarray, fluid: np.ndarray) -> Levels:
    """Median and 1.4826 MAD of white matter, and 75th percentile of fluid (less partial volume than its median).

    Parameters
    ----------
    image : ndarray
        T2w.
    white, fluid : ndarray of bool
        Masks; without fluid the maximum of the image stands for it.
    """
    tissue, water = image[white], image[fluid]
    centre = float(np.median(tissue)) if tissue.size else 0.0
    noise = _spread(tissue, centre) if tissue.size else 1.0
    top = float(np.percentile(water, 75)) if water.size else float(image.max())
    return Levels(centre, max(top, centre + 1e-6), noise)


def _spread(values: np.ndarray, middle: float) -> float:
    """1.4826 MAD: the standard deviation, if values are normal and few are not."""
    return float(1.4826 * np.median(np.abs(values - middle)))


_GRAIN_MM, _RIM = 1.0, 2


def grain(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...], *, rim: int = _RIM) -> float:
    """Noise inside a region: 1.4826 MAD of what a Gaussian of 1 mm in the plane of the slices takes away.

    Unlike `Levels.noise` it leaves out what differs between parts of the tissue. Noise whose grain is wider than the
    Gaussian (zero-filled images) is measured too low, EPVS and edges inside the region add little.

    Parameters
    ----------
    image : ndarray
        (X, Y, Z).
    mask : ndarray of bool
        The region.
    spacing : tuple of float
        Voxel sizes, mm; slices lie along the largest.
    rim : int
        Voxels in the plane, at the border of the region, that are left out.

    Returns
    -------
    float
        In units of the image; 0 where the region is too thin.
    """
    through = across(spacing)
    box = bounding_box(mask, 4)
    values, inside = np.asarray(image[box], np.float32), mask[box]
    plane = np.ones([1 if axis == through else 2 * rim + 1 for axis in range(3)], bool)
    inner = ndimage.binary_erosion(inside, plane)
    if not inner.any():
        return 0.0
    sigma = [0.0 if axis == through else _GRAIN_MM / spacing[axis] for axis in range(3)]
    rest = (values - ndimage.gaussian_filter(values, sigma))[inner]
    return _spread(rest, float(np.median(rest)))


LEAST_STEP = 0.4
"""From tissue to fluid, as a share of the intensity of tissue: less is no fluid."""


def fluid_step(
    image: np.ndarray, tissue: np.ndarray, fluid: np.ndarray, *, dark: bool = False, else_step: float = LEAST_STEP
) -> tuple[float, float]:
    """Median of tissue, and the distance from there to fluid, at least `LEAST_STEP` of the median.

    Parameters
    ----------
    image : ndarray
    tissue, fluid : ndarray of bool
        Without any tissue the median is 1.
    dark : bool
        Fluid is darker than tissue.
    else_step : float
        Distance without any fluid, as a share of the median.
    """
    centre = float(np.median(image[tissue])) if tissue.any() else 1.0
    if not fluid.any():
        return centre, max(else_step * centre, 1e-6)
    end = float(np.percentile(image[fluid], 25 if dark else 75))  # less partial volume than in the middle
    return centre, max(LEAST_STEP * centre, abs(end - centre), 1e-6)


def inverted(image: np.ndarray, white: np.ndarray) -> np.ndarray:
    """An image on which fluid is dark (T1w, FLAIR), turned about the median of white matter: fluid is bright."""
    centre = np.float32(np.median(image[white])) if white.any() else np.float32(image.max() / 2)
    return np.asarray(2 * centre - image, np.float32)


EPVS_MM = 3.2
"""Width above which fluid in white matter is no EPVS (few are wider than 3 mm) but a lacune or a cyst."""


@planes.along_slices
def large_fluid(image: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...], found: Levels) -> np.ndarray:
    """Ventricles, cisterns and sulci: fluid too large for, or connected to fluid outside of, white matter.

    Seeds are fluid-bright voxels that carry a label of fluid or lie in a disc of `EPVS_MM` of them in the plane of the
    slices (`resample.slice_axis`); seeds then grow 2 mm inside bright voxels.
    """
    half = found.white + 0.5 * (found.fluid - found.white)
    bright = (image > half) & (labels > 0)
    seeds = bright & np.isin(labels, (4, 43, 14, 15, 24))
    seeds |= opened_in_slices(bright, spacing, EPVS_MM / 2 + min(spacing[:2]) / 2)  # of centres, not borders, of voxels
    seeds = _drop_small(seeds, 10.0 / float(np.prod(spacing)))
    steps = max(1, round(2.0 / max(min(spacing[:2]), 0.4)))
    soft = (image > found.white + 0.35 * (found.fluid - found.white)) & (labels > 0)
    return ndimage.binary_dilation(seeds, _plus(), iterations=steps, mask=soft) | seeds


def _drop_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Components (26-connected) of at least `voxels` voxels."""
    found, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    size = np.bincount(found.ravel())
    size[0] = 0
    return size[found] >= voxels


def _plus() -> np.ndarray:
    """In-plane 4-neighbourhood."""
    out = np.zeros((3, 3, 3), bool)
    out[1, :, 1] = out[:, 1, 1] = True
    return out
