"""Regions in which EPVS are counted, from anatomical labels of any source (atlas, network, FreeSurfer, SynthSeg).

- basal ganglia: caudate, putamen, pallidum, accumbens, the capsules between them, the subinsular white matter;
- centrum semiovale: cerebral white matter above the lateral ventricles;
- hippocampus; thalamus; midbrain: the brainstem above the pons, with the cerebral peduncles (ventral diencephalon of
  FreeSurfer below the plane from the mamillary bodies to the posterior commissure);
- other white matter: the remaining cerebral white matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bids_epvs.prepare import planes
from bids_epvs.prepare.labels import ATLAS_LABELS, MERGED
from bids_epvs.prepare.resample import bounding_box, slice_axis

NAMES = ("BasalGanglia", "CentrumSemiovale", "Hippocampus", "Midbrain", "Thalamus", "OtherWhiteMatter")
SIDES = ("Left", "Right")


class Region(NamedTuple):
    """One region of one hemisphere."""

    name: str
    side: str
    abbreviation: str
    color: str

    @property
    def full_name(self) -> str:
        """``LeftBasalGanglia``."""
        return self.side + self.name


_LOOK = {
    "BasalGanglia": ("BGA", "#e6550d", "#fd8d3c"),
    "CentrumSemiovale": ("CSO", "#3182bd", "#6baed6"),
    "Hippocampus": ("HIP", "#31a354", "#74c476"),
    "Midbrain": ("MID", "#756bb1", "#9e9ac8"),
    "Thalamus": ("THA", "#c51b8a", "#f768a1"),
    "OtherWhiteMatter": ("OWM", "#8c6d31", "#bd9e39"),
}

REGIONS: dict[int, Region] = {
    2 * k + s + 1: Region(name, side, side[0] + _LOOK[name][0], _LOOK[name][1 + s])
    for k, name in enumerate(NAMES)
    for s, side in enumerate(SIDES)
}
"""Index in ``seg-epvs_dseg`` -> region."""


def indices(*names: str) -> tuple[int, ...]:
    """Indices of some regions in both hemispheres.

    >>> indices("BasalGanglia")
    (1, 2)
    """
    return tuple(i for i, r in REGIONS.items() if r.name in names)


WHITE_MATTER = indices("CentrumSemiovale", "OtherWhiteMatter")
"""Indices of cerebral white matter."""

PONS_TOP = np.array([0.0, -24.0, -19.0])
"""A point (mm, ICBM152) of the plane between pons and midbrain."""
PONS_NORMAL = np.array([0.0, 0.34, 0.94])
"""Its normal, towards the midbrain: from the pontomesencephalic sulcus to below the inferior colliculi."""
MIDBRAIN_TOP = np.array([0.0, -20.0, -7.0])
"""A point of the plane between midbrain and diencephalon: from the mamillary bodies to the posterior commissure."""
MIDBRAIN_TOP_NORMAL = np.array([0.0, 0.447, 0.894])
PLANES = {"pons": (PONS_TOP, PONS_NORMAL), "diencephalon": (MIDBRAIN_TOP, MIDBRAIN_TOP_NORMAL)}
"""Lower and upper limit of the midbrain."""
ANTERIOR_COMMISSURE = np.array([0.0, 2.0, -4.0])
"""In ICBM152 millimetres."""

TILTED_DEGREES = 15.0
"""More than the poses of three upright slabs seem to be (8 to 12 degrees, a script that is not in the project), less
than those across the hippocampus."""
LEAST_MM2 = 20.0
"""Area of the lateral ventricles in a slice below which they have ended."""
CAPSULE_MM = 5.0
SUBINSULAR_MM = 5.0
THIN_MM = 1.0
"""Half the width below which what stands out of nuclei and capsules is neither: where the nearest voxel of the putamen
jumps, rays of a voxel or two stood out like a comb."""
LEAST_MM3 = 50.0
"""Smaller pieces of capsule and white matter, away from the nuclei, are not basal ganglia."""


def simplify(labels: np.ndarray) -> np.ndarray:
    """FreeSurfer, SynthSeg or wmparc indices merged into those of the atlas, int16; unknown ones become 0."""
    labels = np.asarray(np.rint(labels), dtype=np.int64)
    table = np.zeros(max(5003, int(labels.max()) + 1), np.int16)
    for start, target in ((1000, 3), (2000, 42), (3000, 2), (4000, 41)):
        table[start : start + 1000] = target
    table[5001], table[5002] = 2, 41
    for index in ATLAS_LABELS:
        table[index] = index
    for source, target in MERGED.items():
        table[source] = target
    return table[np.maximum(labels, 0)]


def heights(shape: tuple[int, int, int], affine: np.ndarray, plane: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Signed distance (mm) of each voxel to a plane given by a point and a normal; `affine` maps voxels there."""
    point, normal = plane
    unit = normal / np.linalg.norm(normal)
    steps = unit @ affine[:3, :3]
    start = float(unit @ (affine[:3, 3] - point))
    i, j, k = (np.arange(n, dtype=np.float32) * s for n, s in zip(shape, steps, strict=True))
    return start + i[:, None, None] + j[None, :, None] + k[None, None, :]


def ventricle_top(labels: np.ndarray, spacing: tuple[float, ...]) -> int | None:
    """Highest axial slice (canonical frame) of the lateral ventricles: up from the slice with most of them, as long as
    slices hold at least `LEAST_MM2`; None without such a slice. Fluid taken for ventricle far above does not count.
    """
    return _last_of(np.isin(labels, (4, 43)).sum(axis=(0, 1)) * spacing[0] * spacing[1])


def _last_of(area: np.ndarray) -> int | None:
    """Last index, from that of the largest area up, before an area is below `LEAST_MM2`; None if all are."""
    fullest = int(np.argmax(area))
    if area[fullest] < LEAST_MM2:
        return None
    ends = np.flatnonzero(area[fullest:] < LEAST_MM2)
    return fullest + (int(ends[0]) if ends.size else len(area) - fullest) - 1


def over_ventricles(labels: np.ndarray, spacing: tuple[float, ...], to_template: np.ndarray) -> np.ndarray:
    """Voxels above the lateral ventricles (mask): above `ventricle_top`, as raters see axial slices.

    Thick coronal slices along or across the hippocampus are tilted on purpose: where they (or sagittal ones) lie
    `TILTED_DEGREES` from the template's horizontal, above the ventricles means in the direction of the template.
    """
    out = np.zeros(labels.shape, bool)
    step = np.asarray(spacing)
    u, _, vt = np.linalg.svd(to_template[:3, :3] / step)
    upward = (u @ vt)[2]  # without shear and scaling, which the pose of a slab leaves unsure
    if slice_axis(spacing) == planes.AXIAL or upward[2] > np.cos(np.deg2rad(TILTED_DEGREES)):
        top = ventricle_top(labels, spacing)
        if top is not None:
            out[:, :, top + 1 :] = True
        return out
    up = heights(labels.shape, np.diag([*step, 1.0]), (np.zeros(3), upward))
    inside = up[np.isin(labels, (4, 43))]
    if not inside.size:
        return out
    low = float(inside.min())
    area = np.bincount((inside - low).astype(int)) * float(np.prod(spacing))  # of layers of 1 mm
    last = _last_of(area)
    return out if last is None else up > low + last + 1


def hemispheres(shape: tuple[int, int, int], to_template: np.ndarray) -> np.ndarray:
    """1 left and 2 right of the template's midsagittal plane, uint8; `to_template` maps voxels to ICBM152 mm."""
    x = heights(shape, to_template, (np.zeros(3), np.array([1.0, 0.0, 0.0])))
    return np.where(x < 0, 1, 2).astype(np.uint8)


def from_labels(
    labels: np.ndarray,
    spacing: tuple[float, float, float],
    to_template: np.ndarray,
    *,
    above: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Regions from atlas labels.

    Parameters
    ----------
    labels : ndarray of int
        (X, Y, Z), canonical frame, indices of `labels.ATLAS_LABELS`.
    spacing : tuple of float
        Voxel sizes in mm.
    to_template : ndarray
        4 x 4, voxels to ICBM152 millimetres (affine).
    above : mapping, optional
        Height (mm) of each voxel above the `PLANES`, where something better than `to_template` gives it.

    Returns
    -------
    ndarray of uint8
        Indices of `REGIONS`, 0 elsewhere.
    """
    side = hemispheres(labels.shape, to_template)
    white = np.isin(labels, (2, 41))
    high = over_ventricles(labels, spacing, to_template)
    height = above or {name: heights(labels.shape, to_template, plane) for name, plane in PLANES.items()}
    peduncles = np.isin(labels, (28, 60)) & (height["diencephalon"] < 0)
    masks = {
        "OtherWhiteMatter": white & ~high,
        "CentrumSemiovale": white & high,
        "Hippocampus": np.isin(labels, (17, 53)),
        "Thalamus": _without_holes(np.isin(labels, (10, 49)), labels),
        "Midbrain": ((labels == 16) | peduncles) & (height["pons"] > 0),
        "BasalGanglia": basal_ganglia(labels, spacing, to_template),
    }
    lateral = {2: 1, 41: 2, 17: 1, 53: 2, 10: 1, 49: 2, 11: 1, 50: 2, 12: 1, 51: 2, 13: 1, 52: 2, 26: 1, 58: 2}
    table = np.zeros(int(labels.max()) + 1, np.uint8)
    for index, value in lateral.items():
        if index < table.size:
            table[index] = value
    named = table[labels]
    side = np.where(named > 0, named, side)
    out = np.zeros(labels.shape, np.uint8)
    for name, mask in masks.items():
        out[mask] = (2 * NAMES.index(name) + side)[mask]
    return out


def basal_ganglia(labels: np.ndarray, spacing: tuple[float, float, float], to_template: np.ndarray) -> np.ndarray:
    """Nuclei, the capsules between them, and the white matter under the insula (mask)."""
    nuclei = np.isin(labels, (11, 50, 12, 51, 13, 52, 26, 58))
    if not nuclei.any():
        return nuclei
    white = np.isin(labels, (2, 41))
    box = bounding_box(nuclei, [int(np.ceil(12.0 / s)) for s in spacing])
    thalamus = np.isin(labels[box], (10, 49))
    deep = nuclei[box] | thalamus
    capsule = _closing(deep, spacing, CAPSULE_MM) & white[box]
    putamen = np.isin(labels[box], (12, 51))
    if putamen.any():
        distance, (i, _, _) = ndimage.distance_transform_edt(~putamen, sampling=spacing, return_indices=True)
        x = np.arange(putamen.shape[0])[:, None, None]
        outward = np.sign(_voxel_x(to_template, labels.shape)[box])
        lateral = (x - i) * outward * np.sign(to_template[0, 0]) * spacing[0] > 0.5 * distance
        capsule |= white[box] & (distance <= SUBINSULAR_MM) & lateral
    capsule &= opened_in_slices(capsule | nuclei[box], spacing, THIN_MM)
    out = nuclei.copy()
    out[box] |= _touching(capsule, nuclei[box], LEAST_MM3 / float(np.prod(spacing)))
    return _without_holes(out, labels)


def beyond(regions: np.ndarray, brain: np.ndarray, spacing: tuple[float, ...], reach: float) -> np.ndarray:
    """Brain in no region, at most `reach` mm from white matter or basal ganglia in the plane of the slices (mask).

    Slices lie along the third axis (`planes.by_slices`).

    EPVS run on there: where one comes near the cortex or a sulcus, so does the border of its region.
    """
    out = np.isin(regions, (*WHITE_MATTER, *indices("BasalGanglia")))
    box = bounding_box(out, [*(int(np.ceil(reach / s)) for s in spacing[:2]), 0])
    out[box] = grown_in_slices(out[box], spacing, reach)
    return out & brain & (regions == 0)


def grown_in_slices(mask: np.ndarray, spacing: tuple[float, ...], radius: float) -> np.ndarray:
    """Dilation of each slice (along the third axis) by a disk of `radius` mm."""
    out = np.zeros_like(mask)
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        out[..., k] = ndimage.distance_transform_edt(~mask[..., k], sampling=spacing[:2]) <= radius
    return out


def opened_in_slices(mask: np.ndarray, spacing: tuple[float, ...], radius: float) -> np.ndarray:
    """Opening of each slice (along the third axis) by a disk of `radius` mm."""
    out = np.zeros_like(mask)
    box = bounding_box(mask, (1, 1, 0))
    part = mask[box]
    core = np.zeros_like(part)
    for k in np.flatnonzero(part.any(axis=(0, 1))):
        core[..., k] = ndimage.distance_transform_edt(part[..., k], sampling=spacing[:2]) > radius
    out[box] = grown_in_slices(core, spacing, radius)
    return out & mask


def _touching(added: np.ndarray, core: np.ndarray, least: float) -> np.ndarray:
    """What is added, without pieces that neither touch the core nor have `least` voxels."""
    pieces, count = ndimage.label(added | core)
    kept = np.bincount(pieces.ravel(), minlength=count + 1) >= least
    kept |= np.bincount(pieces[core], minlength=count + 1) > 0
    return added & kept[pieces]


def _without_holes(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mask with the holes of each axial slice filled, unless they hold fluid."""
    fluid = np.isin(labels, (0, 4, 43, 14, 15, 24))
    out = mask.copy()
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        out[..., k] |= ndimage.binary_fill_holes(mask[..., k]) & ~fluid[..., k]
    return out


def _voxel_x(to_template: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Template x (mm) of each voxel."""
    return heights(shape, to_template, (np.zeros(3), np.array([1.0, 0.0, 0.0])))


def _closing(mask: np.ndarray, spacing: tuple[float, ...], radius: float) -> np.ndarray:
    """Morphological closing by a ball in millimetres."""
    grown = ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius
    return ndimage.distance_transform_edt(grown, sampling=spacing) > radius


def rating_slices(labels: np.ndarray, spacing: tuple[float, ...], commissure: float) -> dict[str, int]:
    """Axial slices (canonical index) that visual scales name; those outside the scan are left out.

    ``anterior_commissure`` (Adams, basal ganglia), ``ventricle_top`` and ``adams_cso``, 1 cm above it.

    Parameters
    ----------
    labels : ndarray of int
        (X, Y, Z), canonical frame.
    spacing : tuple of float
        Voxel sizes in mm.
    commissure : float
        Height of the anterior commissure, in slices.
    """
    out: dict[str, int] = {}
    wanted = {"anterior_commissure": round(commissure)}
    top = ventricle_top(labels, spacing)
    if top is not None:
        wanted |= {"ventricle_top": top, "adams_cso": top + round(10.0 / spacing[2])}
    for name, index in wanted.items():
        if 0 <= index < labels.shape[2]:
            out[name] = index
    return out
