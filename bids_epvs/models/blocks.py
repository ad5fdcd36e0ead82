"""Parts of networks that several methods share, written with Keras layers alone (any backend)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers, ops


def convolve(x: Any, filters: int, *, size: int = 3) -> Any:
    """Convolution in 2-D or 3-D, instance normalisation, leaky ReLU; channels last."""
    layer = layers.Conv3D if len(x.shape) == 5 else layers.Conv2D
    x = layer(filters, size, padding="same", use_bias=False)(x)
    x = layers.GroupNormalization(groups=-1, epsilon=1e-5)(x)
    return layers.LeakyReLU(0.1)(x)


def unet(x: Any, widths: Sequence[int], *, depth: int = 2) -> Any:
    """Encoder and decoder with skips; returns the features at full resolution.

    Parameters
    ----------
    x : KerasTensor
        (batch, X, Y, Z, channels) or (batch, X, Y, channels), sides divisible by ``2 ** (len(widths) - 1)``.
    widths : sequence of int
        Filters of each level, finest first.
    depth : int
        Convolutions a level, on the way down and on the way up.

    References
    ----------
    Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28; instance normalisation as Isensee et al. 2021,
    doi:10.1038/s41592-020-01008-z.
    """
    solid = len(x.shape) == 5
    smaller = layers.MaxPooling3D if solid else layers.MaxPooling2D
    larger = layers.UpSampling3D if solid else layers.UpSampling2D
    skips = []
    for level, filters in enumerate(widths):
        if level:
            x = smaller(2)(x)
        for _ in range(depth):
            x = convolve(x, filters)
        skips.append(x)
    for level in range(len(widths) - 2, -1, -1):
        x = layers.Concatenate()([larger(2)(x), skips[level]])
        for _ in range(depth):
            x = convolve(x, widths[level])
    return x


def space_to_depth(x: Any) -> Any:
    """(batch, X, Y, Z, channels) to half the grid with eight times the channels."""
    _, a, b, c, n = x.shape
    x = ops.reshape(x, (-1, a // 2, 2, b // 2, 2, c // 2, 2, n))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 5, 2, 4, 6, 7)), (-1, a // 2, b // 2, c // 2, 8 * n))


def depth_to_space(x: Any) -> Any:
    """The inverse of `space_to_depth`."""
    _, a, b, c, n = x.shape
    x = ops.reshape(x, (-1, a, b, c, 2, 2, 2, n // 8))
    return ops.reshape(ops.transpose(x, (0, 1, 4, 2, 5, 3, 6, 7)), (-1, 2 * a, 2 * b, 2 * c, n // 8))


def doubled(x: Any) -> Any:
    """(batch, X, Y, Z, channels) on half the voxel size, linear between the centres of voxels, constant at the faces.

    >>> made = doubled(ops.reshape(ops.convert_to_tensor([0.0, 4.0]), (1, 2, 1, 1, 1)))
    >>> ops.convert_to_numpy(made).ravel()[::4].tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    for axis in (1, 2, 3):
        n = x.shape[axis]
        lead = (slice(None),) * axis
        wide = ops.concatenate([x[*lead, :1], x, x[*lead, n - 1 :]], axis=axis)
        before, after = wide[*lead, :n], wide[*lead, 2:]
        pairs = ops.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = ops.reshape(pairs, (-1, *(2 * m if k == axis else m for k, m in enumerate(x.shape) if k)))
    return x
