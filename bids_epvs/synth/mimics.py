"""What a method may take for EPVS: white matter hyperintensities, lacunes, vessels with flow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from bids_epvs.prepare.fields import smooth_field
from bids_epvs.prepare.regions import indices
from bids_epvs.synth.anatomy import (
    FLOW_VOID,
    LACUNE,
    LACUNE_RIM,
    WMH_LEFT,
    WMH_RIGHT,
    Anatomy,
    every_second,
)

KINDS = {1: "WhiteMatterHyperintensity", 2: "Lacune", 3: "FlowVoid"}
"""Index in the mimic segmentation -> name."""
CODES = {1: (WMH_LEFT, WMH_RIGHT), 2: (LACUNE, LACUNE_RIM), 3: (FLOW_VOID,)}


@dataclass(frozen=True)
class Load:
    """How much of each kind.

    Attributes
    ----------
    rim_mm : float
        Mean thickness of periventricular hyperintensity.
    spots, lacunes, vessels : int
        Numbers.
    """

    rim_mm: float
    spots: int
    lacunes: int
    vessels: int


def draw(rng: np.random.Generator, age: float) -> Load:
    """A load that grows with age (years)."""
    decades = max(0.0, (age - 45) / 10)
    return Load(
        rim_mm=float(rng.gamma(1.5, 0.5) * decades / 2),
        spots=int(rng.poisson(3 * decades)),
        lacunes=int(rng.poisson(0.25 * decades)),
        vessels=int(rng.integers(8, 30)),
    )


def add(rng: np.random.Generator, head: Anatomy, regions: np.ndarray, load: Load) -> Anatomy:
    """The head with lesions and vessels painted into its labels.

    Parameters
    ----------
    rng : Generator
    head : Anatomy
    regions : ndarray of uint8
        On the grid of `every_second` of the head.
    load : Load
    """
    labels = head.labels.copy()
    half = every_second(head)
    spread = np.repeat(np.repeat(np.repeat(_hyperintense(rng, half, load), 2, 0), 2, 1), 2, 2)
    spread = spread[: labels.shape[0], : labels.shape[1], : labels.shape[2]]
    labels[spread & (labels == 2)] = WMH_LEFT
    labels[spread & (labels == 41)] = WMH_RIGHT
    deep = indices("BasalGanglia", "CentrumSemiovale", "OtherWhiteMatter", "Thalamus")
    room = np.argwhere(np.isin(regions, deep)) * 2
    for _ in range(load.lacunes if len(room) else 0):
        _lacune(rng, labels, head.spacing, room[rng.integers(len(room))])
    fluid = np.argwhere(half.labels == 24) * 2
    for _ in range(load.vessels if len(fluid) else 0):
        _vessel(rng, labels, head.spacing, fluid[rng.integers(len(fluid))])
    return replace(head, labels=labels)


def _hyperintense(rng: np.random.Generator, half: Anatomy, load: Load) -> np.ndarray:
    """Mask on the half-resolution grid: a rim of uneven width around the ventricles, and spots."""
    white = np.isin(half.labels, (2, 41))
    out = np.zeros(white.shape, bool)
    ventricle = np.isin(half.labels, (4, 43))
    if load.rim_mm > 0 and ventricle.any():
        knots = np.maximum(4, np.array(white.shape) // 16)
        width = load.rim_mm * np.exp(smooth_field(rng.normal(0, 0.8, knots), white.shape))
        out |= white & (ndimage.distance_transform_edt(~ventricle, sampling=half.spacing) < width)
    room = np.argwhere(white)
    for _ in range(load.spots):
        centre = room[rng.integers(len(room))]
        radii = np.clip(np.exp(rng.normal(np.log(2.0), 0.5)), 0.8, 8.0) * rng.uniform(0.7, 1.3, 3)
        box, inside = ellipsoid(centre, radii, half.spacing, white.shape)
        out[box] |= inside & white[box]
    return out


def ellipsoid(
    centre: np.ndarray, radii_mm: np.ndarray, spacing: tuple[float, ...], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Box and mask of an axis-aligned ellipsoid around a voxel."""
    reach = np.ceil(np.asarray(radii_mm) / spacing).astype(int) + 1
    low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, shape)
    axes = [(np.arange(a, b) - c) * s / r for a, b, c, s, r in zip(low, high, centre, spacing, radii_mm, strict=True)]
    inside = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2 <= 1
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), inside


def _lacune(rng: np.random.Generator, labels: np.ndarray, spacing: tuple[float, ...], centre: np.ndarray) -> None:
    """An ovoid cavity of 3-15 mm with a gliotic rim of 1 mm, in place; fluid and cortex stay."""
    size = float(np.clip(np.exp(rng.normal(np.log(6.0), 0.4)), 3.0, 15.0))
    radii = size / 2 * np.array([1.0, rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0)])[rng.permutation(3)]
    keep = (0, 3, 42, 4, 43, 14, 15, 24)
    for extra, code in ((1.0, LACUNE_RIM), (0.0, LACUNE)):
        box, inside = ellipsoid(centre, radii + extra, spacing, labels.shape)
        part = labels[box]
        part[inside & ~np.isin(part, keep)] = code


def _vessel(rng: np.random.Generator, labels: np.ndarray, spacing: tuple[float, ...], start: np.ndarray) -> None:
    """A winding artery of 0.8-2.4 mm in the fluid around the brain, in place."""
    point = start.astype(float)
    course = rng.normal(size=3)
    radius = float(rng.uniform(0.4, 1.2))
    for _ in range(int(rng.integers(20, 90))):
        course = course / np.linalg.norm(course) + rng.normal(0, 0.15, 3)
        point = point + 0.5 * course / np.linalg.norm(course) / spacing
        centre = np.rint(point).astype(int)
        if (centre < 0).any() or (centre >= labels.shape).any() or labels[tuple(centre)] not in (24, FLOW_VOID):
            return
        box, inside = ellipsoid(centre, np.full(3, radius), spacing, labels.shape)
        part = labels[box]
        part[inside & (part == 24)] = FLOW_VOID
