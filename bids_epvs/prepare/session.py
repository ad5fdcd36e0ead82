"""One session from checked images to `Prepared` and what belongs to it: the numbered steps of preparation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.prepare import atlas, bias, brain, intensity, places, regions, register, structures
from bids_epvs.prepare.aqueduct import MIDDLE, aqueduct
from bids_epvs.prepare.quality import confidence, grain_note, noise_note, plane_note, quality_notes
from bids_epvs.prepare.resample import resample, voxel_spacing
from bids_epvs.prepare.sequences import Sequences, begun, got, in_frame, put
from bids_epvs.records import SHOWING, Limit, Transform, reference_of

logger = logging.getLogger(__name__)

Parcellate = Callable[[Iterable[Nifti1Image], np.ndarray], structures.Parcels]
ATLAS_SHOWING = {"T1w": SHOWING["T1w"]}
"""`SHOWING` where there is no network: how a FLAIR does with the atlas was not measured."""
ASTRAY = (
    "structures in the {0} lie elsewhere than in the {1} (mean Dice {2:.2f}): their alignment failed, or the {0} is "
    "unusual; it was not used for the regions, and methods that read it may err"
)
NO_T2W = "there is no T2w: EPVS are looked for on the {}, where far fewer can be seen and fewer of those found are EPVS"


@dataclass(frozen=True)
class Result:
    """What preparation found, all in the canonical frame of the reference.

    Attributes
    ----------
    images : mapping
        The reference (bias-corrected), and the other sequences on its grid; float32.
    anatomy : Anatomy
        Labels and brain mask.
    regions, csf : ndarray
        See `records.Prepared`.
    to_template : ndarray
        4 x 4, canonical voxels to ICBM152 mm (affine).
    slices : mapping
        See `records.Prepared`.
    transforms : mapping
        Rigid transform between the reference and each other sequence; its files live as long as the work directory.
    alignment : Alignment
    confidence : mapping
        Expected Dice of the structures of each region, by its full name; empty without a network.
    notes : tuple of str
        Quality warnings.
    looked_at : tuple of str
        Sequences from which the anatomy comes, the reference first; with a segmentation the reference, on whose grid it
        lies.
    """

    images: Mapping[str, Nifti1Image]
    anatomy: brain.Anatomy
    regions: np.ndarray
    csf: np.ndarray
    to_template: np.ndarray
    slices: Mapping[str, int]
    transforms: Mapping[str, Transform]
    alignment: register.Alignment
    confidence: Mapping[str, float]
    notes: tuple[str, ...]
    looked_at: tuple[str, ...]


def prepare(
    images: Mapping[str, Nifti1Image],
    *,
    work_dir: Path,
    registration: str = "deformable",
    segmentation: Nifti1Image | None = None,
    segmentation_space: str = "T2w",
    parcellate: Parcellate | None = None,
    outline: brain.Outline | None = None,
    helper: Executor | None = None,
    meanwhile: Callable[[], object] | None = None,
    settled: Callable[[register.Alignment], object] | None = None,
) -> Result:
    """Bias-correct, align, find brain, regions and fluid.

    Parameters
    ----------
    images : mapping
        At least one of `records.REFERENCES`, as loaded; the first of them is the reference: results lie on its grid.
    work_dir : Path
        For transform files.
    registration : {'deformable', 'affine'}
    segmentation : Nifti1Image, optional
        Anatomical labels that replace the atlas, in the world space of one of the images.
    segmentation_space : str
        The image whose world space that is.
    parcellate : callable, optional
        A network: images in the space of the reference, each on its own grid, and the affine to the template, to
        `structures.Parcels`; it replaces the atlas.
    outline : callable, optional
        With `parcellate`: a network that sharpens its answer on the grid of the scan; see `brain.from_parcels`.
    helper : Executor, optional
        One other process, which aligns the other sequences and the atlas meanwhile; results are the same.
    meanwhile : callable, optional
        With `helper`: what to do while it corrects the reference, such as loading networks.
    settled : callable, optional
        Told the alignment as soon as nothing changes it any more.
    """
    reference = reference_of(images)
    logger.info("preparation 1: bias field at %g mm", bias.COARSE_MM)
    limits: Mapping[str, Limit] = {} if segmentation is not None else SHOWING if parcellate else ATLAS_SHOWING
    session = Sequences(images, work_dir, helper, limits=limits)
    if helper and meanwhile:
        meanwhile()
    base, variation = session.first()
    kind = "affine" if parcellate and segmentation is None else registration
    logger.info("preparation 3: template to %s (%s)", reference, kind)
    alignment = register.template_to(base, kind=kind, work_dir=work_dir / "template")
    session.even_out(atlas.tissues(), alignment.to_template, bias.DEGREE_BY_ATLAS)
    logger.info("preparation 4: brain, tissues and labels")
    sure: Mapping[str, float] = {}
    if segmentation is not None:
        moved = in_frame(segmentation, images[reference])
        session.arrive()
        anatomy = brain.from_segmentation(moved, base, session.transforms.get(segmentation_space))
    elif parcellate:
        found = _by_network(session, alignment, parcellate, outline, deformable=registration == "deformable")
        anatomy, alignment, sure = found
    else:
        anatomy = brain.from_atlas(session.contrasts(), alignment)
    if settled:
        settled(alignment)
    base = session.aligned[reference]
    logger.info("preparation 5: regions and large fluid")
    spacing, to_template = voxel_spacing(base), alignment.to_template @ base.affine
    points = places.template_points(alignment, base)
    near = partial(_near, points, _covered(points, base, anatomy.brain), base, to_template)
    shape = (base.shape[0], base.shape[1], base.shape[2])
    above = {name: regions.heights(shape, near(plane[0]), plane) for name, plane in regions.PLANES.items()}
    inside = regions.from_labels(anatomy.labels, spacing, to_template, above=above)
    slices = regions.rating_slices(anatomy.labels, spacing, _commissure(points, base))
    data = _bright_fluid(base, anatomy.labels, dark=reference != "T2w")
    csf, level = _fluid(data, anatomy.labels, spacing)
    inside[aqueduct(data, inside, near(MIDDLE), spacing, level)] = 0
    notes = quality_notes(alignment, variation, anatomy, inside, spacing, sure)
    if reference == "T2w":
        notes = (*noise_note(level), *grain_note(data, inside, csf, spacing), *notes)
    else:
        notes = (NO_T2W.format(reference), *notes)
    notes = (*plane_note(spacing), *notes)
    notes += tuple(ASTRAY.format(name, reference, value) for name, value in session.astray.items())
    session.arrive()
    return Result(
        images=session.aligned,
        anatomy=anatomy,
        regions=inside,
        csf=csf,
        to_template=to_template,
        slices=slices,
        transforms=session.transforms,
        alignment=alignment,
        confidence=sure,
        notes=notes,
        looked_at=tuple(session.looked_at()),
    )


def _by_network(
    session: Sequences,
    alignment: register.Alignment,
    parcellate: Parcellate,
    outline: brain.Outline | None,
    *,
    deformable: bool,
) -> tuple[brain.Anatomy, register.Alignment, Mapping[str, float]]:
    """Anatomy from networks, the alignment with a deformation where wanted, and `confidence`."""
    parcels = parcellate(session.native(), alignment.to_template)
    each = dict(zip(session.needed, parcels.agreement, strict=False))
    session.astray = {name: value for name, value in each.items() if value < structures.AGREED}
    if not np.array_equal(parcels.to_template, alignment.to_template):
        logger.info("preparation 4: pose corrected by the structures that were found")
        base = session.aligned[session.reference]
        alignment = register.posed(base, alignment, parcels.to_template, work_dir=session.work_dir / "pose")
    if not deformable:
        session.even_out(structures.tissues(parcels), alignment.to_template)
        anatomy = brain.from_parcels(session.contrasts(), parcels, alignment.to_template, outline=outline)
        return anatomy, alignment, confidence(parcels)
    look = structures.look(parcels)
    kept = put(session.work_dir / "structures" / "look.npz", look)
    warp = begun(session.helper, _deform, kept)
    session.even_out(structures.tissues(parcels), alignment.to_template)
    anatomy = brain.from_parcels(
        session.contrasts(),
        parcels,
        alignment.to_template,
        outline=outline,
        within=lambda: structures.skull(warp.result(), look),
    )
    return anatomy, register.deformed(alignment, warp.result()), confidence(parcels)


def _bright_fluid(base: Nifti1Image, labels: np.ndarray, *, dark: bool) -> np.ndarray:
    """Intensities of the reference, turned over if fluid is `dark` in it."""
    data = np.asarray(base.dataobj)
    return intensity.inverted(data, np.isin(labels, (2, 41))) if dark else data


def _fluid(
    data: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, intensity.Levels]:
    """Large fluid and the intensities it was found by."""
    level = intensity.levels(data, np.isin(labels, (2, 41)), np.isin(labels, (4, 43)))
    return intensity.large_fluid(data, labels, spacing, level), level


def _deform(look: Path) -> Transform:
    """`register.structures_onto_atlas` of kept structures."""
    looks = got(look), atlas.head("structures", brain_only=True)
    return register.structures_onto_atlas(looks, work_dir=look.parent)


def _covered(points: Nifti1Image, base: Nifti1Image, mask: np.ndarray) -> np.ndarray:
    """A mask of the reference on the coarse grid of `places.template_points`."""
    return np.asarray(resample(nib.Nifti1Image(mask.astype(np.uint8), base.affine), _grid(points), order=0).dataobj) > 0


def _near(
    points: Nifti1Image, inside: np.ndarray, base: Nifti1Image, to_template: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """4 x 4, voxels to ICBM152 millimetres by the part of the brain near a place, or else as `to_template`."""
    near = places.affine_near(points, inside, place)
    return to_template if near is None else near @ base.affine


def _grid(image: Nifti1Image) -> Nifti1Image:
    """The first three axes of an image, without voxels."""
    return nib.Nifti1Image(np.broadcast_to(np.uint8(0), image.shape[:3]), image.affine)


def _commissure(points: Nifti1Image, base: Nifti1Image) -> float:
    """Height of the anterior commissure in slices of the T2w; -1 where the scan does not cover it."""
    distance = np.linalg.norm(np.asarray(points.dataobj) - regions.ANTERIOR_COMMISSURE, axis=-1)
    if not (distance < 4.0).any():
        return -1.0
    at = np.unravel_index(int(np.nanargmin(distance)), distance.shape)
    voxel = np.linalg.inv(base.affine) @ points.affine @ np.r_[at, 1.0]
    return float(voxel[2])
