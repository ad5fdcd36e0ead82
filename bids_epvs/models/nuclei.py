"""A second look at the deep grey matter: a 3-D U-Net that sharpens the answer of the parcellation network there.

`models.parcellation` convolves at 4 mm, too coarse for caudate, pallidum or the border of the thalamus. This network
sees a box around them in each half of the head: the same evidence at 1 mm, and the probabilities found so far, whose
logarithm it corrects. The grid of the answer stays that of the parcellation (2 mm, shares of a voxel).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.models import parcellation, weights
from bids_epvs.models.spec import Weights
from bids_epvs.prepare.brain import Parcels

if TYPE_CHECKING:
    import keras

NAME = "nuclei"
"""Name on the command line (``--weights nuclei=FILE``)."""
WEIGHTS = Weights(
    file="nuclei.npz",
    sha256="dadbe72b31297728cb2ce21a9bc940d49115822e512f45734e3fb975fdd0908b",
    licence="Apache-2.0",
    trained_on="simulated images of twelve label maps (see nuclei.json beside the weights)",
)
BOX = (slice(18, 42), slice(34, 74), slice(24, 56))
"""Voxels of a half of the parcellation's grid: basal ganglia, thalamus and ventral diencephalon with a margin."""
SHAPE = tuple(s.stop - s.start for s in BOX)
FINE = 2
"""Voxels that the network sees along each side of one it speaks about."""
WIDTHS = (24, 48, 96)
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


def taper() -> np.ndarray:
    """1 in the box, falling linearly towards its faces, float32 (X, Y, Z, 1)."""
    sides = [np.minimum(1, np.minimum(k := np.arange(1, n + 1), k[::-1]) / (_EDGE + 1)) for n in SHAPE]
    return (sides[0][:, None, None] * sides[1][None, :, None] * sides[2])[..., None].astype(np.float32)


def build(widths: tuple[int, ...] = WIDTHS) -> keras.Model:
    """The network: evidence at 1 mm and probabilities at 2 mm to logits at 2 mm; untrained it changes nothing.

    Parameters
    ----------
    widths : tuple of int
        Filters of each level, finest (2 mm) first; at most four.
    """
    import keras
    from keras import layers, ops

    from bids_epvs.models import blocks

    seen = keras.Input((*(FINE * n for n in SHAPE), parcellation.CHANNELS), name="evidence")
    known = keras.Input((*SHAPE, len(parcellation.CLASSES)), name="known")
    x = layers.Concatenate()([blocks.space_to_depth(seen), known])
    x = blocks.unet(x, widths)
    change = layers.Conv3D(len(parcellation.CLASSES), 1, kernel_initializer="zeros")(x)
    return keras.Model([seen, known], ops.log(known + _FLOOR) + change * taper()[None], name=NAME)


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
    """Probabilities of both halves with the boxes replaced by what this network says.

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
    near = halves(parcellation.likened(parcellation.on_grid(image, to_template, grid()), fit))
    out = sides.copy()
    for side, seen in enumerate(near):
        known = sides[(side, *BOX)]
        out[(side, *BOX)] = parcellation.softmax(np.asarray(model.predict_on_batch([seen[None], known[None]]))[0])
    return out


def predict(
    images: Sequence[Nifti1Image],
    to_template: np.ndarray,
    *,
    first: keras.Model | None = None,
    second: keras.Model | None = None,
) -> Parcels:
    """`parcellation.predict` with its second look.

    Parameters
    ----------
    images : sequence of Nifti1Image
    to_template : ndarray
    first, second : keras.Model, optional
        The parcellation network and this one; by default the packaged ones.
    """
    return parcellation.predict(images, to_template, model=first, refine=partial(refined, model=second))
