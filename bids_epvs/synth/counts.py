"""Training examples of the counting networks: regions of simulated T2w scans with the EPVS in them.

The aqueduct is left out of the midbrain, as the app does. `generate` (called by ``bids_epvs-train cnn`` and ``gpunet``)
writes ``example-00000.npz`` and on: every counted region and hemisphere of one scan as the app hands it to the
network: isotropic, with thick axial slices, and with thick coronal or sagittal ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from bids_epvs.measure.lesions import VISIBLE
from bids_epvs.models import count
from bids_epvs.prepare import crops, fields, planes
from bids_epvs.prepare.aqueduct import aqueduct
from bids_epvs.prepare.crops import Crop
from bids_epvs.prepare.resample import slice_axis
from bids_epvs.synth import tubes, volumes
from bids_epvs.synth.scene import Scene

BURDENS = {"any": 0.6, "elderly": 0.15, "low": 0.1, "high": 0.15}
"""How often each of `tubes.BURDENS` is drawn."""
OFF_MM = (0.0, 1.0)
"""How far the borders of regions in training examples lie off, as those that the app finds do (standard deviation
along each axis, drawn for each scan)."""
_KNOTS_MM = 15.0
"""Distance over which this changes."""


def example(
    rng: np.random.Generator, made: Scene, kind: str, *, off_mm: tuple[float, float] = OFF_MM
) -> dict[str, Any]:
    """Regions of one T2w.

    Parameters
    ----------
    rng : Generator
    made : Scene
    kind : str
        Of protocol.
    off_mm : tuple of float
        Range of how far borders lie off; EPVS of other regions then count where the mask holds them.

    Returns
    -------
    dict
        For each index of `REGIONS` that is counted: ``image_<i>`` (uint8, `crops.as_bytes`),
        ``soft_<i>`` (uint8), ``mask_<i>`` (bool), ``at_<i>`` (int16, (n, 3) voxels) and ``share_<i>`` (float32, (n,)):
        points of EPVS and the part of one EPVS that each stands for; ``count_<i>``, the number of EPVS in the true
        region; ``spacing``; ``turned``. Slices lie along the third axis, as in `volumes.example`.
    """
    shot = volumes.t2w(rng, made, kind)
    spacing = shot.protocol.spacing
    fraction, index = made.fraction(spacing)
    peak = ndimage.maximum(fraction, index, np.arange(1, len(made.tubes) + 1)) if made.tubes else []
    seen = [t for t, p in zip(made.tubes, np.atleast_1d(peak), strict=True) if p >= VISIBLE]
    found = np.where(shot.brain, regions_off(rng, made, spacing, float(rng.uniform(*off_mm))), 0)
    found[aqueduct(shot.image, found, made.head.to_template @ shot.affine, spacing, shot.level)] = 0
    axis = slice_axis(spacing)
    found, image, csf = (planes.sliced(a, axis) for a in (found, shot.image, shot.csf))
    spacing, order = planes.turned_spacing(spacing, axis), planes.order(axis)
    moved = [replace(t, points=t.points[:, order]) for t in seen]
    out: dict[str, Any] = {"spacing": np.array(spacing, np.float32), "turned": np.bool_(axis != planes.AXIAL)}
    for number, own in count.sides(found, image, csf, spacing).items():
        at, share = points(moved, number, own, shot.affine[order, 3])
        out[f"count_{number}"] = np.float32(sum(t.region == number for t in seen))
        out[f"image_{number}"] = crops.as_bytes(own.image)
        out[f"soft_{number}"] = np.rint(own.soft * 255).astype(np.uint8)
        out[f"mask_{number}"], out[f"at_{number}"], out[f"share_{number}"] = own.mask, at, share
    return out


def regions_off(rng: np.random.Generator, made: Scene, spacing: tuple[float, float, float], off: float) -> np.ndarray:
    """`Scene.regions_on` with borders that lie `off` mm (standard deviation along each axis) from the true ones."""
    shape, _ = made.grid(spacing)
    if off == 0:
        return made.regions_on(spacing)
    extent = np.array(shape) * np.array(spacing)
    knots = np.maximum(4, np.rint(extent / _KNOTS_MM).astype(int))
    at = []
    for axis, n in enumerate(shape):
        along = ((np.arange(n) + 0.5) * spacing[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        away = fields.smooth_field(rng.normal(0, off, knots), shape)
        voxel = ((along + away) / (2 * made.head.spacing[axis])).astype(np.int32)
        at.append(np.clip(voxel, 0, made.regions.shape[axis] - 1))
    return np.asarray(made.regions[at[0], at[1], at[2]])


def points(found: list[tubes.Tube], number: int, own: Crop, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (n, 3) along the EPVS of a crop of region `number`, and the share of one EPVS that each stands for.

    Of EPVS of other regions those inside the crop's mask.
    """
    at, share = [np.zeros((0, 3), np.int16)], [np.zeros(0, np.float32)]
    last = np.array(own.image.shape) - 1
    for tube in found:
        voxels = crops.voxel_of(tube.points - origin, own)
        part = np.full(len(voxels), 1 / len(voxels), np.float32)
        if tube.region != number:
            there = ((voxels >= 0) & (voxels <= last)).all(axis=1)
            voxels, part = voxels[there], part[there]
            inside = own.mask[tuple(voxels.T)]
            voxels, part = voxels[inside], part[inside]
        at.append(np.clip(voxels, 0, last).astype(np.int16))
        share.append(part)
    return np.concatenate(at), np.concatenate(share)


generate = partial(volumes.generate, make=example, burdens=BURDENS)
"""As `volumes.generate`, of regions."""
