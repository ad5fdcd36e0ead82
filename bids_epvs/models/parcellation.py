"""Brain, tissues and regions from one image of any contrast: a 3-D U-Net that refines the affinely aligned atlas.

The head is brought into the pose of the template (the affine of `prepare.register`) and sampled at 2 mm. One network
sees one half of it and a strip beyond the midline; right halves are mirrored, so left and right can never be
exchanged. It gets the intensities and the probabilities of the atlas at each voxel, and corrects the logarithm of the
latter.

The idea of training on simulated contrasts of real label maps is that of SynthSeg (Billot et al. 2023,
doi:10.1016/j.media.2023.102789).
"""

from __future__ import annotations

from collections.abc import Sequence
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
