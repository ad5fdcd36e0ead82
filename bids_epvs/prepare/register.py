"""Transforms, all estimated at 2 mm: sequences to the T2w (rigid), the template to the T2w (affine, then SyN)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.prepare import atlas, fields
from bids_epvs.prepare.bias import COARSE_MM, head_mask
from bids_epvs.prepare.resample import bounding_box, face_areas, iso_grid, resample
from bids_epvs.records import Transform

logger = logging.getLogger(__name__)

WHOLE_FROM_ML, BRAIN_BELOW_ML, CUT_CM2 = 2600.0, 2100.0, 50.0
"""A foreground from the first size on is a head; below the second it is a brain without its head, unless a border of
the volume cuts it over more than so much: then it may be a part of a head. Of 23 simulated scans of heads 12 and 17
below 2.6 L, the parts of heads are cut over 228 to 318 cm2, brains over at most 25, but for one (138)."""
START_MM = 30.0
"""Along an axis where it is cut the middle of a part is not that of the head: registration starts so far off as well.
Of 50 real parts of heads all come within 10 mm of the pose of the whole, and 42 within 6 mm; by centres of mass alone
some are 15 to 21 mm off."""
SLAB_MM = 80.0
"""A part that is shorter than this along an axis where it is cut may also lie twice as far off: at the head's ends."""
CLEAR_MARGIN = 1.3
"""`Alignment.margin` from which no further start is tried; poses that were wrong had at most 1.27, but for slabs of
the front or back of a head, where they had up to 2."""
TURNED_DEGREES, SHIFTED_MM = 20.0, 15.0
"""How far from the pose that was found those lie that it is compared with."""
INSIDE_MM = 12.0
"""Scalp and skull, which other sequences of the session are not aligned by. A point followed from the T2w of three real
sessions to T1w and FLAIR and back comes back 0.2 to 0.3 mm off; 0.5 to 0.8 mm where whole heads are aligned
(`benchmarks/loops.py`)."""
ASTRAY_MM = 5.0
"""An alignment of the inside of the head that differs more from that of the whole has gone astray."""
_CENTRE = np.array([0.0, -17.0, 4.0])
"""Middle of the template's brain, mm."""
_FEW = 1000
"""Voxels of 3 mm below which nothing is said of a pose."""


@dataclass(frozen=True)
class Alignment:
    """The template on a T2w.

    Attributes
    ----------
    transform : Transform
        From the T2w (fixed, canonical frame) to the template (moving): affine and, unless affine only, SyN.
    to_template : ndarray
        4 x 4, canonical millimetres to template millimetres, the affine part alone.
    stripped : bool
        Whether the scan holds a brain without a skull; of those that may be either, where such a template fits better.
    similarity : float
        Multiple correlation of the scan with the tissues of the template after the affine, times the share of these
        that lies in the head: any contrast counts, noise lowers it.
    margin : float
        How many times as much that is as in the best of twelve poses `TURNED_DEGREES` or `SHIFTED_MM` away.
    covered : float
        That share.
    """

    transform: Transform
    to_template: np.ndarray
    stripped: bool
    similarity: float
    margin: float
    covered: float = 1.0


def foreground_ml(coarse: Nifti1Image) -> float:
    """Volume of the head mask in mL."""
    mask = np.asarray(head_mask(coarse).dataobj)
    return float(mask.sum() * abs(np.linalg.det(coarse.affine[:3, :3])) / 1000)


def cut_cm2(coarse: Nifti1Image) -> np.ndarray:
    """Area (cm2) over which the borders of the volume cut the head mask, the larger of the two across each axis."""
    mask = np.asarray(head_mask(coarse).dataobj)
    areas = face_areas(mask, voxel_sizes(coarse.affine), depth=2)  # closing takes two voxels off
    return areas.max(axis=1) / 100


def starts(coarse: Nifti1Image) -> list[tuple[bool, np.ndarray]]:
    """What to register a scan with, and from where, the usual way first.

    Parameters
    ----------
    coarse : Nifti1Image
        The scan at about 2 mm, canonical frame.

    Returns
    -------
    list
        Whether the template's skull is taken away, and the shift (template mm) from where the centres of mass meet.
    """
    size, still = foreground_ml(coarse), np.zeros(3)
    if size >= WHOLE_FROM_ML:
        return [(False, still)]
    cut = np.flatnonzero(cut_cm2(coarse) > CUT_CM2)
    if size < BRAIN_BELOW_ML and not cut.size:
        return [(True, still)]
    sizes = voxel_sizes(coarse.affine) * coarse.shape
    shifts = [
        sign * steps * START_MM * np.eye(3)[axis]
        for axis in cut
        for steps in ((1, 2) if sizes[axis] < SLAB_MM else (1,))
        for sign in (-1, 1)
    ]
    return [(False, still), (True, still), *((False, shift) for shift in shifts)]


def _centred(fixed: Nifti1Image, moving: Nifti1Image, shift: np.ndarray) -> np.ndarray:
    """4 x 4 matrix, fixed to moving mm, that brings the centres of mass together, and a shift (mm) further."""
    out = np.eye(4)
    ends = [i.affine @ np.r_[ndimage.center_of_mass(np.asarray(i.dataobj, np.float64)), 1.0] for i in (fixed, moving)]
    out[:3, 3] = (ends[1] - ends[0])[:3] + shift
    return out


def _quality(pose: Alignment) -> tuple[bool, float]:
    """What the best of several poses is the best in: a pose beside which another fits better is wrong.

    With `similarity` alone a slab of the front or back goes to the middle, where most of the brain would lie in it.
    """
    return pose.margin >= 1, pose.similarity / max(pose.covered, 1e-3) ** 0.5


def template_to(image: Nifti1Image, *, contrast: str = "T2w", kind: str = "deformable", work_dir: Path) -> Alignment:
    """Align the contrast-matched template with a bias-corrected scan in the canonical frame.

    Parameters
    ----------
    image : Nifti1Image
        The scan (fixed).
    contrast : str
        A key of `atlas.CONTRASTS`.
    kind : {'deformable', 'affine'}
    work_dir : Path
        For the transform files.
    """
    from bids_epvs.prepare import ants

    fixed = resample(image, iso_grid(image, COARSE_MM))
    tries = starts(fixed)  # before intensities are clipped
    fixed = _clipped(fixed)
    found: list[Alignment] = []
    for number, (stripped, shift) in enumerate(tries):
        moving = atlas.head(contrast, brain_only=stripped)
        folder = work_dir / f"affine_{number}"
        begin = ants.affine(_centred(fixed, moving, shift), folder / "start") if np.any(shift) else None
        transform = ants.register(fixed, moving, kind="affine", work_dir=folder, initial=begin)
        matrix = ants.linear_matrix(transform)
        found.append(Alignment(transform, matrix, stripped, *pose_fit(fixed, matrix)))
        if found[0].margin >= CLEAR_MARGIN:
            break
    best = max(found, key=_quality)
    if kind == "affine":
        return best
    near = np.asarray(ants.apply(_brain_prior(), fixed, best.transform).dataobj) > 0.02
    fixed, near = _cropped(fixed, near)
    transform = ants.register(
        fixed,
        atlas.head(contrast, brain_only=best.stripped),
        kind="deformable",
        work_dir=work_dir / "deformable",
        initial=best.transform,
        fixed_mask=near,
        iterations=(40, 30, 6),
    )
    return replace(best, transform=transform)


def structures_onto_atlas(looks: tuple[Nifti1Image, Nifti1Image], *, work_dir: Path) -> Transform:
    """The deformation between two pictures of the same structures in template pose, one drawn from the atlas.

    Parameters
    ----------
    looks : tuple of Nifti1Image
        The scan's structures (fixed), the atlas (moving); intensities mean the same in both.
    work_dir : Path
        For the transform files.
    """
    from bids_epvs.prepare import ants

    still = ants.identity(work_dir)
    return ants.register(
        *looks, kind="deformable", work_dir=work_dir, initial=still, metric="meansquares", iterations=(30, 15, 0)
    )


def posed(image: Nifti1Image, alignment: Alignment, to_template: np.ndarray, *, work_dir: Path) -> Alignment:
    """An affine alignment of a scan with another affine.

    Parameters
    ----------
    image : Nifti1Image
        The scan, bias-corrected.
    alignment : Alignment
        As from `template_to`.
    to_template : ndarray
        4 x 4, canonical millimetres to template millimetres.
    work_dir : Path
        For the transform file.
    """
    from bids_epvs.prepare import ants

    fit = pose_fit(_clipped(resample(image, iso_grid(image, COARSE_MM))), to_template)
    return Alignment(ants.affine(to_template, work_dir), to_template, alignment.stripped, *fit)


def deformed(alignment: Alignment, warp: Transform) -> Alignment:
    """An affine alignment with a deformation in template pose behind it."""
    affine = alignment.transform
    both = Transform((*affine.forward, *warp.forward), (*warp.inverse, *affine.inverse), (*warp.invert, *affine.invert))
    return replace(alignment, transform=both)


def _clipped(image: Nifti1Image) -> Nifti1Image:
    """Intensities clipped to the 0.1 and 99.5 percentiles and scaled to 0-1."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    low, high = np.percentile(data, [0.1, 99.5])
    return nib.Nifti1Image(np.clip((data - low) / max(high - low, 1e-6), 0, 1), image.affine)


def _cropped(image: Nifti1Image, mask: np.ndarray, margin: int = 4) -> tuple[Nifti1Image, Nifti1Image]:
    """Image and mask cut to the mask's box and a margin of voxels; without a mask the whole image counts."""
    if not mask.any():
        mask = np.ones(image.shape, bool)
    box = bounding_box(mask, margin)
    part = image.slicer[box]
    return part, nib.Nifti1Image(mask[box].astype(np.float32), part.affine)


def _brain_prior() -> Nifti1Image:
    """Probability of being inside the skull, template space."""
    return atlas.brain()


def pose_fit(image: Nifti1Image, to_template: np.ndarray) -> tuple[float, float, float]:
    """`similarity`, `margin` and `covered` of an `Alignment`; all 0 where hardly any of the brain is in the image.

    Parameters
    ----------
    image : Nifti1Image
        Any contrast, bias-corrected, at about 2 mm; 0 where nothing was imaged.
    to_template : ndarray
        4 x 4, millimetres of the image to those of the template.
    """
    head = np.asarray(head_mask(image).dataobj)
    found, covered = _explained(image, head, to_template)
    best = max(_explained(image, head, pose @ to_template)[0] for pose in _around())
    return found, found / best if best > 0 else 0.0, covered


def _around() -> list[np.ndarray]:
    """4 x 4 matrices, template millimetres: turns about, and shifts along, each axis in both directions."""
    out = []
    for axis, sign in product(range(3), (-1, 1)):
        turn, shift = np.eye(4), np.eye(4)
        turn[:3, :3] = fields.rotation(axis, sign * np.deg2rad(TURNED_DEGREES))
        turn[:3, 3] = _CENTRE - turn[:3, :3] @ _CENTRE
        shift[axis, 3] = sign * SHIFTED_MM
        out += [turn, shift]
    return out


def _explained(image: Nifti1Image, head: np.ndarray, to_template: np.ndarray) -> tuple[float, float]:
    """Multiple correlation of intensities with the shares of the template's tissues, times the share of these in head.

    And that share itself.

    Outside the head, as outside a brain without skull, the contrast of something with nothing would count.
    """
    points, shares = atlas.tissue_points()
    matrix = np.linalg.inv(to_template @ image.affine)
    at = points @ matrix[:3, :3].T + matrix[:3, 3]
    inside = ndimage.map_coordinates(head, at.T, order=0) > 0
    if np.count_nonzero(inside) < _FEW:
        return 0.0, 0.0
    values = ndimage.map_coordinates(np.asarray(image.dataobj), at[inside].T, order=1)
    values = np.clip(values, *np.percentile(values, [0.5, 99.5]))
    terms = np.column_stack([shares[inside], np.ones(len(values))])
    rest = values - terms @ np.linalg.lstsq(terms, values, rcond=None)[0]
    covered = float(inside.mean())
    return float(np.sqrt(max(0.0, 1 - rest.var() / max(values.var(), 1e-12)))) * covered, covered


def onto(reference: Nifti1Image, image: Nifti1Image, *, work_dir: Path) -> tuple[Nifti1Image, Transform]:
    """Another sequence of the session, resampled rigidly onto the grid of the reference (cubic B-spline).

    First by the whole head, which finds it from afar, then by what lies `INSIDE_MM` below the skin: fat lies elsewhere
    in each sequence (chemical shift), and jaw and neck move.
    """
    from bids_epvs.prepare import ants

    fixed = _clipped(resample(reference, iso_grid(reference, COARSE_MM)))
    moving = _clipped(resample(image, iso_grid(image, COARSE_MM)))
    transform = ants.register(fixed, moving, kind="rigid", work_dir=work_dir / "head")
    inside = inner_head(fixed)
    if np.count_nonzero(inside.dataobj) >= _FEW:
        near = ants.register(
            fixed, moving, kind="rigid", work_dir=work_dir / "inside", fixed_mask=inside, initial=transform
        )
        apart = _moved(inside, ants.linear_matrix(transform), ants.linear_matrix(near))
        logger.debug("the inside of the head moves by %.1f mm", apart)
        transform = near if apart < ASTRAY_MM else transform
    data = np.asarray(image.dataobj)
    out = np.asarray(ants.apply(image, reference, transform, interpolation="bSpline").dataobj)
    return nib.Nifti1Image(np.clip(out, 0, float(data.max())), reference.affine), transform


def inner_head(image: Nifti1Image) -> Nifti1Image:
    """What lies more than `INSIDE_MM` below the surface of the head; where the volume cuts it there is no surface."""
    mask, shaved = np.asarray(head_mask(image).dataobj) > 0, 2  # voxels that the head mask loses at borders
    around = shaved + int(np.ceil(INSIDE_MM / COARSE_MM))
    core = mask[(slice(shaved, -shaved),) * 3]
    whole = np.pad(np.pad(core, around, mode="edge"), 1)
    deep = ndimage.distance_transform_edt(whole, sampling=voxel_sizes(image.affine)) > INSIDE_MM
    back = 1 + around - shaved
    return nib.Nifti1Image(deep[(slice(back, -back),) * 3].astype(np.float32), image.affine)


def _moved(mask: Nifti1Image, first: np.ndarray, second: np.ndarray) -> float:
    """Mean distance (mm) between where two matrices put the voxels of a mask."""
    places = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj)))
    difference = nib.affines.apply_affine(first, places) - nib.affines.apply_affine(second, places)
    return float(np.linalg.norm(difference, axis=1).mean())


def to_space(space: str, file: Path, *, work_dir: Path) -> Transform:
    """The transform that carries T2w images onto a standard space.

    Parameters
    ----------
    space : str
        ``MNI152NLin2009aSym`` or an installed TemplateFlow identifier; the latter is reached through a registration of
        the two templates.
    file : Path
        ``from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.h5``.
    """
    from bids_epvs.prepare import ants
    from bids_epvs.prepare.template import SPACE, icbm152, space_grid

    if space == SPACE:
        return Transform((file,), (), ())
    fixed = space_grid(space)
    fixed = _clipped(resample(fixed, iso_grid(fixed, COARSE_MM)))
    moving = _clipped(resample(icbm152("T1w"), iso_grid(icbm152("T1w"), COARSE_MM)))
    affine = ants.register(fixed, moving, kind="affine", work_dir=work_dir / "affine")
    warp = ants.register(
        fixed, moving, kind="deformable", work_dir=work_dir / "warp", initial=affine, iterations=(40, 20, 5)
    )
    return Transform((*warp.forward, file), (), ())
