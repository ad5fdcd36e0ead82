"""A box of fixed size and resolution around a region of a scan, and maps on it back on the scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_epvs.prepare.resample import along_axes, overlap


@dataclass(frozen=True)
class Window:
    """A box in a scan.

    Attributes
    ----------
    shape : tuple of int
        Voxels of the box.
    step : tuple of float
        Their size, mm.
    low : tuple of float
        Outer corner of the box, mm from that of the scan.
    scan_shape, spacing : tuple
        The scan: canonical frame.
    """

    shape: tuple[int, ...]
    step: tuple[float, ...]
    low: tuple[float, ...]
    scan_shape: tuple[int, ...]
    spacing: tuple[float, ...]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The image in the box: mean over each of its voxels, 0 outside the scan; float32."""
        sides = zip(self.shape, self.step, self.scan_shape, self.spacing, self.low, strict=True)
        return along_axes(image, [overlap(n, d, m, s, start=a) for n, d, m, s, a in sides])

    def back(self, values: np.ndarray) -> np.ndarray:
        """Values of the box on the scan, 0 outside the box; float32."""
        sides = zip(self.scan_shape, self.spacing, self.shape, self.step, self.low, strict=True)
        return along_axes(values, [overlap(m, s, n, d, start=-a) for m, s, n, d, a in sides])


def around(region: np.ndarray, spacing: tuple[float, ...], shape: tuple[int, ...], step: tuple[float, ...]) -> Window:
    """The box whose centre is that of a region's extent.

    Parameters
    ----------
    region : ndarray of bool
        Canonical frame, not empty.
    spacing : tuple of float
        Voxel sizes, mm.
    shape, step : tuple
        Of the box.
    """
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    centres = [(b.start + b.stop) / 2 * s for b, s in zip(box, spacing, strict=True)]
    low = tuple(c - n * d / 2 for c, n, d in zip(centres, shape, step, strict=True))
    return Window(tuple(shape), tuple(step), low, tuple(region.shape), tuple(spacing))
