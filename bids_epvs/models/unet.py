"""Whole-brain EPVS from any of T2w, T1w, FLAIR and SWI: a 2-D multi-channel U-Net (Rashid et al. 2023).

One network serves every combination of sequences: what is missing is 0 and marked as absent. It sees a slice
with its neighbours (`prepare.planes`) and estimates the share of each voxel that EPVS fill.

References
----------
Rashid et al. 2023, doi:10.1016/j.ynirp.2023.100162.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from bids_epvs.errors import DataError
from bids_epvs.models import pieces, weights
from bids_epvs.models.spec import ModelSpec, Weights, recorded
from bids_epvs.prepare import planes
from bids_epvs.prepare.intensity import fluid_step
from bids_epvs.prepare.regions import NAMES, WHITE_MATTER, beyond
from bids_epvs.prepare.resample import bounding_box
from bids_epvs.records import Prediction, Prepared

if TYPE_CHECKING:
    import keras

WEIGHTS = Weights(
    file="unet.npz",
    sha256="89b392a9736d62d61e811258c6b60438eb9adb87d65c8cdeb1dbb565c1ff30f0",
    licence="Apache-2.0",
    trained_on="simulated brains of twelve label maps (see unet.json beside the weights)",
    own={
        "turned": Weights(
            file="unet_turned.npz",
            sha256="a13a15668a2f97c580d3c51ad4318d6d4d9caa4f5be9332789993b1e6d8706dd",
            licence="Apache-2.0",
            trained_on="thick coronal and sagittal slices of the same heads (see unet_turned.json beside the weights)",
        ),
    },
)
SEQUENCES = ("T2w", "T1w", "FLAIR", "SWI")
"""Channels, in this order."""
COMBINATIONS = (
    ("T2w",),
    ("T2w", "FLAIR"),
    ("T2w", "T1w", "FLAIR"),
    ("T2w", "T1w", "FLAIR", "SWI"),
    ("T2w", "T1w"),
    ("FLAIR",),
    ("T1w",),
    ("T1w", "FLAIR"),
)
"""The eight of the paper."""
REACH = 2
"""Neighbouring slices on each side."""
WIDTHS = (16, 24, 32, 48, 64)
RANGE = (-1.5, 2.0)
"""Normalised intensities are cut here."""
CHANNELS = len(SEQUENCES) * (2 * REACH + 1) + len(SEQUENCES) + 2
MARGIN = 16
"""Voxels around the regions that are looked at too; EPVS are not followed further."""
BATCH = 4
"""Slices predicted at a time."""


def normalised(image: np.ndarray, brain: np.ndarray, white: np.ndarray, fluid: np.ndarray, name: str) -> np.ndarray:
    """Intensities on the scale that the network expects: white matter 0, fluid about 1 (T2w) or -1 (T1w, FLAIR).

    Parameters
    ----------
    image : ndarray
        Bias-corrected.
    brain, white, fluid : ndarray of bool
        Masks; what is not brain becomes the lower end of `RANGE`.
    name : str
        One of `SEQUENCES`.

    Returns
    -------
    ndarray of float32
        Within `RANGE`.
    """
    known = fluid if name != "SWI" else np.zeros_like(fluid)  # there fluid is hardly brighter than tissue
    centre, away = fluid_step(image, white if white.any() else brain, known, dark=name != "T2w")
    scaled = (image - np.float32(centre)) / np.float32(away)
    return np.where(brain, np.clip(scaled, *RANGE), RANGE[0]).astype(np.float32)


def marks(present: Sequence[str], spacing: Sequence[float]) -> np.ndarray:
    """Constant channels: which sequences there are, and the voxel size; (SEQUENCES + 2,) float32."""
    there = [float(name in present) for name in SEQUENCES]
    return np.array([*there, np.log(spacing[0] / 0.7), np.log(spacing[2] / spacing[0]) / 2], np.float32)


def slab(volume: np.ndarray, slices: Sequence[int], constants: np.ndarray) -> np.ndarray:
    """What the network sees of some slices.

    Parameters
    ----------
    volume : ndarray of float32
        (X, Y, Z, SEQUENCES), absent sequences 0.
    slices : sequence of int
    constants : ndarray
        From `marks`.

    Returns
    -------
    ndarray of float32
        (slices, X, Y, CHANNELS); beyond the first and last slice they are repeated.
    """
    x, y, z, n = volume.shape
    near = np.clip(np.asarray(slices)[:, None] + np.arange(-REACH, REACH + 1), 0, z - 1)
    out = np.empty((len(near), x, y, CHANNELS), np.float32)
    out[..., : n * near.shape[1]] = np.moveaxis(volume[:, :, near], 2, 0).reshape(len(near), x, y, -1)
    out[..., n * near.shape[1] :] = constants
    return out


def build(widths: tuple[int, ...] = WIDTHS) -> keras.Model:
    """The network: (batch, X, Y, CHANNELS) to a logit for each voxel, (batch, X, Y, 1).

    Parameters
    ----------
    widths : tuple of int
        Filters of each level, finest first; X and Y must be divisible by ``2 ** (len(widths) - 1)``.
    """
    import keras
    from keras import layers

    def convolve(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.98)(x))
        return x

    seen = keras.Input((None, None, CHANNELS))
    x, skips = seen, []
    for level, filters in enumerate(widths):
        x = convolve(layers.MaxPooling2D(2)(x) if level else x, filters)
        skips.append(x)
    for filters, skip in zip(widths[-2::-1], skips[-2::-1], strict=True):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = convolve(layers.Concatenate()([x, skip]), filters)
    first = keras.initializers.Constant(-4.0)  # few voxels are EPVS
    return keras.Model(seen, layers.Conv2D(1, 1, bias_initializer=first)(x), name="unet")


def prepared_volume(prepared: Prepared, names: Sequence[str]) -> np.ndarray:
    """Normalised sequences of a session, (X, Y, Z, SEQUENCES) float32."""
    white = np.isin(prepared.regions, WHITE_MATTER) & ~prepared.csf
    out = np.zeros((*prepared.regions.shape, len(SEQUENCES)), np.float32)
    for k, name in enumerate(SEQUENCES):
        if name in names:
            out[..., k] = normalised(prepared.images[name], prepared.brain, white, prepared.csf, name)
    return out


def logits(model: keras.Model, volume: np.ndarray, constants: np.ndarray, *, flips: bool = False) -> np.ndarray:
    """Output of the network for each voxel of a volume (X, Y, Z, SEQUENCES), float32 (X, Y, Z).

    Parameters
    ----------
    model : keras.Model
    volume, constants : ndarray
        See `slab`.
    flips : bool
        Mean with the left-right mirrored image.
    """
    x, y, z = volume.shape[:3]
    step = 16
    padded = np.pad(volume, ((0, -x % step), (0, -y % step), (0, 0), (0, 0)), mode="edge")
    out = np.empty((x, y, z), np.float32)
    for first in range(0, z, BATCH):
        slices = list(range(first, min(first + BATCH, z)))
        seen = slab(padded, slices + [z - 1] * (BATCH - len(slices)), constants)  # one shape: compiled once
        made = np.asarray(model.predict_on_batch(seen))[..., 0]
        if flips:
            made = (made + np.asarray(model.predict_on_batch(seen[:, ::-1]))[:, ::-1, :, 0]) / 2
        out[:, :, slices] = np.moveaxis(made[: len(slices), :x, :y], 0, -1)
    return out


def probabilities(logit: np.ndarray, calibration: Mapping[str, float]) -> np.ndarray:
    """Calibrated share of EPVS in each voxel, float32: a logistic function of the network's output."""
    return special.expit(calibration["slope"] * logit + calibration["offset"]).astype(np.float32)


def calibrated(stored: Mapping[str, Any], names: Sequence[str], slices: str) -> Mapping[str, float]:
    """Slope, offset, threshold and extent for a combination of sequences; without an entry that of its first one.

    `slices` is their `planes.kind`; without an entry the nearest one counts (`planes.of_kind`).

    Raises
    ------
    DataError
        There is neither: the training has not ended, or was for other sequences.
    """
    table = planes.of_kind(stored, slices) or {}
    found = next((table[name] for name in ("+".join(names), names[0], "T2w") if name in table), None)
    if found is None:
        raise DataError(
            f"the weights of unet have no calibration for {names[0]}: their training has not ended, or was for others.",
            remedy="Let bids_epvs-train end (the same command goes on where it stopped), or choose other weights.",
        )
    return found


network = weights.network_of("unet", build, WEIGHTS)


def predict(prepared: Prepared, parameters: Mapping[str, Any]) -> Prediction:
    """EPVS of one session from the sequences it has.

    Returns
    -------
    Prediction
        `probability` is the calibrated share of each voxel that EPVS fill, 0 where they are not looked for: outside
        the regions, but for the EPVS in `mask` that run on there, for ``beyond_mm`` at most.
    """
    names = tuple(name for name in SEQUENCES if name in prepared.images)
    slices = planes.kind_of(prepared)
    model, stored = network(parameters.get("weights"), slices=slices)
    used = calibrated(stored, names, slices)
    inside = (prepared.regions > 0) & ~prepared.csf
    if not inside.any():
        nothing = np.zeros(inside.shape, np.float32)
        return Prediction("unet", nothing, nothing > 0, notes=("no region is in the scan",))
    near = beyond(prepared.regions, prepared.brain, prepared.spacing, parameters["beyond_mm"]) & ~prepared.csf
    box = bounding_box(inside, (MARGIN, MARGIN, REACH))
    volume = prepared_volume(prepared, names)[box]
    made = logits(model, volume, marks(names, prepared.spacing), flips=parameters["flips"])
    probability = np.zeros(inside.shape, np.float32)
    probability[box] = probabilities(made, used)
    where = used["threshold"], used.get("extent", 0.0)
    mask = pieces.marked(np.where(inside, probability, 0), *where)
    mask = pieces.followed(mask, pieces.marked(np.where(inside | near, probability, 0), *where) & near)
    probability[~(inside | mask)] = 0
    record = {**recorded(parameters), "sequences": list(names), **used}
    return Prediction("unet", probability, mask, record)


SPEC = ModelSpec(
    name="unet",
    title="Multi-channel U-Net on any of T2w, T1w, FLAIR and SWI",
    doi="10.1016/j.ynirp.2023.100162",
    citation=(
        "Rashid T, Liu H, Ware JB, et al. Deep learning based detection of enlarged perivascular spaces on brain MRI. "
        "Neuroimage: Reports 2023;3:100162."
    ),
    task="segmentation",
    suffixes=SEQUENCES,
    regions=NAMES,
    predict=predict,
    parameters={"flips": False, "beyond_mm": 2.5},
    normalise="white matter 0, cerebrospinal fluid 1 (T2w) or -1 (T1w, FLAIR); brain only",
    build=build,
    network=network,
    weights=WEIGHTS,
    calibrated=True,
    needs_t2w=False,
    deviations=(
        "Trained on simulated images of real label maps, not on manual segmentations; not validated on labelled scans.",
        "One network for all combinations of sequences: they are left out at random in training and marked absent.",
        "Two neighbouring slices on each side and the voxel size are further channels.",
        "Targets are the share of each voxel that EPVS fill; loss is cross-entropy and soft Dice.",
        "Sequences are aligned to the T2w (without one to the T1w or FLAIR) instead of the SWI.",
        "Large fluid is left out of the result.",
        "EPVS found in a region are followed out of it, for 2.5 mm at most (parameter beyond_mm).",
        "The threshold makes the mean count right on held-out simulated brains, apart for thin and thick slices; EPVS "
        "found with it are then thinned to a higher one, which makes the volume of masks right.",
        "Thick coronal and sagittal slices have weights and thresholds of their own.",
    ),
)
