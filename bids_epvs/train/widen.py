"""A wider network that begins as a narrow one: what that has learnt is carried over, and answers stay the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras
import numpy as np

_CONVOLUTION = r"conv\dd(_\d+)?$"
"""Names that Keras gives to layers that keep the size of a level."""


def grown(old: keras.Model, new: keras.Model, narrow: Sequence[int], wide: Sequence[int]) -> None:
    """Give a new network the parameters of an old one that has fewer filters in some levels, or no last look.

    Filters of the old network come first; those that are new keep their random weights, but what they say counts
    nothing in the old ones and in the answer until it is learnt. Normalisation is per filter, so that the answer does
    not change.

    Parameters
    ----------
    old, new : keras.Model
        Made by the same function around `models.blocks.unet` with two convolutions a level, or by `models.unet.build`.
    narrow, wide : sequence of int
        Filters of each level of both; as many levels.

    Raises
    ------
    ValueError
        The new network has fewer levels or filters, or another number of them in its last look.

    References
    ----------
    Chen et al. 2016, Net2Net, arXiv:1511.05641 (there, new filters are copies).
    """
    if len(narrow) != len(wide) or any(a > b for a, b in zip(narrow, wide, strict=True)):
        raise ValueError(f"expected at least {tuple(narrow)} filters a level, received {tuple(wide)}")
    larger = list(zip(_made(old, "transpose"), _made(new, "transpose"), strict=True))
    inner = _inputs(narrow, wide, learnt=bool(larger))
    for level, (a, b) in enumerate(reversed(larger)):
        _carry(a, b, [(narrow[level + 1], wide[level + 1])])
    for number, (a, b) in enumerate(zip(_made(old, _CONVOLUTION), _made(new, _CONVOLUTION), strict=False)):
        if number >= len(inner) and a.kernel.shape[-1] != b.kernel.shape[-1]:
            raise ValueError(f"expected {a.kernel.shape[-1]} filters in its last look, received {b.kernel.shape[-1]}")
        kept = inner[number] if number < len(inner) else [(narrow[0], wide[0])]
        if sum(n for n, _ in kept) != a.kernel.shape[-2]:  # what does not see the features of the first level
            kept = [(a.kernel.shape[-2], b.kernel.shape[-2])]
        _carry(a, b, kept)
    for a, b in zip(_made(old, "normalization"), _made(new, "normalization"), strict=False):
        for before, after in zip(a.weights, b.weights, strict=True):
            values = np.array(keras.ops.convert_to_numpy(after))
            values[: before.shape[0]] = keras.ops.convert_to_numpy(before)
            after.assign(values)


def _inputs(narrow: Sequence[int], wide: Sequence[int], *, learnt: bool) -> list[list[tuple[int, int]]]:
    """Filters before each convolution of a U-Net after the first, (old, new) of each part; -1: of the input.

    `learnt`: on the way up a level is made larger by a convolution with its own filters (`models.unet`), else as it is
    (`models.blocks.unet`).
    """
    pairs = list(zip(narrow, wide, strict=True))
    out: list[list[tuple[int, int]]] = []
    for level, own in enumerate(pairs):
        out += [[pairs[level - 1]] if level else [(-1, -1)], [own]]
    for level in range(len(pairs) - 2, -1, -1):
        out += [[pairs[level if learnt else level + 1], pairs[level]], [pairs[level]]]
    return out


def _made(model: keras.Model, kind: str) -> list[keras.layers.Layer]:
    """Layers of a kind with parameters in the order in which they were made (the end of their names counts)."""
    found = [layer for layer in model.layers if re.search(kind, layer.name) and layer.weights]
    return sorted(found, key=lambda layer: int((re.findall(r"_(\d+)$", layer.name) or ["0"])[0]))


def _carry(old: keras.layers.Layer, new: keras.layers.Layer, parts: Sequence[tuple[int, int]]) -> None:
    """Kernel and bias of a convolution; `parts`: how many of its inputs, old and new, come one after the other."""
    before, after = keras.ops.convert_to_numpy(old.kernel), np.array(keras.ops.convert_to_numpy(new.kernel))
    inputs, outputs = (-1, -2) if "transpose" in old.name else (-2, -1)
    before, after = (np.moveaxis(kernel, (inputs, outputs), (-2, -1)) for kernel in (before, after))
    many = before.shape[-1]
    after[..., :many] = 0
    start, first = 0, 0
    for n, m in parts:
        after[..., first : first + n, :many] = before[..., start : start + n, :]
        start, first = start + n, first + m
    new.kernel.assign(np.moveaxis(after, (-2, -1), (inputs, outputs)))
    if old.use_bias:
        bias = np.array(keras.ops.convert_to_numpy(new.bias))
        bias[:many] = keras.ops.convert_to_numpy(old.bias)
        new.bias.assign(bias)
