"""The sequences of a session: corrected and aligned, in another process where there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image

from bids_epvs.prepare import bias, register
from bids_epvs.prepare.resample import canonical, canonical_to_world
from bids_epvs.records import SHOWING, Limit, Transform, reference_of, shown_in

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")


class Sequences:
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
        self.kept = {self.reference: put(work_dir / "reference.npz", canonical(native))}
        self.needed = shown_in({n: float(voxel_sizes(image.affine).max()) for n, image in images.items()}, limits)
        others = sorted((n for n in images if n != self.reference), key=[*self.needed, *images].index)
        self.kept |= {n: put(work_dir / n / "image.npz", in_frame(images[n], native)) for n in others}
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
        base = self.aligned[self.reference] = got(self.kept[self.reference])
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
            image = got(_own(self.kept[name]))
            image = nib.Nifti1Image(image.dataobj, back @ image.affine)
            yield self.by_tissues(image) if self.by_tissues else image

    def arrive(self, names: Sequence[str] | None = None) -> None:
        """Wait for some sequences, or for all."""
        for name in [n for n in (self.kept if names is None else names) if n not in self.aligned]:
            self._transform(name)
            image = got(self.kept[name])
            self.aligned[name] = self.by_tissues(image) if self.by_tissues else image

    def even_out(self, tissues: Nifti1Image, to_template: np.ndarray, degree: int = bias.DEGREE) -> None:
        """`bias.even` of all that has arrived, and of the others when they do, by the tissues that are known then."""
        self.by_tissues = partial(bias.even, tissues=tissues, to_template=to_template, degree=degree)
        self.aligned = {name: self.by_tissues(image) for name, image in self.aligned.items()}


def begun(helper: Executor | None, function: Callable[..., _Value], *given: Any) -> Future[_Value]:
    """What a function returns: soon, from the helper, or at once.

    What is handed over must be small: while ANTs runs here nothing can be sent to another process.
    """
    if helper:
        return helper.submit(function, *given)
    done: Future[_Value] = Future()
    done.set_result(function(*given))
    return done


def in_frame(image: Nifti1Image, native: Nifti1Image) -> Nifti1Image:
    """An image of the session, its affine carried into the canonical frame of the reference."""
    turned = nib.as_closest_canonical(image)
    affine = np.linalg.inv(canonical_to_world(native)) @ turned.affine
    return nib.Nifti1Image(np.ascontiguousarray(turned.dataobj), affine)


def put(path: Path, image: Nifti1Image) -> Path:
    """Keep an image for another process, with every digit of its affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, data=np.asarray(image.dataobj), affine=image.affine)
    return path


def got(path: Path) -> Nifti1Image:
    with np.load(path) as stored:
        return nib.Nifti1Image(stored["data"], stored["affine"])


def _correct(path: Path) -> float:
    """`bias.correct` of a kept image, in its place; how much the field varies."""
    image, variation = bias.correct(got(path))
    put(path, image)
    return variation


def _correct_and_align(path: Path, reference: Path) -> Transform:
    """`_correct` and `register.onto` of a kept image, in its place; the reference has been corrected.

    The corrected image stays beside it (`_own`).
    """
    _correct(path)
    path.replace(_own(path))
    moved, transform = register.onto(got(reference), got(_own(path)), work_dir=path.parent)
    put(path, moved)
    return transform


def _own(path: Path) -> Path:
    """Where a sequence is kept on the grid it was acquired on."""
    return path.with_name("own.npz")
