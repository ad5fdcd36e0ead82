"""Severity of EPVS in the basal ganglia by a 3-D residual network of 152 layers (3D-ResNet-152).

References
----------
Williamson et al. 2022, Automated grading of enlarged perivascular spaces in clinical imaging data of an acute stroke
cohort using an interpretable, 3D deep learning framework, Scientific Reports 12:788.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

UNITS: Mapping[int, tuple[int, int, int, int]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Residual units with 1, 2, 4 and 8 times the width; three convolutions a unit, one before, one dense layer."""
WIDTH = 64
"""Filters of the first stage in the paper."""
DROPOUT = 0.4


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
    x = _convolve(image, width, 7, step)
    x = layers.MaxPooling3D(3, strides=step, padding="same")(x)
    for stage, units in enumerate(UNITS[depth]):
        for number in range(units):
            x = _unit(x, width * 2**stage, step if number == 0 else 1, name=f"stage{stage + 1}_unit{number + 1}")
    x = layers.Dropout(DROPOUT)(layers.GlobalAveragePooling3D()(x))
    logit = layers.Dense(1, name="logit")(x)
    return keras.Model(image, layers.Activation("sigmoid")(logit), name=f"resnet{depth}")


def _convolve(x: Any, filters: int, size: int, stride: Any = 1) -> Any:
    """Convolution, batch normalisation, ReLU."""
    from keras import layers

    x = layers.Conv3D(filters, size, strides=stride, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _unit(x: Any, filters: int, stride: Any, *, name: str) -> Any:
    """Convolutions of 3, 3 and 1, their result added to the input."""
    from keras import layers

    inner = _convolve(_convolve(_convolve(x, filters, 3, stride), filters, 3), filters, 1)
    if stride != 1 or x.shape[-1] != filters:
        x = layers.Conv3D(filters, 1, strides=stride, padding="same", use_bias=False, name=f"{name}_match")(x)
    return layers.Add(name=name)([x, inner])
