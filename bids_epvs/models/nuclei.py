"""A second look at the deep grey matter: a 3-D U-Net that sharpens the answer of the parcellation network there.

`models.parcellation` answers at 2 mm, too coarse for caudate, pallidum or the border of the thalamus. This network
sees a box around them in each half of the head: the same evidence at 1 mm, how well each voxel fits the intensities of
each nucleus of this scan (`prepare.deep`), and the probabilities found so far, whose logarithm it corrects. It
convolves at 2 mm and below, and answers at 1 mm.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.models import looks, parcellation, weights
from bids_epvs.models.spec import Weights
from bids_epvs.prepare import deep
from bids_epvs.prepare.structures import Parcels

if TYPE_CHECKING:
    import keras

NAME = "nuclei"
"""Name on the command line (``--weights nuclei=FILE``)."""
WEIGHTS = Weights(
    file="nuclei.npz",
    sha256="823e9d424c920d62aa32687ef57b22ef7beae32bd7d01f05fa4a5cb1403f1f84",
    licence="Apache-2.0",
    trained_on="simulated images of twelve label maps (see nuclei.json beside the weights)",
)
BOX = (slice(18, 42), slice(34, 74), slice(24, 56))
"""Voxels of a half of the parcellation's grid: basal ganglia, thalamus and ventral diencephalon with a margin."""
SHAPE = tuple(s.stop - s.start for s in BOX)
FINE = 2
"""Voxels of the box along each side of one of the parcellation."""
WIDTHS, SHARP = (24, 48, 96), 12
"""Filters of each level, finest (2 mm) first, and of the last look at 1 mm."""
_BOXES = (slice(None), *BOX)
_PLACE = (slice(BOX[0].start, parcellation.SHAPE[0] - BOX[0].start), *BOX[1:])
"""The boxes of both halves, and what lies between, in the whole grid of the parcellation."""
_EDGE = 2
"""Voxels over which the correction fades out towards the faces of the box."""
_FLOOR = 0.01
"""Least probability of the first network, so that it can be overruled."""


def grid() -> Nifti1Image:
    """The boxes of both halves and what lies between, at `FINE` voxels a voxel, in template space (no voxels)."""
    coarse = parcellation.grid().affine
    affine = coarse @ np.diag([1 / FINE, 1 / FINE, 1 / FINE, 1.0])
    affine[:3, 3] = coarse[:3, :3] @ [s.start - 0.5 + 0.5 / FINE for s in BOX] + coarse[:3, 3]
    width = parcellation.SHAPE[0] - 2 * BOX[0].start
    return nib.Nifti1Image(np.broadcast_to(np.uint8(0), (FINE * width, *(FINE * n for n in SHAPE[1:]))), affine)


def halves(volume: np.ndarray) -> np.ndarray:
    """Left box and mirrored right box of an array on `grid`, (2, FINE * X, FINE * Y, FINE * Z, ...)."""
    n = FINE * SHAPE[0]
    return np.stack([volume[:n], volume[::-1][:n]])


KINDS = ("CerebralWhiteMatter", "Caudate", "Putamen", "Pallidum", "Thalamus")
"""Classes that are `deep.KINDS`."""
OTHERS = ("Accumbens", "VentralDC")
"""The other solid structures, `deep.SOLID` with `KINDS`."""
CHANNELS = parcellation.CHANNELS + len(KINDS)


def evidence(values: np.ndarray, fit: parcellation.Fit, known: np.ndarray) -> np.ndarray:
    """What the network sees of one box, float32 (FINE * X, FINE * Y, FINE * Z, CHANNELS).

    After `parcellation.likened` the `deep.likelihoods` of `KINDS`.

    Parameters
    ----------
    values : ndarray
        Intensities of the box at 1 mm; 0 where nothing was imaged.
    fit : Fit
        Of the image.
    known : ndarray
        (X, Y, Z, classes) probabilities found so far.
    """
    out = np.empty((*values.shape, CHANNELS), np.float32)
    out[..., : parcellation.CHANNELS] = parcellation.likened(values, fit)
    shares = known[..., [parcellation.NAMES.index(n) for n in KINDS]]
    sure = shares.sum(axis=-1) + known[..., [parcellation.NAMES.index(n) for n in OTHERS]].sum(axis=-1)
    spacing = [parcellation.SPACING_MM / FINE] * 3
    out[..., parcellation.CHANNELS :] = deep.likelihoods(values, _doubled(shares), _doubled(sure), spacing)
    return out


def taper() -> np.ndarray:
    """1 in the box, falling linearly towards its faces, float32 (FINE * X, FINE * Y, FINE * Z, 1)."""
    sides = [np.minimum(1, np.minimum(k := np.arange(FINE * n) + 0.5, k[::-1]) / (FINE * _EDGE)) for n in SHAPE]
    return (sides[0][:, None, None] * sides[1][None, :, None] * sides[2])[..., None].astype(np.float32)


def build(widths: tuple[int, ...] = WIDTHS, sharp: int = SHARP) -> keras.Model:
    """The network: evidence at 1 mm and probabilities at 2 mm to logits at 1 mm; untrained it changes nothing.

    Parameters
    ----------
    widths : tuple of int
        Filters of each level, finest (2 mm) first; at most four.
    sharp : int
        Filters of the last look at 1 mm.
    """
    import keras
    from keras import layers, ops

    from bids_epvs.models import blocks

    seen = keras.Input((*(FINE * n for n in SHAPE), CHANNELS), name="evidence")
    known = keras.Input((*SHAPE, len(parcellation.CLASSES)), name="known")
    x = layers.Concatenate()([blocks.space_to_depth(seen), known])
    x = blocks.unet(x, widths)
    number = len(parcellation.CLASSES)
    change = blocks.depth_to_space(layers.Conv3D(FINE**3 * number, 1, kernel_initializer="zeros")(x))
    near = blocks.depth_to_space(layers.Conv3D(FINE**3 * sharp, 1)(x))
    near = blocks.convolve(layers.Concatenate()([seen, near]), sharp)
    change = change + layers.Conv3D(number, 1, kernel_initializer="zeros")(near)
    return keras.Model([seen, known], ops.log(blocks.doubled(known) + _FLOOR) + change * taper()[None], name=NAME)


@cache
def network(file: Path | None = None) -> keras.Model:
    """The network with its packaged weights, or others; see `weights.restored`."""
    what = "the network that looks again at the deep grey matter"
    return weights.restored(build, WEIGHTS, file, what=what, instead="use --regions-from atlas")[0]


def refined(
    image: Nifti1Image,
    to_template: np.ndarray,
    fit: parcellation.Fit,
    sides: np.ndarray,
    *,
    model: keras.Model | None = None,
) -> np.ndarray:
    """What this network says of the boxes of both halves, (2, FINE * X, FINE * Y, FINE * Z, classes).

    Parameters
    ----------
    image : Nifti1Image
        Bias-corrected.
    to_template : ndarray
        4 x 4, millimetres of the image to ICBM152 millimetres (affine).
    fit : Fit
        Of the image, from `parcellation.fitted`.
    sides : ndarray
        (2, HALF, Y, Z, classes) of the parcellation network.
    model : keras.Model, optional
        By default the packaged one.
    """
    model = model or network()
    boxes = halves(parcellation.on_grid(image, to_template, grid()))
    each = [
        (evidence(values, fit, known)[None], known[None]) for values, known in zip(boxes, sides[_BOXES], strict=True)
    ]
    made = [model.predict_on_batch(list(given)) for given in each]
    return parcellation.softmax(np.concatenate([np.asarray(m) for m in made]))


def predict(
    images: Iterable[Nifti1Image],
    to_template: np.ndarray,
    *,
    first: keras.Model | None = None,
    second: keras.Model | None = None,
) -> Parcels:
    """`looks.predict` with its second look.

    Parameters
    ----------
    images : iterable of Nifti1Image
    to_template : ndarray
        Corrected where needed, see `looks.look_for_pose`.
    first, second : keras.Model, optional
        The parcellation network and this one; by default the packaged ones.
    """
    first, second = first or parcellation.network(), second or network()
    found, fine = [], []
    for image, each in looks.each(images, to_template, first):
        found.append(each)
        left, right = refined(image, each.to_template, each.fit, each.sides, model=second)
        fine.append(parcellation.merged(left, right, grid().shape[0]))
    agreed, used = looks.agreeing(found)
    seen = [found[k].seen for k in used]
    whole = looks.averaged([found[k].whole for k in used], seen)
    near = looks.averaged([fine[k] for k in used], [_doubled(s[_PLACE]) for s in seen])
    whole[_PLACE] = _shared(near)
    clean = parcellation.without_islands(whole, parcellation.outputs())
    near = _without(near, (clean[_PLACE] == 0) & (whole[_PLACE] > 0))
    return Parcels(
        nib.Nifti1Image(clean, parcellation.grid().affine),
        parcellation.outputs(),
        fine=nib.Nifti1Image(near, grid().affine),
        to_template=found[0].to_template,
        agreement=agreed,
    )


def _doubled(coarse: np.ndarray) -> np.ndarray:
    """Voxels repeated `FINE` times along each side."""
    for axis in range(3):
        coarse = coarse.repeat(FINE, axis=axis)
    return coarse


def _shared(fine: np.ndarray) -> np.ndarray:
    """Means of blocks of `FINE` voxels along each side, (X, Y, Z, labels)."""
    x, y, z = (n // FINE for n in fine.shape[:3])
    return fine.reshape(x, FINE, y, FINE, z, FINE, -1).mean(axis=(1, 3, 5))


def _without(fine: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Probabilities of the boxes without labels in blocks where they are `gone`; the others get what those held."""
    out = np.where(_doubled(gone), np.float32(0), fine)
    before, after = fine.sum(axis=-1), out.sum(axis=-1)
    return out * np.where(after > 1e-3, before / np.maximum(after, 1e-3), 1)[..., None].astype(np.float32)
