"""What the parcellation network finds in each image of a head, the pose by what it finds, and the mean of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Image

from bids_epvs.models import parcellation
from bids_epvs.prepare import atlas
from bids_epvs.prepare.structures import AGREED, Parcels

if TYPE_CHECKING:
    import keras

LANDMARKS = (2, 41, 4, 43, 10, 49, 11, 50, 12, 51, 13, 52, 16, 17, 53, 18, 54, 28, 60, 3, 42, 8, 47)
"""Structures whose centres `pose_from` compares with those of the atlas."""
_FOUND, _FEWEST = 0.5, 12
"""Share of the atlas's volume that must be found of a structure, and number of such structures, to tell a pose."""
APART_MM, _POSES = 0.5, 3
"""Mean distance in the brain between two poses that calls for another look in the second one, and most such looks."""
_EXTENT = (2, 41, 3, 42, 8, 47)
"""White matter and cortex of cerebrum and cerebellum: where the brain ends."""
_MIDDLE_MM = np.array([0.0, -17.0, 4.0])
"""ICBM152 millimetres, between the thalami: what stays in place where a pose is shrunk to the grid."""
_OUTERMOST = 5e-4
"""Share of the brain's voxels, at each end of each axis, that do not tell where it ends."""
_SOME_VOXELS = 50
"""Voxels of a structure in two images together from which it is compared."""
UNSEEN = 0.02
"""Weight of an image in the mean of several where it does not reach."""


@cache
def prior_landmarks() -> np.ndarray:
    """Share of each of `LANDMARKS` at each voxel of `parcellation.grid` by the atlas, float32 (X, Y, Z, landmarks)."""
    return _landmarks(parcellation.merged(parcellation.priors(), parcellation.priors()))


def _landmarks(whole: np.ndarray) -> np.ndarray:
    """(X, Y, Z, landmarks) of `parcellation.merged` probabilities."""
    return _of(whole, LANDMARKS)


def _of(whole: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """(X, Y, Z, labels) of `parcellation.merged` probabilities."""
    return whole[..., [parcellation.outputs().index(i) for i in labels]]


def pose_from(whole: np.ndarray, seen: np.ndarray, to_template: np.ndarray) -> np.ndarray:
    """The affine under which the centres of `LANDMARKS` come nearest to those of the atlas (least squares).

    It stretches the brain along no axis so far that it would leave the grid.

    Parameters
    ----------
    whole : ndarray
        Probabilities of `parcellation.outputs` on `parcellation.grid`, found in the pose that is given.
    seen : ndarray of bool
        Voxels of `parcellation.grid` that were imaged; the others count neither here nor in the atlas.
    to_template : ndarray
        4 x 4, that pose: millimetres of the image to ICBM152 millimetres.

    Returns
    -------
    ndarray
        4 x 4; as given where fewer than `_FEWEST` structures were found.
    """
    (found, ours), (prior, theirs) = (_centres(v * seen[..., None]) for v in (_landmarks(whole), prior_landmarks()))
    enough = (found > _FOUND * prior_landmarks().sum(axis=(0, 1, 2))) & (prior > 0)
    if np.count_nonzero(enough) < _FEWEST:
        return to_template
    step = np.linalg.lstsq(ours[enough], theirs[enough], rcond=None)[0].T
    step[3] = [0, 0, 0, 1]
    return _within_grid(whole, step) @ step @ to_template


def _within_grid(whole: np.ndarray, step: np.ndarray) -> np.ndarray:
    """What shrinks a brain, moved by a step, along each axis along which it left the grid; 4 x 4, template mm.

    Where it reached as far before the step it may do so after it.
    """
    grid = parcellation.grid()
    brain = np.argwhere(_of(whole, _EXTENT).sum(axis=-1) > 0.5)
    if not len(brain):
        return np.eye(4)
    points = apply_affine(grid.affine, brain)
    ends = (_OUTERMOST, 1 - _OUTERMOST)
    before, after = (np.quantile(v, ends, axis=0) for v in (points, apply_affine(step, points)))
    corners = apply_affine(grid.affine, [np.ones(3), np.array(grid.shape[:3]) - 2])
    low, high = np.minimum(corners[0], before[0]), np.maximum(corners[1], before[1])
    room = np.stack([low, high] - _MIDDLE_MM) / (after - _MIDDLE_MM)
    factors = np.where(room > 0, np.minimum(room, 1), 1).min(axis=0)
    out = np.diag([*factors, 1.0])
    out[:3, 3] = (1 - factors) * _MIDDLE_MM
    return out


def _centres(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each volume of (X, Y, Z, volumes), and its centre of mass, template millimetres and a 1, (volumes, 4)."""
    along = [shares.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64) for axis in range(3)]
    total = along[0].sum(axis=0)
    at = [np.arange(len(profile)) @ profile / np.maximum(total, 1e-6) for profile in along]
    return total, np.column_stack([*at, np.ones(len(total))]) @ parcellation.grid().affine.T


class Look(NamedTuple):
    """What the network finds in one image.

    Attributes
    ----------
    to_template : ndarray
        4 x 4, millimetres of the image to ICBM152 millimetres: the pose in which it was looked at.
    fit : Fit
        Intensities of its tissues.
    sides : ndarray
        (2, HALF, Y, Z, classes), see `parcellation.seen_halves`.
    whole : ndarray
        Those, `parcellation.merged`.
    seen : ndarray of bool
        Voxels of `parcellation.grid` that were imaged.
    """

    to_template: np.ndarray
    fit: parcellation.Fit
    sides: np.ndarray
    whole: np.ndarray
    seen: np.ndarray


def look(image: Nifti1Image, to_template: np.ndarray, model: keras.Model) -> Look:
    """What the network finds in an image in a pose that is given."""
    values = parcellation.on_grid(image, to_template, parcellation.grid())
    fit = parcellation.fitted(values)
    sides = parcellation.seen_halves(model, parcellation.likened(values, fit))
    return Look(to_template, fit, sides, parcellation.merged(*sides), values > 0)


def look_for_pose(image: Nifti1Image, to_template: np.ndarray, model: keras.Model) -> Look:
    """`look` in a pose that is corrected by where the structures lie (`pose_from`).

    Registration of intensities is off by a few millimetres in most heads, and goes wrong now and then, more often
    where the skull is gone or the contrast is unlike the template's, but seldom by so much that the network loses the
    structures. It looks again where they lie, as long as that makes it surer (`Parcels.expected_dice`).
    """
    found = look(image, to_template, model)
    sure = _sure(found.whole)
    for _ in range(_POSES):
        other = pose_from(found.whole, found.seen, found.to_template)
        if apart(other, found.to_template) < APART_MM:
            break
        again = look(image, other, model)
        now = _sure(again.whole)
        if now <= sure:
            break
        found, sure = again, now
    return found


def agreement(first: Look, other: Look) -> float:
    """Mean Dice of `LANDMARKS` found in two images, where both were imaged; 0 where there is nothing to compare."""
    both = first.seen & other.seen
    one, two = (_landmarks(found.whole)[both] for found in (first, other))
    total = one.sum(axis=0) + two.sum(axis=0)
    there = total > _SOME_VOXELS
    return float(np.mean(2 * np.minimum(one, two).sum(axis=0)[there] / total[there])) if there.any() else 0.0


def each(
    images: Iterable[Nifti1Image], to_template: np.ndarray, model: keras.Model
) -> Iterator[tuple[Nifti1Image, Look]]:
    """Each image, and what is found in it; the first one tells the pose of all (`look_for_pose`)."""
    for number, image in enumerate(images):
        found = look(image, to_template, model) if number else look_for_pose(image, to_template, model)
        to_template = found.to_template
        yield image, found


def agreeing(found: Sequence[Look]) -> tuple[tuple[float, ...], list[int]]:
    """`agreement` of each image with the first, and the numbers of those that are used.

    Raises
    ------
    ValueError
        There is none.
    """
    if not found:
        raise ValueError("expected at least one image, received none")
    agreed = (1.0, *(agreement(found[0], other) for other in found[1:]))
    return agreed, [k for k, value in enumerate(agreed) if value >= AGREED]


def apart(first: np.ndarray, second: np.ndarray) -> float:
    """Mean distance (template mm) in the brain between where two affines to the template bring the same place."""
    step = first @ np.linalg.inv(second)
    points, _ = atlas.tissue_points()
    return float(np.linalg.norm(points @ (step[:3, :3] - np.eye(3)).T + step[:3, 3], axis=1).mean())


def _sure(whole: np.ndarray) -> float:
    """Mean expected Dice of all structures."""
    parcels = Parcels(nib.Nifti1Image(whole, parcellation.grid().affine), parcellation.outputs())
    return float(np.mean(list(parcels.expected_dice().values())))


def predict(images: Iterable[Nifti1Image], to_template: np.ndarray, *, model: keras.Model | None = None) -> Parcels:
    """Structures of a head from one or several images of it, by this network alone.

    Parameters
    ----------
    images : iterable of Nifti1Image
        At least one; bias-corrected, on grids of their own in one space; their probabilities are averaged. One in which
        structures lie elsewhere than in the first is left out (`AGREED`).
    to_template : ndarray
        4 x 4, millimetres of the images to ICBM152 millimetres (affine); see `look_for_pose`.
    model : keras.Model, optional
        By default the packaged one.
    """
    model = model or parcellation.network()
    found = [one for _, one in each(images, to_template, model)]
    agreed, used = agreeing(found)
    whole = averaged([found[k].whole for k in used], [found[k].seen for k in used])
    clean = parcellation.without_islands(whole, parcellation.outputs())
    image = nib.Nifti1Image(clean, parcellation.grid().affine)
    return Parcels(image, parcellation.outputs(), to_template=found[0].to_template, agreement=agreed)


def averaged(volumes: Sequence[np.ndarray], seen: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of what was found in one or several images, float32 (X, Y, Z, labels).

    Parameters
    ----------
    volumes : sequence of ndarray
        (X, Y, Z, labels).
    seen : sequence of ndarray of bool
        Voxels that each image covers, (X, Y, Z). Where some do and others do not, those that do are asked (the others
        count with `UNSEEN`, since what they say there is little more than the atlas).
    """
    if len(volumes) == 1:
        return volumes[0]
    weights = [np.where(own, np.float32(1), np.float32(UNSEEN))[..., None] for own in seen]
    total = volumes[0] * weights[0]
    for volume, weight in zip(volumes[1:], weights[1:], strict=True):
        total += volume * weight
    total /= np.sum(weights, axis=0)
    return total
