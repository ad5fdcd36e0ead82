"""A last look at scans of thick slices: a 2-D U-Net draws the borders of structures in the plane of the slices.

`models.parcellation` and `models.nuclei` know a head on a grid of 2 mm in the pose of the template; a slice of 4 mm
with pixels of 0.5 mm shows more within its plane and less across it. This network sees each slice as it was acquired
(pixels of 1 mm), its neighbours and what is known so far, whose logarithm it corrects. It does not know left from
right: the side of a structure is the one it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image

from bids_epvs.models import parcellation, weights
from bids_epvs.models.spec import Weights
from bids_epvs.prepare import resample
from bids_epvs.prepare.labels import ATLAS_LABELS, mirrored
from bids_epvs.prepare.resample import bounding_box

if TYPE_CHECKING:
    import keras

NAME = "slices"
"""Name on the command line (``--weights slices=FILE``)."""
WEIGHTS = Weights(
    file="slices.npz",
    sha256="97b694a6caaa5de1980483114c408343c7d9d47a497aeb8e7303b80ec74d7bfe",
    licence="Apache-2.0",
    trained_on="simulated images of twelve label maps (see slices.json beside the weights)",
    own={
        "FLAIR": Weights(
            file="slices_flair.npz",
            sha256="2b9f145d2b0b3171444b428fe5067662551c4f309b37440745915e2568e729f9",
            licence="Apache-2.0",
            trained_on="simulated FLAIR of twelve label maps (see slices_flair.json beside the weights)",
        ),
    },
)
CLASSES = parcellation.NAMES[: parcellation.OTHER_SIDE]
"""What the network tells apart, sides together."""
CHANNELS = parcellation.CHANNELS + 3
"""Evidence of a slice, intensities of the slices below and above, and their distance."""
THICK_MM = 2.0
"""Least distance of slices for which there is this look."""
WIDTHS = (16, 32, 64, 96)
MARGIN = 6
"""Pixels around what may be brain."""
_FLOOR = 0.01
"""Least probability of what is known, so that it can be overruled."""
ODDS = {"CerebralCortex": 0.9, "Hippocampus": 0.7}
"""By how much what the network says of a class is multiplied: its soft Dice makes structures with blurred borders too
likely. Eighteen scans of heads 12 and 17 (0.5 x 0.5 x 5 mm, a script that is not in the project), pixels of the work
grid: the volume of the cortex was 1.06 of the true one, now 1.02, of white matter 0.98 and 1.00, of the hippocampus
1.19 and 1.08; Dice 0.825 and 0.822, 0.882 and 0.883, 0.810 and 0.815. 0.7 for the accumbens, and factors for other
nuclei, gained 0.002 or less; 0.5 for the amygdala gained 0.015 there and lost 0.01 on heads 05 and 20."""
_UNSURE = 0.02
"""How much the side of all structures at a place counts where the structure itself was not expected."""


def across(grid: Nifti1Image) -> int:
    """`resample.across` of a grid."""
    return resample.across(voxel_sizes(grid.affine))


def thick(grid: Nifti1Image) -> bool:
    """Whether the slices of a grid lie far enough apart for this look."""
    return bool(voxel_sizes(grid.affine)[across(grid)] >= THICK_MM)


@cache
def columns() -> tuple[tuple[int, ...], ...]:
    """Volumes of `ATLAS_LABELS` that are a class: one, or left and right; none for background and lesions."""
    labels = list(ATLAS_LABELS)
    out: list[tuple[int, ...]] = []
    for structure in parcellation.CLASSES[: parcellation.OTHER_SIDE]:
        index = structure.labels[0] if structure.labels else 0
        if index in parcellation.outputs():
            sides = (index,) if structure.midline else (index, mirrored(index))
            out.append(tuple(labels.index(i) for i in sides))
        else:
            out.append(())
    return tuple(out)


def known_classes(prior: np.ndarray) -> np.ndarray:
    """Probability of each of `CLASSES` from that of each of `ATLAS_LABELS` on the last axis; sums to 1, float32.

    Labels that `parcellation.outputs` does not name count as background.
    """
    members = np.zeros((prior.shape[-1], len(CLASSES)), np.float32)
    for k, volumes in enumerate(columns()):
        members[list(volumes), k] = 1
    out = prior.astype(np.float32, copy=False) @ members
    out[..., 0] = np.maximum(0, 1 - out[..., 1:].sum(axis=-1))
    out /= out.sum(axis=-1, keepdims=True)
    return out


def sided(found: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probability of each of `ATLAS_LABELS`: classes (..., CLASSES) divided between sides as in `prior`; float32.

    Lesions are white matter.
    """
    left, right = np.full(prior.shape[:-1], 1e-6, np.float32), np.full(prior.shape[:-1], 1e-6, np.float32)
    pairs = [volumes for volumes in columns() if len(volumes) == 2]
    for first, second in pairs:
        left += prior[..., first]
        right += prior[..., second]
    lean = left / (left + right)
    out = np.zeros(prior.shape, np.float32)
    for k, volumes in enumerate(columns()):
        own = found[..., k]
        if CLASSES[k] == "CerebralWhiteMatter":
            own = own + found[..., CLASSES.index("WhiteMatterLesion")]
        if len(volumes) == 1:
            out[..., volumes[0]] = own
        elif volumes:
            a, b = (prior[..., v] for v in volumes)
            share = (a + _UNSURE * lean) / (a + b + _UNSURE)
            out[..., volumes[0]] = own * share
            out[..., volumes[1]] = own * (1 - share)
    return out


def fitted(values: np.ndarray, known: np.ndarray) -> parcellation.Fit:
    """Intensities of the tissues of an image, by what is known at each voxel (..., CLASSES)."""
    names = parcellation.TISSUES.values()
    shares = np.stack([known[..., [CLASSES.index(n) for n in own]].sum(axis=-1) for own in names], axis=-1)
    inside = (shares.sum(axis=-1) > 0.7) & (values > 0)
    seen, shares = values[inside], np.maximum(shares[inside], 1e-3)
    step = max(1, len(seen) // 60_000)
    seen, shares = seen[::step], shares[::step] / shares[::step].sum(axis=1, keepdims=True)
    top = max(float(np.percentile(seen, 99)) if seen.size else 1.0, 1e-6)
    return parcellation.Fit(top, *parcellation.levels(np.clip(seen / top, 0, 2), shares))


def evidence(values: np.ndarray, fit: parcellation.Fit, distance: float, slices: Sequence[int]) -> np.ndarray:
    """What the network sees of some slices, float32 (slices, X, Y, CHANNELS).

    Parameters
    ----------
    values : ndarray
        (X, Y, Z), slices last.
    fit : Fit
    distance : float
        Of two slices, mm.
    slices : sequence of int
        Beyond the first and the last there is nothing (0).
    """
    x, y, z = values.shape
    at = np.asarray(slices)
    out = np.zeros((len(at), x, y, CHANNELS), np.float32)
    out[..., : parcellation.CHANNELS] = parcellation.likened(np.moveaxis(values[:, :, at], 2, 0), fit)
    for k, step in enumerate((-1, 1)):
        near = at + step
        there = (near >= 0) & (near < z)
        scaled = np.clip(values[:, :, near[there]] / fit.top, 0, 2) / 2
        out[there, :, :, parcellation.CHANNELS + k] = np.moveaxis(scaled, 2, 0)
    out[..., -1] = distance / 8
    return out


def build(widths: tuple[int, ...] = WIDTHS) -> keras.Model:
    """The network: evidence and what is known, (batch, X, Y, ...), to logits; untrained it changes nothing.

    Parameters
    ----------
    widths : tuple of int
        Filters of each level, finest first; X and Y must be divisible by ``2 ** (len(widths) - 1)``.
    """
    import keras
    from keras import layers, ops

    from bids_epvs.models import blocks

    seen = keras.Input((None, None, CHANNELS), name="evidence")
    known = keras.Input((None, None, len(CLASSES)), name="known")
    x = blocks.unet(layers.Concatenate()([seen, known]), widths)
    change = layers.Conv2D(len(CLASSES), 1, kernel_initializer="zeros")(x)
    return keras.Model([seen, known], ops.log(known + _FLOOR) + change, name=NAME)


def network(file: Path | None = None, contrast: str = "") -> keras.Model:
    """The network with weights of one's own, or else the packaged ones for a contrast; see `weights.restored`.

    What it has read once it keeps.
    """
    return _read(file, contrast if file is None and contrast in WEIGHTS.own else "")


@cache
def _read(file: Path | None, contrast: str) -> keras.Model:
    what = "the network that draws borders in the plane of the slices"
    return weights.restored(build, WEIGHTS.of(contrast), file, what=what, instead="use --regions-from atlas")[0]


def contrast_of(fit: parcellation.Fit) -> str:
    """T2w, T1w or FLAIR, by the order of fluid, grey and white matter."""
    tissues = list(parcellation.TISSUES)
    fluid, grey, white = (fit.mean[tissues.index(name)] for name in ("CSF", "GM", "WM"))
    if fluid > white:
        return "T2w"
    return "FLAIR" if grey > white else "T1w"


def window(prior: np.ndarray, multiple: int) -> tuple[slice, slice, slice]:
    """The slices and pixels of (X, Y, Z, labels), slices last, that may hold brain; sides are a multiple if they can.

    Parameters
    ----------
    prior : ndarray
    multiple : int
        Of pixels along X and Y.
    """
    box = list(bounding_box(prior.sum(axis=-1) > 0.05, (MARGIN, MARGIN, 0)))
    for axis in (0, 1):
        want = -(-(box[axis].stop - box[axis].start) // multiple) * multiple
        start = max(0, min(box[axis].start, prior.shape[axis] - want))
        box[axis] = slice(start, min(start + want, prior.shape[axis]))
    return box[0], box[1], box[2]


def padded(volume: np.ndarray, multiple: int, least: int = 0) -> np.ndarray:
    """(slices, X, Y, channels) with X and Y a multiple and at least so many slices, 0 at the ends."""
    rests = [-n % multiple for n in volume.shape[1:3]]
    return np.pad(volume, ((0, max(0, least - len(volume))), *((0, n) for n in rests), (0, 0)))


def refined(
    images: Sequence[Nifti1Image], prior: np.ndarray, *, model: keras.Model | None = None, batch: int = 4
) -> np.ndarray:
    """Probability of each structure, slice by slice.

    Parameters
    ----------
    images : sequence of Nifti1Image
        Bias-corrected, on one grid with any orientation of slices; what is found in each is averaged.
    prior : ndarray
        (X, Y, Z, ATLAS_LABELS) on that grid; what is missing to 1 is background.
    model : keras.Model, optional
        By default the packaged one for each image's `contrast_of`.
    batch : int
        Slices predicted at a time.

    Returns
    -------
    ndarray of float32
        As `prior`; 0 outside its bounding box.
    """
    axis = across(images[0])
    distance = float(voxel_sizes(images[0].affine)[axis])
    turned = np.moveaxis(prior, axis, 2)
    some = model or network()
    multiple = 2 ** len([x for x in some.layers if x.name.startswith("max_pooling")])
    box = window(turned, multiple)
    known = known_classes(turned[box])
    x, y, z = known.shape[:3]
    total = np.zeros((z, x, y, len(CLASSES)), np.float32)
    for image in images:
        seen = np.moveaxis(np.asarray(image.dataobj, np.float32), axis, 2)[box]
        fit = fitted(seen, known)
        own = model or network(contrast=contrast_of(fit))
        for start in range(0, z, batch):
            at = range(start, min(start + batch, z))
            given = evidence(seen, fit, distance, at), np.moveaxis(known[:, :, at], 2, 0)
            made = own.predict_on_batch([padded(g, multiple, batch) for g in given])  # a new shape costs 0.6 s
            total[start : start + len(at)] += parcellation.softmax(np.asarray(made)[: len(at), :x, :y])
    total *= np.array([ODDS.get(name, 1) for name in CLASSES], np.float32)
    total /= total.sum(axis=-1, keepdims=True)
    out = np.zeros(turned.shape, np.float32)
    out[box] = sided(np.moveaxis(total, 0, 2), turned[box])
    return np.ascontiguousarray(np.moveaxis(out, 2, axis))


def outline(images: Sequence[Nifti1Image], prior: np.ndarray, *, model: keras.Model | None = None) -> np.ndarray | None:
    """`refined` as `prepare.brain.from_parcels` wants it: None where slices are thin."""
    return refined(images, prior, model=model) if thick(images[0]) else None
