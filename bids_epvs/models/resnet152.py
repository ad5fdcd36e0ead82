"""Severity of EPVS in the basal ganglia by a 3-D residual network of 152 layers (3D-ResNet-152).

References
----------
Williamson et al. 2022, Automated grading of enlarged perivascular spaces in clinical imaging data of an acute stroke
cohort using an interpretable, 3D deep learning framework, Scientific Reports 12:788.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from bids_epvs.models import weights
from bids_epvs.models.spec import ModelSpec, Weights, recorded
from bids_epvs.prepare import window
from bids_epvs.prepare.crops import dilated
from bids_epvs.prepare.regions import indices
from bids_epvs.prepare.window import Window
from bids_epvs.records import SEVERITY, Finding, Prediction, Prepared

if TYPE_CHECKING:
    import keras

UNITS: Mapping[int, tuple[int, int, int, int]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Residual units with 1, 2, 4 and 8 times the width; three convolutions a unit, one before, one dense layer."""
WIDTH = 64
"""Filters of the first stage in the paper."""
SHIPPED_WIDTH = 8
"""Of the packaged weights, and of training unless told otherwise."""
DROPOUT = 0.4
SHAPE = (160, 128, 16)
STEP_MM = (0.6, 0.6, 3.0)
"""The box around the basal ganglia that the network sees."""
RANGE = (0.5, 2.5)
"""Times the median of the basal ganglia: they become 0 and 1. Atrophy and the field of view do not change it."""
LEVEL = (1 - RANGE[0]) / (RANGE[1] - RANGE[0])
"""What the median becomes."""
MARGIN_MM = 3.0
"""What lies farther from the basal ganglia is 0: the network cannot speak of other regions."""


def volume(
    image: np.ndarray, brain: np.ndarray, regions: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, Window] | None:
    """What the network sees of a scan: `SHAPE`, float32 0-1, and where that is. None without the region.

    Parameters
    ----------
    image : ndarray
        Bias-corrected T2w, canonical frame.
    brain : ndarray of bool
    regions : ndarray of uint8
        Indices of `REGIONS`.
    spacing : tuple of float
        Voxel sizes, mm.
    """
    own = np.isin(regions, indices("BasalGanglia"))
    if not own.any():
        return None
    where = window.around(own, spacing, SHAPE, STEP_MM)
    low, high = (max(float(np.median(image[own])), 1e-6) * k for k in RANGE)
    seen = where.cut(np.where(brain, image, 0))
    scaled = np.clip((seen - np.float32(low)) / np.float32(high - low), 0, 1)
    return scaled * looked(regions, where), where


def looked(regions: np.ndarray, where: Window) -> np.ndarray:
    """Where in its box the network is given an image, bool; elsewhere its input is 0."""
    return near(where.cut(np.isin(regions, indices("BasalGanglia"))) >= 0.5)


def near(basal: np.ndarray) -> np.ndarray:
    """The basal ganglia and `MARGIN_MM` around them, bool; `basal` is on the grid of the box."""
    return dilated(basal, MARGIN_MM, STEP_MM)


def build(depth: int = 152, width: int = WIDTH, stride_z: int = 2) -> keras.Model:
    """The network: (batch, X, Y, Z, 1) to the probability of moderate to severe EPVS, (batch, 1).

    The sides are halved by the first convolution, the pooling, the first unit, and each time the filters double. Where
    a unit changes shape, its input is brought to the new shape by a 1 x 1 x 1 convolution, which is not counted.

    Parameters
    ----------
    depth : {50, 101, 152}
    width : int
    stride_z : int
        Stride across slices of those layers that have stride 2 in the plane; 1 keeps slices apart.

    Raises
    ------
    ValueError
        No such depth.
    """
    import keras
    from keras import layers

    if depth not in UNITS:
        raise ValueError(f"depth: expected one of {sorted(UNITS)}, received {depth}")
    step = (2, 2, stride_z)
    image = keras.Input((None, None, None, 1))
    x = _convolve(image, width, 7, step, name="first")
    x = layers.MaxPooling3D(3, strides=step, padding="same")(x)
    for stage, units in enumerate(UNITS[depth]):
        for number in range(units):
            x = _unit(x, width * 2**stage, step if number == 0 else 1, name=f"stage{stage + 1}_unit{number + 1}")
    x = layers.Dropout(DROPOUT)(layers.GlobalAveragePooling3D()(x))
    logit = layers.Dense(1, name="logit")(x)
    return keras.Model(image, layers.Activation("sigmoid")(logit), name=f"resnet{depth}")


def _convolve(x: Any, filters: int, size: int, stride: Any = 1, *, name: str) -> Any:
    """Convolution, batch normalisation, ReLU."""
    from keras import layers

    x = layers.Conv3D(filters, size, strides=stride, padding="same", use_bias=False, name=f"{name}_convolution")(x)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_normalisation")(x))


def _unit(x: Any, filters: int, stride: Any, *, name: str) -> Any:
    """Convolutions of 3, 3 and 1, their result added to the input."""
    from keras import layers

    inner = x
    for number, (size, own) in enumerate(((3, stride), (3, 1), (1, 1)), 1):
        inner = _convolve(inner, filters, size, own, name=f"{name}_{number}")
    if stride != 1 or x.shape[-1] != filters:
        x = layers.Conv3D(filters, 1, strides=stride, padding="same", use_bias=False, name=f"{name}_match")(x)
    return layers.Add(name=name)([x, inner])


WEIGHTS = Weights(
    file="resnet152.npz",
    sha256="5c26f86d4d93f286ed2186e58c86e8b47a55b4c081674e5e07225aa07439eee5",
    licence="Apache-2.0",
    trained_on="simulated T2w of twelve label maps (see resnet152.json beside the weights)",
)
network = weights.network_of("resnet152", build, WEIGHTS)


def calibrated(chance: float, stored: Mapping[str, Any]) -> float:
    """Probability from that of the network (Platt scaling)."""
    logit = special.logit(np.clip(chance, 1e-6, 1 - 1e-6))
    return float(special.expit(stored.get("slope", 1.0) * logit + stored.get("offset", 0.0)))


def seen(prepared: Prepared) -> tuple[np.ndarray, Window] | None:
    """`volume` of a session."""
    return volume(prepared.images["T2w"], prepared.brain, prepared.regions, prepared.spacing)


def predict(prepared: Prepared, parameters: Mapping[str, Any]) -> Prediction:
    """Whether the EPVS of the basal ganglia are moderate to severe."""
    import keras

    model, stored = network(parameters.get("weights"))
    record = recorded(parameters)
    found = seen(prepared)
    if found is None:
        return Prediction("resnet152", parameters=record, notes=("the basal ganglia are not in the scan",))
    said = float(keras.ops.convert_to_numpy(model(found[0][None, ..., None], training=False))[0, 0])
    chance = calibrated(said, stored)
    finding = Finding("BasalGanglia", "both", rating=int(chance >= 0.5), scale=SEVERITY, chances=(1 - chance, chance))
    return Prediction("resnet152", parameters=record, findings=(finding,))


SPEC = ModelSpec(
    name="resnet152",
    title="None or mild against moderate to severe by a 3-D ResNet-152 with Grad-CAM",
    doi="10.1038/s41598-021-04287-4",
    citation=(
        "Williamson BJ, Khandwala V, Wang D, et al. Automated grading of enlarged perivascular spaces in clinical "
        "imaging data of an acute stroke cohort using an interpretable, 3D deep learning framework. Sci Rep "
        "2022;12:788."
    ),
    task="severity",
    suffixes=("T2w",),
    regions=("BasalGanglia",),
    predict=predict,
    parameters={"layer": "stage1_unit3", "clever": False},
    spacing=STEP_MM,
    shape=SHAPE,
    normalise="0.5 to 2.5 times the median of the basal ganglia become 0 to 1; 0 beyond 3 mm from them",
    build=build,
    network=network,
    weights=WEIGHTS,
    outputs=("saliency", "findings"),
    explain="gradcam",
    saliency=(
        "Grad-CAM, places that speak for moderate to severe EPVS; it does not outline EPVS, and its values cannot be "
        "compared between images"
    ),
    calibrated=True,
    axial=True,
    deviations=(
        "Trained on simulated images of real label maps, not on graded scans; not validated on graded scans.",
        "8 filters in the first stage instead of 64; depth 152 as in the paper.",
        "The basal ganglia and 3 mm around them, in a box of 96 x 77 x 48 mm (0.6 x 0.6 x 3 mm), instead of 16 slices "
        "of the whole head.",
        "Intensities are cut at 0.5 and 2.5 times the median of the basal ganglia instead of percentiles 82 and 90 of "
        "the image, which change with the size of the ventricles.",
        "Slices are kept apart (stride 1 across them), so that Grad-CAM tells slices apart; it is taken after stage 1.",
        "A network of depth 50 was trained first; the other units were then inserted, adding almost nothing at first.",
        "Batches of 8 scans, mild and severe equally often; turned, stretched and varied in intensity.",
        "Grad-CAM is shown where the network is given an image, not where its input is 0.",
        "The learning rate falls as a cosine instead of at plateaus; averaged weights.",
        "The probability is calibrated on held-out simulated scans.",
    ),
)
