"""One session from checked images to `Prepared` and what belongs to it: the numbered steps of preparation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image

from bids_epvs.prepare import atlas, bias, brain, intensity, places, regions, register, structures
from bids_epvs.prepare.labels import mirrored
from bids_epvs.prepare.resample import canonical, canonical_to_world, face_areas, resample, voxel_spacing
from bids_epvs.records import SHOWING, Limit, Transform, reference_of, shown_in

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")
Parcellate = Callable[[Iterable[Nifti1Image], np.ndarray], structures.Parcels]
LOW_MARGIN = 1.1
LITTLE_BRAIN = 0.4
"""`Alignment.covered` below which a slab may be placed wrong though the margin is good."""
LOW_CONFIDENCE = 0.6
STRUCTURES = {
    "BasalGanglia": (11, 12, 13),
    "CentrumSemiovale": (2,),
    "Hippocampus": (17,),
    "Midbrain": (16,),
    "Thalamus": (10,),
    "OtherWhiteMatter": (2,),
}
"""Left structures whose confidence a region has (the least certain one counts)."""
SIDES = {"left": (0, 0), "right": (0, -1), "back": (1, 0), "front": (1, -1), "bottom": (2, 0), "top": (2, -1)}
"""Place of each face of a volume of the canonical frame in `face_areas`."""
CUT_MM2, PART_MM2 = 2000.0, 20.0
"""Area in a face of the volume from which the brain, or a region, is cut there."""
STRONG_BIAS = 2.5
ATLAS_SHOWING = {"T1w": SHOWING["T1w"]}
"""`SHOWING` where there is no network: how a FLAIR does with the atlas was not measured."""
LOW_CONTRAST = 8.0
"""Standard deviations of white matter between it and fluid, below which a T2w is called noisy; 15 is usual."""
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
    session = _Sequences(images, work_dir, helper, limits=limits)
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
    above = _heights(points, base, anatomy.brain, to_template)
    inside = regions.from_labels(anatomy.labels, spacing, to_template, above=above)
    slices = regions.rating_slices(anatomy.labels, spacing, _commissure(points, base))
    csf, level = _fluid(base, anatomy.labels, dark=reference != "T2w")
    first = noise_note(level) if reference == "T2w" else (NO_T2W.format(reference),)
    notes = (*first, *quality_notes(alignment, variation, anatomy, inside, spacing, sure))
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


class _Sequences:
    """The sequences of a session, bias-corrected and brought onto the grid of the reference.

    Work begins at once, in the other process where there is one: those first that the networks wait for.
    Anatomy is looked for in those that `records.shown_in` names with these `limits`: without any, in the reference.

    Attributes
    ----------
    aligned : dict
        Images that have arrived, by name; the reference first.
    transforms : dict
        Rigid transforms of those that are not the reference.
    astray : dict
        Sequences whose structures lie elsewhere than those of the reference: their `structures.Parcels.agreement`.
    """

    def __init__(
        self,
        images: Mapping[str, Nifti1Image],
        work_dir: Path,
        helper: Executor | None,
        *,
        limits: Mapping[str, Limit] = SHOWING,
    ) -> None:
        self.reference, self.helper, self.work_dir = reference_of(images), helper, work_dir
        native = images[self.reference]
        self.kept = {self.reference: _put(work_dir / "reference.npz", canonical(native))}
        self.needed = shown_in({n: float(voxel_sizes(image.affine).max()) for n, image in images.items()}, limits)
        others = sorted((n for n in images if n != self.reference), key=[*self.needed, *images].index)
        self.kept |= {n: _put(work_dir / n / "image.npz", in_frame(images[n], native)) for n in others}
        self.variation = begun(helper, _correct, self.kept[self.reference])
        if others:
            logger.info("preparation 2: %s to %s (rigid)", " and ".join(others), self.reference)
        self.coming = {n: begun(helper, _correct_and_align, self.kept[n], self.kept[self.reference]) for n in others}
        self.aligned: dict[str, Nifti1Image] = {}
        self.transforms: dict[str, Transform] = {}
        self.by_tissues: Callable[[Nifti1Image], Nifti1Image] | None = None
        self.astray: dict[str, float] = {}

    def first(self) -> tuple[Nifti1Image, float]:
        """The corrected reference and how much its field varies."""
        variation = self.variation.result()
        base = self.aligned[self.reference] = _got(self.kept[self.reference])
        return base, variation

    def _transform(self, name: str) -> Transform:
        """The transform of another sequence, waited for if need be."""
        if name in self.coming:
            self.transforms[name] = self.coming.pop(name).result()
        return self.transforms[name]

    def looked_at(self) -> list[str]:
        """The sequences in which anatomy is looked for, without those that are `astray`."""
        return [n for n in self.needed if n not in self.astray]

    def contrasts(self) -> list[Nifti1Image]:
        """The images in which anatomy is looked for, on the grid of the reference, without those that are `astray`."""
        found = self.looked_at()
        self.arrive(found)
        return [self.aligned[n] for n in found]

    def native(self) -> Iterator[Nifti1Image]:
        """The images in which anatomy is looked for, each as soon as it has arrived, on the grid it was acquired on.

        A T1w of 1 mm shows more than what is left of it on slices of 5 mm. Affines lead to where its alignment with
        the reference puts each image.
        """
        from bids_epvs.prepare import ants

        yield self.aligned[self.reference]
        for name in (n for n in self.needed if n != self.reference):
            back = np.linalg.inv(ants.linear_matrix(self._transform(name)))
            image = _got(_own(self.kept[name]))
            image = nib.Nifti1Image(image.dataobj, back @ image.affine)
            yield self.by_tissues(image) if self.by_tissues else image

    def arrive(self, names: Sequence[str] | None = None) -> None:
        """Wait for some sequences, or for all."""
        for name in [n for n in (self.kept if names is None else names) if n not in self.aligned]:
            self._transform(name)
            image = _got(self.kept[name])
            self.aligned[name] = self.by_tissues(image) if self.by_tissues else image

    def even_out(self, tissues: Nifti1Image, to_template: np.ndarray, degree: int = bias.DEGREE) -> None:
        """`bias.even` of all that has arrived, and of the others when they do, by the tissues that are known then."""
        self.by_tissues = partial(bias.even, tissues=tissues, to_template=to_template, degree=degree)
        self.aligned = {name: self.by_tissues(image) for name, image in self.aligned.items()}


def _by_network(
    session: _Sequences,
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
    kept = _put(session.work_dir / "structures" / "look.npz", look)
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


def _fluid(base: Nifti1Image, labels: np.ndarray, *, dark: bool) -> tuple[np.ndarray, intensity.Levels]:
    """Large fluid and the intensities it was found by; `dark`: fluid is dark in this sequence."""
    white, ventricles = np.isin(labels, (2, 41)), np.isin(labels, (4, 43))
    data = np.asarray(base.dataobj)
    data = intensity.inverted(data, white) if dark else data
    level = intensity.levels(data, white, ventricles)
    return intensity.large_fluid(data, labels, voxel_spacing(base), level), level


def begun(helper: Executor | None, function: Callable[..., _Value], *given: Any) -> Future[_Value]:
    """What a function returns: soon, from the helper, or at once.

    What is handed over must be small: while ANTs runs here nothing can be sent to another process.
    """
    if helper:
        return helper.submit(function, *given)
    done: Future[_Value] = Future()
    done.set_result(function(*given))
    return done


def _put(path: Path, image: Nifti1Image) -> Path:
    """Keep an image for another process, with every digit of its affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, data=np.asarray(image.dataobj), affine=image.affine)
    return path


def _got(path: Path) -> Nifti1Image:
    with np.load(path) as stored:
        return nib.Nifti1Image(stored["data"], stored["affine"])


def _correct(path: Path) -> float:
    """`bias.correct` of a kept image, in its place; how much the field varies."""
    image, variation = bias.correct(_got(path))
    _put(path, image)
    return variation


def _correct_and_align(path: Path, reference: Path) -> Transform:
    """`_correct` and `register.onto` of a kept image, in its place; the reference has been corrected.

    The corrected image stays beside it (`_own`).
    """
    _correct(path)
    path.replace(_own(path))
    moved, transform = register.onto(_got(reference), _got(_own(path)), work_dir=path.parent)
    _put(path, moved)
    return transform


def _own(path: Path) -> Path:
    """Where a sequence is kept on the grid it was acquired on."""
    return path.with_name("own.npz")


def _deform(look: Path) -> Transform:
    """`register.structures_onto_atlas` of kept structures."""
    looks = _got(look), atlas.head("structures", brain_only=True)
    return register.structures_onto_atlas(looks, work_dir=look.parent)


def confidence(parcels: structures.Parcels) -> dict[str, float]:
    """Least expected Dice of the structures of each region of each side (`STRUCTURES`), by full name."""
    each = parcels.expected_dice()
    out = {}
    for region in regions.REGIONS.values():
        left = STRUCTURES[region.name]
        out[region.full_name] = min(each[i if region.side == "Left" else mirrored(i)] for i in left)
    return out


def _heights(
    points: Nifti1Image, base: Nifti1Image, mask: np.ndarray, to_template: np.ndarray
) -> dict[str, np.ndarray]:
    """Height (mm) of each voxel above `regions.PLANES`, by the part of the brain that is near them."""
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    inside = np.asarray(resample(nib.Nifti1Image(mask.astype(np.uint8), base.affine), _grid(points), order=0).dataobj)
    out = {}
    for name, plane in regions.PLANES.items():
        near = places.affine_near(points, inside > 0, plane[0])
        out[name] = regions.heights(shape, to_template if near is None else near @ base.affine, plane)
    return out


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


def in_frame(image: Nifti1Image, native: Nifti1Image) -> Nifti1Image:
    """An image of the session, its affine carried into the canonical frame of the reference."""
    turned = nib.as_closest_canonical(image)
    affine = np.linalg.inv(canonical_to_world(native)) @ turned.affine
    return nib.Nifti1Image(np.ascontiguousarray(turned.dataobj), affine)


def noise_note(level: intensity.Levels) -> tuple[str, ...]:
    """A warning where fluid hardly stands out from the noise of white matter, by motion for example; else nothing."""
    contrast = (level.fluid - level.white) / max(level.noise, 1e-6)
    if contrast >= LOW_CONTRAST:
        return ()
    text = f"noisy, or moved: fluid is brighter than white matter by {contrast:.1f} standard deviations only"
    return (f"{text} (15 is usual): small EPVS cannot be seen",)


def quality_notes(
    alignment: register.Alignment,
    variation: float,
    anatomy: brain.Anatomy,
    found: np.ndarray,
    spacing: tuple[float, ...],
    sure: Mapping[str, float],
) -> tuple[str, ...]:
    """Warnings for the report, in words with numbers."""
    notes = []
    if alignment.stripped:
        notes.append("the scan looks skull-stripped already: brain that was cut off is not measured")
    if alignment.margin < LOW_MARGIN:
        text = (
            f"fits {alignment.margin:.2f} times as well as the best pose 15 mm or 20 degrees away; 1.2 to 2.7 is usual"
        )
        notes.append(f"template alignment is doubtful ({text}): check the regions")
    if alignment.covered < LITTLE_BRAIN:
        share = f"{100 * alignment.covered:.0f} % of the brain lies in the scan"
        notes.append(f"{share}: the regions of such slabs can be far off, check them")
    if variation > STRONG_BIAS:
        notes.append(f"strong intensity inhomogeneity (field ratio {variation:.1f})")
    volume = float(anatomy.brain.sum() * np.prod(spacing) / 1000)
    areas = face_areas(anatomy.brain, spacing)
    cut = [side for side, where in SIDES.items() if areas[where] > CUT_MM2]
    if volume > 2300 or (volume < 700 and not cut):
        notes.append(f"brain with fluid of {volume:.0f} mL is outside 700-2300 mL: check the brain mask")
    part = []
    for index, region in regions.REGIONS.items():
        own = found == index
        if not own.any():
            notes.append(f"{region.full_name} is not in the scan")
        elif sure.get(region.full_name, 1.0) < LOW_CONFIDENCE:
            notes.append(f"{region.full_name} is uncertain (expected Dice {sure[region.full_name]:.2f}): check it")
        if (face_areas(own, spacing) > PART_MM2).any():
            part.append(region.full_name)
    notes += [f"the scan cuts the brain at the {name}" for name in cut]
    if part:
        notes.append(f"the scan ends within a region, which is counted in part: {', '.join(part)}")
    return tuple(notes)
