"""Five-point rating of EPVS in the basal ganglia from six slices (`rating2d`): Haar enhancement and a 2-D network.

References
----------
Yang et al. 2021, doi:10.3390/app11209398; scale of Potter et al. 2015, doi:10.1159/000375153.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from bids_epvs.models import weights
from bids_epvs.models.spec import ModelSpec, Weights, recorded
from bids_epvs.prepare import haar
from bids_epvs.prepare.regions import REGIONS, indices
from bids_epvs.prepare.resample import along_axes, overlap
from bids_epvs.records import GRADES, POTTER, Finding, Prediction, Prepared

if TYPE_CHECKING:
    import keras

SIZE = (112, 86)
"""Pixels of an image from front to back and across."""
PIXEL_MM = 0.6
SLICES = 3
APART_MM = 5.0
"""Between the slices (or one slice, where those are thicker)."""
WIDTHS = (16, 32, 32, 64, 64)
"""Filters of the five convolutions."""
DENSE = 64


@dataclass(frozen=True)
class View:
    """One slice of the basal ganglia of one hemisphere.

    Attributes
    ----------
    side : int
        Index of `REGIONS`.
    slice : int
        Canonical index.
    plain, sharp : ndarray of float32
        `SIZE`, before and after `haar.enhanced`; 1 is the brightest of the brain; the right hemisphere mirrored.
    inside : ndarray of float32
        Share of the region in each pixel.
    """

    side: int
    slice: int
    plain: np.ndarray
    sharp: np.ndarray
    inside: np.ndarray


def chosen_slices(regions: np.ndarray, spacing: Sequence[float], commissure: int | None) -> tuple[int, ...]:
    """`SLICES` axial slices from the anterior commissure up, `APART_MM` apart, inside the basal ganglia.

    Without the commissure, the first is a quarter of the way up the basal ganglia. Fewer where they end before.
    """
    found = np.flatnonzero(np.isin(regions, SIDES).any(axis=(0, 1)))
    if not found.size:
        return ()
    low, high = int(found[0]), int(found[-1])
    first = commissure if commissure is not None else low + (high - low) // 4
    step = max(1, round(APART_MM / spacing[2]))
    wanted = np.clip(first, low, high) + step * np.arange(SLICES)
    return tuple(int(k) for k in wanted if k <= high)


SIDES = indices("BasalGanglia")
"""Indices of the basal ganglia, left and right."""


def views(
    image: np.ndarray,
    brain: np.ndarray,
    regions: np.ndarray,
    spacing: tuple[float, float, float],
    commissure: int | None,
    *,
    with_haar: bool = True,
    top: float | None = None,
) -> list[View]:
    """The images that the network rates: both hemispheres of each of `chosen_slices`.

    Parameters
    ----------
    image : ndarray
        Bias-corrected T2w, canonical frame.
    brain : ndarray of bool
    regions : ndarray of uint8
        Indices of `REGIONS`.
    spacing : tuple of float
        Voxel sizes, mm.
    commissure : int, optional
        Slice of the anterior commissure.
    with_haar : bool
        Without, `sharp` is the same as `plain`.
    top : float, optional
        Intensity that becomes 1; by default the brightest of the brain.
    """
    if top is None:
        top = float(np.percentile(image[brain], 99.9)) if brain.any() else 1.0
    out = []
    for index in chosen_slices(regions, spacing, commissure):
        for side in SIDES:
            own = regions == side
            if own[:, :, index].any():
                out.append(_view(image, own, spacing, index, side, max(top, 1e-6), with_haar=with_haar))
    return out


def _view(
    image: np.ndarray,
    own: np.ndarray,
    spacing: tuple[float, float, float],
    index: int,
    side: int,
    top: float,
    *,
    with_haar: bool,
) -> View:
    """One image: crop at the scan's own pixels, enhance, resize."""
    extent = (SIZE[1] * PIXEL_MM, SIZE[0] * PIXEL_MM)  # x, y
    box, weights = [], []
    for axis in range(2):
        rows = np.flatnonzero(own.any(axis=tuple(a for a in range(3) if a != axis)))
        low = (rows[0] + rows[-1] + 1) / 2 * spacing[axis] - extent[axis] / 2
        n = image.shape[axis]
        first = int(np.clip(np.floor(low / spacing[axis]), 0, max(n - 8, 0)))
        last = int(np.clip(np.ceil((low + extent[axis]) / spacing[axis]), min(first + 8, n), n))
        box.append(slice(first, last))
        weights.append(
            overlap(SIZE[1 - axis], PIXEL_MM, last - first, spacing[axis], start=low - first * spacing[axis])
        )
    crop = np.clip(image[box[0], box[1], index] / np.float32(top), 0, 1.5).astype(np.float32)
    sharp = haar.enhanced(crop) if with_haar else crop
    turned = [along_axes(a, weights) for a in (crop, sharp, own[box[0], box[1], index])]
    if REGIONS[side].side == "Right":
        turned = [a[::-1] for a in turned]
    plain, clear, inside = (np.ascontiguousarray(a.T) for a in turned)
    return View(side, index, plain, clear, inside)


def stacked(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What the network sees: images (n, *SIZE) and shares of the region, (n, *SIZE, 2) float32."""
    return np.stack([images, inside], axis=-1).astype(np.float32)


def build(widths: tuple[int, ...] = WIDTHS, dense: int = DENSE) -> keras.Model:
    """Five convolutions, average pooling, two dense layers, softmax: (batch, *SIZE, 2) to (batch, `GRADES`).

    The resolution is halved (average pooling) after the second and the fourth convolution; the last map is averaged.
    """
    import keras
    from keras import layers

    seen = keras.Input((*SIZE, 2))
    x = seen
    for level, filters in enumerate(widths):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.98)(x))
        if level in (1, 3):
            x = layers.AveragePooling2D(2)(x)
    x = layers.Dense(dense, activation="relu")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(seen, layers.Dense(GRADES, activation="softmax")(x), name="rating2d")


def subject_grade(chances: np.ndarray, rule: str, alike: float = 1.0) -> int:
    """Grade of a subject from the probabilities of those of its images.

    Parameters
    ----------
    chances : ndarray
        (n, `GRADES`).
    rule : str
        ``highest``: the one that is most probably the highest (`subject_chances`). The highest of the most probable
        grades of the images would be too high: the more of them are unsure, the more likely one errs upwards.
        ``majority``: the commonest of the most probable grades of the images (ties: the higher).
    alike : float
        See `subject_chances`.

    Raises
    ------
    ValueError
        No such rule.
    """
    if rule == "highest":
        return int(subject_chances(chances, alike).argmax())
    if rule == "majority":
        often = np.bincount(chances.argmax(axis=1), minlength=GRADES)
        return int(np.flatnonzero(often == often.max())[-1])
    raise ValueError(f"rule: expected highest or majority, received {rule!r}")


def subject_chances(chances: np.ndarray, alike: float = 1.0) -> np.ndarray:
    """Probability of each grade of the highest of some images, (`GRADES`,).

    Parameters
    ----------
    chances : ndarray
        (n, `GRADES`).
    alike : float
        Power of the product of cumulative probabilities: 1 where images are independent, smaller where they resemble
        one another.
    """
    return np.diff(np.cumsum(chances, axis=1).prod(axis=0) ** alike, prepend=0.0)


def cooled(chances: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities whose logarithms are divided by a temperature."""
    return special.softmax(np.log(np.maximum(chances, 1e-7)) / temperature, axis=-1)


WEIGHTS = Weights(
    file="rating2d.npz",
    sha256="2d5c3cdcc8dbb1d7892fb85fc6f26f7214d567c25239a388c6a3f2a0dfe322e6",
    licence="Apache-2.0",
    trained_on="simulated T2w of twelve label maps (see rating2d.json beside the weights)",
)
network = weights.network_of("rating2d", build, WEIGHTS)


def predict(prepared: Prepared, parameters: Mapping[str, Any]) -> Prediction:
    """Grade of the basal ganglia, of each hemisphere and of both (the higher one)."""
    import keras

    model, stored = network(parameters.get("weights"))
    seen = views(
        prepared.images["T2w"],
        prepared.brain,
        prepared.regions,
        prepared.spacing,
        prepared.slices.get("anterior_commissure"),
        with_haar=stored.get("haar", True),
    )
    record = recorded(parameters)
    if not seen:
        return Prediction("rating2d", parameters=record, notes=("the basal ganglia are not in the scan",))
    given = stacked(np.stack([v.sharp for v in seen]), np.stack([v.inside for v in seen]))
    chances = cooled(np.asarray(keras.ops.convert_to_numpy(model(given, training=False))), stored.get("temperature", 1))
    record["haar"] = stored.get("haar", True)
    alike = stored.get("alike", 1.0)
    record |= {rule: subject_grade(chances, rule, alike) for rule in ("highest", "majority")}
    record["images"] = [
        {"slice": v.slice, "side": REGIONS[v.side].side, "chances": c.round(4).tolist()}
        for v, c in zip(seen, chances, strict=True)
    ]
    said = []
    for side, inside in (("left", SIDES[:1]), ("right", SIDES[1:]), ("both", SIDES)):
        own = [k for k, v in enumerate(seen) if v.side in inside]
        if own:
            best = seen[own[int(np.argmax(chances[own] @ np.arange(GRADES)))]]
            grade = subject_grade(chances[own], parameters["rule"], alike)
            each = tuple(float(p) for p in subject_chances(chances[own], alike))
            said.append(Finding("BasalGanglia", side, rating=grade, scale=POTTER, chances=each, slice=best.slice))
    return Prediction("rating2d", parameters=record, findings=tuple(said))


SPEC = ModelSpec(
    name="rating2d",
    title="Five-point rating of the basal ganglia by a 2-D network after Haar enhancement",
    doi="10.3390/app11209398",
    citation=(
        "Yang E, Gonuguntla V, Moon WJ, et al. Direct rating estimation of enlarged perivascular spaces (EPVS) in "
        "brain MRI using deep neural network. Appl Sci 2021;11:9398."
    ),
    task="rating",
    suffixes=("T2w",),
    regions=("BasalGanglia",),
    predict=predict,
    parameters={"rule": "highest"},
    shape=(*SIZE, 1),
    normalise="1 is the 99.9th percentile of the brain",
    build=build,
    network=network,
    weights=WEIGHTS,
    outputs=("findings",),
    calibrated=True,
    axial=True,
    deviations=(
        "Trained on simulated images of real label maps, not on ratings; not validated on rated scans.",
        "In training each image has the grade of its own slice and hemisphere, not that of its subject.",
        "The share of the basal ganglia in each pixel is a second channel.",
        "Intensities are divided by the 99.9th percentile of the brain instead of the maximum.",
        "Slices lie 5 mm apart where they are thinner than that.",
        "The highest grade is that which is most probably the highest of the images, by calibrated probabilities.",
        "Batch normalisation; average pooling after the second, fourth and last convolution.",
    ),
)
