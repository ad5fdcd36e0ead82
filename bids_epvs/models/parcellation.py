"""Brain, tissues and regions from one image of any contrast: a 3-D U-Net that refines the affinely aligned atlas.

The head is brought into the pose of the template (the affine of `prepare.register`) and sampled at 2 mm. One network
sees one half of it and a strip beyond the midline; right halves are mirrored, so left and right can never be
exchanged. It gets the intensities and the probabilities of the atlas at each voxel, and corrects the logarithm of the
latter.

The idea of training on simulated contrasts of real label maps is that of SynthSeg (Billot et al. 2023,
doi:10.1016/j.media.2023.102789).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.models import weights
from bids_epvs.models.spec import Weights
from bids_epvs.prepare import atlas
from bids_epvs.prepare.brain import AGREED, Parcels
from bids_epvs.prepare.labels import ATLAS_LABELS, mirrored
from bids_epvs.prepare.resample import resample

if TYPE_CHECKING:
    import keras

NAME = "parcellation"
"""Name on the command line (``--weights parcellation=FILE``)."""
WEIGHTS = Weights(
    file="parcellation.npz",
    sha256="e3488a8a47a7ef98871ffbc1fb3a7a7cf070ac4ffdc0ed4e24e2758d0f1c8715",
    licence="Apache-2.0",
    trained_on="simulated images of twelve label maps (see parcellation.json beside the weights)",
)
SPACING_MM = 2.0
SHAPE = (80, 96, 80)
"""Voxels of the whole grid along R, A, S."""
HALF = 48
"""Voxels of a half along R: its own 40 and 8 beyond the midline."""
ORIGIN_MM = (-79.0, -112.0, -75.0)
"""Centre of the first voxel in template millimetres; the grid is symmetric about x = 0."""
RIGHT = 32
"""Added to a class's number for the right side, where both sides are stored together."""


class Structure(NamedTuple):
    """One class of the network.

    Attributes
    ----------
    name : str
    labels : tuple of int
        FreeSurfer indices it is trained on, left side or midline; the first is what it becomes.
    midline : bool
        Whether both halves share it.
    """

    name: str
    labels: tuple[int, ...]
    midline: bool = False


CLASSES = (
    Structure("Background", (), midline=True),
    Structure("CerebralWhiteMatter", (2,)),
    Structure("CerebralCortex", (3,)),
    Structure("LateralVentricle", (4,)),
    Structure("OtherCSF", (24, 14, 15), midline=True),
    Structure("Caudate", (11,)),
    Structure("Putamen", (12,)),
    Structure("Pallidum", (13,)),
    Structure("Accumbens", (26,)),
    Structure("Thalamus", (10,)),
    Structure("VentralDC", (28,)),
    Structure("Hippocampus", (17,)),
    Structure("Amygdala", (18,)),
    Structure("Brainstem", (16,), midline=True),
    Structure("Cerebellum", (8, 7)),
    Structure("WhiteMatterLesion", (25,)),
    Structure("OtherSide", ()),
)
"""What the network tells apart in a left half; the last class is every paired structure of the right side."""
NAMES = tuple(c.name for c in CLASSES)
CONTRASTS = ("T2w", "T1w", "FLAIR", "random")
"""Images of a training example."""
SHARES = (0.4, 0.25, 0.25, 0.1)
"""How often each of them is drawn in training."""
GAMMA = 0.2
"""Standard deviation of the logarithm of the exponent that intensities are raised to in training."""
OTHER_SIDE = len(CLASSES) - 1
_LESION_RIGHT = 57


def grid() -> Nifti1Image:
    """The whole grid in template space (no voxels)."""
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = ORIGIN_MM
    return nib.Nifti1Image(np.broadcast_to(np.uint8(0), SHAPE), affine)


@cache
def codes() -> np.ndarray:
    """FreeSurfer index -> class number, plus `RIGHT` for the paired structures of the right side (uint8, 1024)."""
    table = np.zeros(1024, np.uint8)
    for number, structure in enumerate(CLASSES):
        for index in structure.labels:
            table[index] = number
            if not structure.midline:
                table[_LESION_RIGHT if index == 25 else mirrored(index)] = number + RIGHT
    return table


def halves(volume: np.ndarray) -> np.ndarray:
    """Left half and mirrored right half of an array on the grid (or a multiple of it), (2, HALF, Y, Z, ...)."""
    n = HALF * volume.shape[0] // SHAPE[0]
    return np.stack([volume[:n], volume[::-1][:n]])


def half_codes(stored: np.ndarray) -> np.ndarray:
    """Class numbers of both halves from sided codes (see `codes`), uint8 (2, ...)."""
    left, right = halves(stored)
    own = np.where(left >= RIGHT, OTHER_SIDE, left)
    shared = np.isin(right, [k for k, c in enumerate(CLASSES) if c.midline])
    swapped = np.where(right >= RIGHT, right - RIGHT, np.where(shared, right, OTHER_SIDE))
    return np.stack([own, swapped]).astype(np.uint8)


@cache
def priors() -> np.ndarray:
    """Probability of each class in a left half from the atlas, float32 (HALF, Y, Z, classes), sums to 1."""
    source = atlas.probabilities()
    data = np.asarray(source.dataobj)
    code = codes()[list(ATLAS_LABELS)]
    near = nib.Nifti1Image(np.broadcast_to(np.uint8(0), (HALF, *SHAPE[1:])), grid().affine)
    half = np.zeros((HALF, *SHAPE[1:], len(CLASSES)), np.float32)
    for number in range(1, len(CLASSES)):
        own = data[..., code >= RIGHT if number == OTHER_SIDE else code == number]
        if own.shape[-1]:
            volume = nib.Nifti1Image(own.sum(axis=-1, dtype=np.float32) / 255, source.affine)
            half[..., number] = np.asarray(resample(volume, near).dataobj)
    half[..., 0] = np.maximum(0, 1 - half[..., 1:].sum(axis=-1))
    return half / half.sum(axis=-1, keepdims=True)


TISSUES = {
    "CSF": ("LateralVentricle", "OtherCSF"),
    "GM": ("CerebralCortex", "Hippocampus", "Amygdala"),
    "WM": ("CerebralWhiteMatter", "Brainstem"),
    "DGM": ("Caudate", "Putamen", "Thalamus"),
}
"""Classes whose intensities are taken to be the same."""
CHANNELS = 1 + len(TISSUES)


@cache
def tissue_priors() -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the grid that are most likely brain (mask), and there the share of each of `TISSUES` (n, tissues)."""
    half = priors()[: SHAPE[0] // 2]
    shares = [half[..., [NAMES.index(n) for n in names]].sum(axis=-1) for names in TISSUES.values()]
    whole = np.stack(shares, axis=-1)
    whole = np.concatenate([whole, whole[::-1]])
    mask = whole.sum(axis=-1) > 0.7
    inside = np.maximum(whole[mask], 1e-3)
    return mask, inside / inside.sum(axis=1, keepdims=True)


def evidence(image: Nifti1Image, to_template: np.ndarray) -> np.ndarray:
    """What the network sees of an image: intensity, and how well each voxel fits each tissue.

    Intensities of the tissues are found by expectation maximisation with the atlas's priors, so that the last channels
    mean the same in every contrast.

    Parameters
    ----------
    image : Nifti1Image
        Any contrast and resolution.
    to_template : ndarray
        4 x 4, millimetres of the image to ICBM152 millimetres.

    Returns
    -------
    ndarray of float32
        (*SHAPE, CHANNELS): intensity over the 99th percentile of the brain, halved and at most 1; then shares of the
        likelihood of each of `TISSUES`, which sum to 1. All 0 where there is no scan.
    """
    values = on_grid(image, to_template, grid())
    return likened(values, fitted(values))


def on_grid(image: Nifti1Image, to_template: np.ndarray, target: Nifti1Image) -> np.ndarray:
    """Intensities of an image on a grid in template space; see `evidence`."""
    there = nib.Nifti1Image(target.dataobj, np.linalg.inv(to_template) @ target.affine)
    return np.asarray(resample(image, there).dataobj)


class Fit(NamedTuple):
    """Intensities of the brain of one image.

    Attributes
    ----------
    top : float
        99th percentile.
    mean, variance : ndarray
        Of each of `TISSUES`, in shares of `top`.
    """

    top: float
    mean: np.ndarray
    variance: np.ndarray


def fitted(values: np.ndarray) -> Fit:
    """Intensities of the tissues of an image that is on the grid."""
    mask, prior = tissue_priors()
    seen = values[mask] > 0
    inside = values[mask][seen]
    top = max(float(np.percentile(inside, 99)) if inside.size else 1.0, 1e-6)
    return Fit(top, *levels(np.clip(inside / top, 0, 2), prior[seen]))


def likened(values: np.ndarray, fit: Fit) -> np.ndarray:
    """`evidence` of intensities on any grid."""
    out = np.zeros((*values.shape, CHANNELS), np.float32)
    scaled = np.clip(values / fit.top, 0, 2)
    out[..., 0] = scaled / 2
    log = -0.25 * (scaled[..., None] - fit.mean.astype(np.float32)) ** 2 / fit.variance.astype(np.float32)
    out[..., 1:] = softmax(log) * (values > 0)[..., None]
    return out


def levels(values: np.ndarray, prior: np.ndarray, *, iterations: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each tissue: a mixture of Gaussians with mixing shares given at each sample.

    Parameters
    ----------
    values : ndarray
        (n,), scaled to about 0-1.
    prior : ndarray
        (n, tissues), rows sum to 1.
    iterations : int
    """
    values = values.astype(np.float64)
    shares = np.ascontiguousarray(prior.T, np.float64)  # tissues first: sums over them are several times as fast
    weight = shares**2
    for _ in range(iterations):
        total = np.maximum(weight.sum(axis=1), 1e-6)
        mean = weight @ values / total
        away = np.square(values - mean[:, None])
        variance = np.einsum("tn,tn->t", weight, away) / total + 0.02**2
        weight = np.exp(away / (-2 * variance[:, None]))
        weight /= np.sqrt(variance)[:, None]
        weight += 1e-12
        weight *= shares
        weight /= weight.sum(axis=0)
    return mean, variance


ISLAND_FROM = 0.2
WIDTHS = (24, 48, 96, 128)
_FLOOR = 0.02
"""Least probability of a class in the atlas, so that the network can overrule it."""


def build(widths: tuple[int, ...] = WIDTHS, shape: tuple[int, ...] = (HALF, *SHAPE[1:]), sharp: int = 0) -> keras.Model:
    """The network: evidence (batch, X, Y, Z, channels) and priors (batch, X, Y, Z, classes) to logits.

    Blocks of 2 x 2 x 2 voxels become channels, so that the convolutions run at 4 mm; the answer is at 2 mm, where
    `sharp` filters take a last look. Before training it repeats the atlas: its last layers start at zero and are added
    to the logarithm of the priors.

    Parameters
    ----------
    widths : tuple of int
        Filters of each level, finest (4 mm) first.
    shape : tuple of int
        Of the grid; sides divisible by ``2 ** len(widths)``.
    sharp : int
        Filters at 2 mm; 0: none.
    """
    import keras
    from keras import layers, ops

    from bids_epvs.models import blocks

    seen = keras.Input((*shape, CHANNELS), name="evidence")
    prior = keras.Input((*shape, len(CLASSES)), name="prior")
    x = layers.Concatenate()([blocks.space_to_depth(seen), layers.AveragePooling3D(2)(prior)])
    x = blocks.unet(x, widths)
    change = blocks.depth_to_space(layers.Conv3D(8 * len(CLASSES), 1, kernel_initializer="zeros")(x))
    if sharp:
        near = layers.Concatenate()([seen, blocks.depth_to_space(layers.Conv3D(8 * sharp, 1)(x))])
        near = blocks.convolve(blocks.convolve(near, sharp), sharp)
        change = change + layers.Conv3D(len(CLASSES), 1, kernel_initializer="zeros")(near)
    logits = layers.Add()([change, ops.log(prior + _FLOOR)])
    return keras.Model([seen, prior], logits, name="parcellation")


def outputs() -> tuple[int, ...]:
    """FreeSurfer index of each volume of `Parcels`: left, right, next structure; lesions are white matter."""
    out: list[int] = []
    for structure in CLASSES[1:OTHER_SIDE]:
        index = structure.labels[0]
        if index != 25:
            out += [index] if structure.midline else [index, mirrored(index)]
    return tuple(out)


def merged(left: np.ndarray, right: np.ndarray, width: int = SHAPE[0]) -> np.ndarray:
    """Probabilities of both halves, the right one mirrored, as `Parcels` stores them: (width, Y, Z, labels), float32.

    Where the halves overlap, paired structures come from their own half and midline structures from the mean.

    Parameters
    ----------
    left, right : ndarray
        (half, Y, Z, classes).
    width : int
        Voxels along R; the halves begin at its two ends.
    """
    labels = outputs()
    half = len(left)
    out = np.zeros((width, *left.shape[1:3], len(labels)), np.float32)
    seen = np.zeros((width, 1, 1), np.float32)
    seen[:half] += 1
    seen[-half:] += 1
    background = np.zeros(out.shape[:3], np.float32)
    sides = (out, background), (out[::-1], background[::-1])
    for own, found, (side, rest) in zip((True, False), (left, right), sides, strict=True):
        rest[:half] += found[..., 0]
        for k, structure in enumerate(CLASSES[1:OTHER_SIDE], start=1):
            index = 2 if structure.name == "WhiteMatterLesion" else structure.labels[0]
            column = index if structure.midline or own else mirrored(index)
            side[:half, ..., labels.index(column)] += found[..., k]
    for structure in CLASSES[1:OTHER_SIDE]:
        if structure.midline:
            out[..., labels.index(structure.labels[0])] /= seen
    total = np.maximum(background / seen + out.sum(axis=-1), 1e-6)
    out /= total[..., None]
    return out


def without_islands(probability: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Probabilities without small pieces of compact structures, what they held given to the others at that place.

    A piece is a set of touching voxels where a structure has at least `ISLAND_FROM`; it goes when it has less than a
    tenth of the voxels of the largest one. White matter, cortex and fluid may lie in many pieces.
    """
    out = probability.copy()
    for k, label in enumerate(labels):
        if label in (2, 41, 3, 42, 24):
            continue
        pieces, n = ndimage.label(probability[..., k] >= ISLAND_FROM, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=n + 1)
        sizes[0] = 0
        small = np.flatnonzero(sizes < 0.1 * sizes.max(initial=0))
        out[..., k][np.isin(pieces, small[small > 0])] = 0
    before, after = probability.sum(axis=-1), out.sum(axis=-1)
    return out * np.where(after > 1e-3, before / np.maximum(after, 1e-3), 1)[..., None].astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float32."""
    out = logits - logits.max(axis=-1, keepdims=True)
    np.exp(out, out=out)
    out /= out.sum(axis=-1, keepdims=True)
    return out


@cache
def network(file: Path | None = None) -> keras.Model:
    """The network with its packaged weights, or others; see `weights.restored`."""
    what = "the network that finds brain and regions"
    return weights.restored(build, WEIGHTS, file, what=what, instead="use --regions-from atlas")[0]


def seen_halves(model: keras.Model, seen: np.ndarray) -> np.ndarray:
    """Probabilities of each half (2, HALF, Y, Z, classes) from the evidence on the grid."""
    prior = priors()[None]
    each = [softmax(np.asarray(model.predict_on_batch([half[None], prior]))[0]) for half in halves(seen)]
    return np.stack(each)


LANDMARKS = (2, 41, 4, 43, 10, 49, 11, 50, 12, 51, 13, 52, 16, 17, 53, 18, 54, 28, 60, 3, 42, 8, 47)
"""Structures whose centres `pose_from` compares with those of the atlas."""
_FOUND, _FEWEST = 0.5, 12
"""Share of the atlas's volume that must be found of a structure, and number of such structures, to tell a pose."""
FAR_MM, _POSES = 7.0, 3
"""Mean distance in the brain between two poses that calls for another look in the second one, and most such looks."""


_SOME_VOXELS = 50
"""Voxels of a structure in two images together from which it is compared."""
UNSEEN = 0.02
"""Weight of an image in the mean of several where it does not reach."""


@cache
def prior_landmarks() -> np.ndarray:
    """Share of each of `LANDMARKS` at each voxel of `grid` by the atlas, float32 (X, Y, Z, landmarks)."""
    return _landmarks(merged(priors(), priors()))


def _landmarks(whole: np.ndarray) -> np.ndarray:
    """(X, Y, Z, landmarks) of `merged` probabilities."""
    return whole[..., [outputs().index(i) for i in LANDMARKS]]


def pose_from(whole: np.ndarray, seen: np.ndarray, to_template: np.ndarray) -> np.ndarray:
    """The affine under which the centres of `LANDMARKS` come nearest to those of the atlas (least squares).

    Parameters
    ----------
    whole : ndarray
        Probabilities of `outputs` on `grid`, found in the pose that is given.
    seen : ndarray of bool
        Voxels of `grid` that were imaged; the others count neither here nor in the atlas.
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
    return step @ to_template


def _centres(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each volume of (X, Y, Z, volumes), and its centre of mass, template millimetres and a 1, (volumes, 4)."""
    along = [shares.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64) for axis in range(3)]
    total = along[0].sum(axis=0)
    at = [np.arange(len(profile)) @ profile / np.maximum(total, 1e-6) for profile in along]
    return total, np.column_stack([*at, np.ones(len(total))]) @ grid().affine.T


class Look(NamedTuple):
    """What the network finds in one image.

    Attributes
    ----------
    to_template : ndarray
        4 x 4, millimetres of the image to ICBM152 millimetres: the pose in which it was looked at.
    fit : Fit
        Intensities of its tissues.
    sides : ndarray
        (2, HALF, Y, Z, classes), see `seen_halves`.
    whole : ndarray
        Those, `merged`.
    seen : ndarray of bool
        Voxels of `grid` that were imaged.
    """

    to_template: np.ndarray
    fit: Fit
    sides: np.ndarray
    whole: np.ndarray
    seen: np.ndarray


def look(image: Nifti1Image, to_template: np.ndarray, model: keras.Model) -> Look:
    """What the network finds in an image in a pose that is given."""
    values = on_grid(image, to_template, grid())
    fit = fitted(values)
    sides = seen_halves(model, likened(values, fit))
    return Look(to_template, fit, sides, merged(*sides), values > 0)


def look_for_pose(image: Nifti1Image, to_template: np.ndarray, model: keras.Model) -> Look:
    """`look` in a pose that is corrected where the structures lie far from those of the atlas.

    Registration of intensities goes wrong now and then, more often where the skull is gone or the contrast is unlike
    the template's, but seldom by so much that the network loses the structures. It looks again where they lie, as
    long as that makes it surer (`Parcels.expected_dice`).
    """
    found = look(image, to_template, model)
    for _ in range(_POSES):
        other = pose_from(found.whole, found.seen, found.to_template)
        if apart(other, found.to_template) < FAR_MM:
            break
        again = look(image, other, model)
        if _sure(again.whole) <= _sure(found.whole):
            break
        found = again
    return found


def agreement(first: Look, other: Look) -> float:
    """Mean Dice of `LANDMARKS` found in two images, where both were imaged; 0 where there is nothing to compare."""
    both = first.seen & other.seen
    one, two = (_landmarks(found.whole)[both] for found in (first, other))
    total = one.sum(axis=0) + two.sum(axis=0)
    there = total > _SOME_VOXELS
    return float(np.mean(2 * np.minimum(one, two).sum(axis=0)[there] / total[there])) if there.any() else 0.0


def looks(
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
    each = (1.0, *(agreement(found[0], other) for other in found[1:]))
    return each, [k for k, value in enumerate(each) if value >= AGREED]


def apart(first: np.ndarray, second: np.ndarray) -> float:
    """Mean distance (template mm) in the brain between where two affines to the template bring the same place."""
    step = first @ np.linalg.inv(second)
    points, _ = atlas.tissue_points()
    return float(np.linalg.norm(points @ (step[:3, :3] - np.eye(3)).T + step[:3, 3], axis=1).mean())


def _sure(whole: np.ndarray) -> float:
    """Mean expected Dice of all structures."""
    return float(np.mean(list(Parcels(nib.Nifti1Image(whole, grid().affine), outputs()).expected_dice().values())))


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
    model = model or network()
    found = [each for _, each in looks(images, to_template, model)]
    agreed, used = agreeing(found)
    clean = without_islands(averaged([found[k].whole for k in used], [found[k].seen for k in used]), outputs())
    image = nib.Nifti1Image(clean, grid().affine)
    return Parcels(image, outputs(), to_template=found[0].to_template, agreement=agreed)


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
