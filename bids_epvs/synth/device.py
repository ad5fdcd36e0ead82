"""What simulation on a GPU needs of arrays, written with `keras.ops` alone: any backend, any device.

Each function does what its namesake in `prepare`, `models` or `synth` does on numpy arrays (the tests compare them),
but where the number of voxels depends on the image: masks are weights here, so that shapes stay. Nothing here waits for
the device: numbers that are compared with are on it already (`number`), arrays are copied while it works.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import ndimage

from bids_epvs.prepare import deep, fields

Tensor = Any
_FAR = 1e30


def tensor(array: np.ndarray | Sequence[float], dtype: type = np.float32) -> Tensor:
    """On the device."""
    array = np.ascontiguousarray(array, dtype)
    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.from_numpy(array).pin_memory().to("cuda", non_blocking=True)
    return ops.convert_to_tensor(array)


@cache
def number(value: float) -> Tensor:
    """A number on the device, float32."""
    return tensor(np.array(value))


def normal(rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers that `rng` decides about."""
    seed = int(rng.integers(2**31 - 1))
    if keras.backend.backend() == "torch":  # keras.random waits for the device
        import torch

        device = keras.ops.zeros(()).device
        generator = torch.Generator(device=device).manual_seed(seed)
        return torch.randn(tuple(shape), generator=generator, device=device)
    return keras.random.normal(tuple(shape), seed=seed)


def at_least(values: Tensor, least: float) -> Tensor:
    """The larger of each value and a number."""
    return ops.maximum(values, number(least))


def clipped(values: Tensor, low: float, high: float) -> Tensor:
    """Values within two numbers."""
    return ops.minimum(at_least(values, low), number(high))


def one_hot(codes: Tensor, classes: int) -> Tensor:
    """1 at the class of each voxel, (..., classes)."""
    return ops.cast(codes[..., None] == tensor(np.arange(classes), np.int32), "float32")


def along(volume: Tensor, weights: Sequence[np.ndarray]) -> Tensor:
    """Weighted sums along the last three axes of (..., X, Y, Z); see `prepare.resample.along_axes`."""
    x, y, z = (tensor(w) for w in weights)
    out = ops.matmul(y, ops.matmul(volume, ops.transpose(z)))
    lead, (a, b, c) = tuple(out.shape[:-3]), out.shape[-3:]
    return ops.reshape(ops.matmul(x, ops.reshape(out, (*lead, a, b * c))), (*lead, x.shape[0], b, c))


def smooth_field(knots: np.ndarray, shape: Sequence[int]) -> Tensor:
    """`prepare.fields.smooth_field` of (..., x, y, z)."""
    return along(tensor(knots), [smooth_weights(n, m) for n, m in zip(shape, knots.shape[-3:], strict=True)])


@lru_cache(maxsize=4096)
def smooth_weights(fine: int, knots: int) -> np.ndarray:
    """(fine, knots) matrix of what `prepare.fields.smooth_field` does along one axis."""
    middle = max(4, fine // 8)
    cubic = [ndimage.zoom(row, middle / knots, order=3, mode="nearest", grid_mode=True) for row in np.eye(knots)]
    return fields.linear_weights(fine, middle) @ np.stack(cubic, axis=1).astype(np.float32)


@lru_cache(maxsize=4096)
def blur(n: int, sigma: float) -> np.ndarray:
    """(n, n) matrix that is a Gaussian filter of an axis, sigma in voxels, borders repeated."""
    unit = np.eye(n, dtype=np.float32)
    return ndimage.gaussian_filter1d(unit, sigma, axis=0, mode="nearest", truncate=3) if sigma > 0 else unit


def places(matrix: np.ndarray, shape: Sequence[int]) -> list[Tensor]:
    """Where the voxels of a grid lie in another one: three coordinates of ``matrix @ voxel``, each of `shape`."""
    near = [tensor(v) for v in np.ogrid[tuple(slice(n) for n in shape)]]
    rows = np.asarray(matrix, np.float64)
    return [float(r[0]) * near[0] + float(r[1]) * near[1] + (float(r[2]) * near[2] + float(r[3])) for r in rows[:3]]


def within(at: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Whether places lie between the first and the last voxels of a volume, bool."""
    inside = [ops.logical_and(place >= 0, place <= n - 1) for place, n in zip(at, shape, strict=True)]
    return ops.logical_and(ops.logical_and(inside[0], inside[1]), inside[2])


def _index(at: Sequence[Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Position in a flattened volume of whole coordinates (float), and whether they lie in it."""
    index = 0
    for place, n in zip(at, shape, strict=True):
        index = index * n + ops.cast(clipped(place, 0, n - 1), "int32")
    return index, within(at, shape)


def nearest(flat: Tensor, shape: Sequence[int], at: Sequence[Tensor]) -> Tensor:
    """Values of a flattened volume at the voxels nearest to places; 0 outside."""
    index, inside = _index([ops.round(place) for place in at], shape)
    return ops.take(flat, index, axis=0) * ops.cast(inside, flat.dtype)


def linear(flat: Tensor, shape: Sequence[int], at: Sequence[Tensor]) -> Tensor:
    """Trilinear values of a flattened volume (n,) or volumes (n, channels) at places; what lies outside counts as 0."""
    sides = []
    for axis, (place, n) in enumerate(zip(at, shape, strict=True)):
        low = ops.floor(place)
        share = place - low
        stride = int(np.prod(shape[axis + 1 :]))
        both = []
        for step, weight in ((0, 1 - share), (1, share)):
            here = low + step
            inside = ops.cast(ops.logical_and(here >= 0, here <= n - 1), "float32")
            both.append((ops.cast(clipped(here, 0, n - 1), "int32") * stride, weight * inside))
        sides.append(both)
    total = None
    for i, j, k in np.ndindex(2, 2, 2):
        (x, a), (y, b), (z, c) = sides[0][i], sides[1][j], sides[2][k]
        weight, value = a * b * c, ops.take(flat, x + y + z, axis=0)
        value = value * (weight[..., None] if len(flat.shape) == 2 else weight)
        total = value if total is None else total + value
    return total


def resampled(volume: Tensor, matrix: np.ndarray, shape: Sequence[int]) -> Tensor:
    """`prepare.resample.resample` of order 1: `matrix` leads from voxels of the result to those of `volume`."""
    steps = np.abs(matrix[:3, :3]).max(axis=1)
    sigma = np.round(np.sqrt(np.maximum(steps**2 - 1, 0)) / 2.355, 2)
    size = tuple(volume.shape)
    if sigma.max() > 0:
        volume = along(volume, [blur(n, float(s)) for n, s in zip(size, sigma, strict=True)])
    return linear(ops.reshape(volume, (-1,)), size, places(matrix, shape))


def shifted(volume: Tensor, axis: int, step: int, fill: float) -> Tensor:
    """(X, Y, Z) or (batch, X, Y, Z) moved by a voxel along an axis, `fill` where nothing comes from."""
    n = volume.shape[axis]
    cut = [slice(None)] * len(volume.shape)
    cut[axis] = slice(0, 1)
    edge = volume[tuple(cut)] * 0 + fill
    cut[axis] = slice(0, n - 1) if step > 0 else slice(1, n)
    kept = volume[tuple(cut)]
    return ops.concatenate([edge, kept] if step > 0 else [kept, edge], axis=axis)


def eroded(mask: Tensor) -> Tensor:
    """`scipy.ndimage.binary_erosion` of (batch, X, Y, Z), float 0 or 1, by 3 x 3 x 3 voxels."""
    for axis in (1, 2, 3):
        mask = ops.minimum(mask, ops.minimum(shifted(mask, axis, 1, 0.0), shifted(mask, axis, -1, 0.0)))
    return mask


def grown(mask: Tensor) -> Tensor:
    """`scipy.ndimage.binary_dilation` of (X, Y, Z), float 0 or 1, by the six neighbours."""
    out = mask
    for axis in range(3):
        out = ops.maximum(out, ops.maximum(shifted(mask, axis, 1, 0.0), shifted(mask, axis, -1, 0.0)))
    return out


def quantile(values: Tensor, seen: Tensor, share: float) -> Tensor:
    """Quantile of the values (batch, n) that are `seen` (0 or 1), linear between samples, (batch, 1)."""
    ordered = ops.sort(ops.where(seen > 0, values, number(_FAR)), axis=-1)
    at = share * at_least(ops.sum(seen, axis=-1, keepdims=True) - 1, 0.0)
    low = ops.floor(at)
    ends = [ops.take_along_axis(ordered, ops.cast(k, "int32"), axis=-1) for k in (low, ops.ceil(at))]
    return ends[0] + (at - low) * (ends[1] - ends[0])


def levels(values: Tensor, prior: Tensor, seen: Tensor, *, iterations: int = 12) -> tuple[Tensor, Tensor]:
    """`models.parcellation.levels` of several images.

    Parameters
    ----------
    values, seen : tensor
        (batch, n); `seen` is 0 or 1.
    prior : tensor
        (batch or 1, tissues, n), sums to 1 over the tissues.
    iterations : int

    Returns
    -------
    mean, variance : tensor
        (batch, tissues).
    """
    weight = ops.square(prior) * seen[:, None]
    for _ in range(iterations):
        total = at_least(ops.sum(weight, axis=-1), 1e-6)
        mean = ops.sum(weight * values[:, None], axis=-1) / total
        away = ops.square(values[:, None] - mean[..., None])
        variance = ops.sum(weight * away, axis=-1) / total + 0.02**2
        weight = ops.exp(-away / (2 * variance[..., None])) / ops.sqrt(variance)[..., None]
        weight = (weight + 1e-12) * prior
        weight = weight / ops.sum(weight, axis=1, keepdims=True) * seen[:, None]
    return mean, variance


def likelihoods(values: Tensor, shares: Tensor, sure: Tensor) -> Tensor:
    """`prepare.deep.likelihoods` of several boxes with voxels of 1 mm.

    Parameters
    ----------
    values, sure : tensor
        (batch, X, Y, Z).
    shares : tensor
        (batch, X, Y, Z, kinds).

    Returns
    -------
    tensor
        As `shares`.
    """
    batch, *size = values.shape
    total = ops.sum(shares, axis=-1)
    solid = ops.cast(ops.logical_and(total > deep.SOME, values > 0), "float32")
    given = shares / at_least(total, 1e-6)[..., None]
    white = solid * ops.cast(given[..., 0] > deep.SURE_WHITE, "float32")
    often = deep.AT_FLUID + (1 - deep.AT_FLUID) * eroded(ops.cast(sure > deep.CLEAR, "float32"))
    flat = [ops.reshape(v, (batch, -1)) for v in (values, solid, white, often)]
    even, solid, white, often = flat
    given = ops.transpose(ops.reshape(given, (batch, -1, shares.shape[-1])), (0, 2, 1))
    where = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1).reshape(-1, 3) / 50.0
    place = tensor(where)[None]
    count = at_least(ops.sum(solid, axis=-1), 1.0)
    place = place - (ops.sum(solid[..., None] * place, axis=1) / count[:, None])[:, None]
    for _ in range(2):
        even = even / _deviation(even, white)
        field, means = _fitted(even, given, place, often, solid)
        even = ops.where(solid > 0, even / field, even)
    fit = at_least(-0.5 * ops.square(even[:, None] - means[..., None]), -deep.MOST)
    above = even > ops.max(means, axis=1, keepdims=True) + deep.UNLIKE
    below = even < ops.min(means, axis=1, keepdims=True) - deep.UNLIKE
    told = solid * ops.cast(ops.sum(white, axis=-1, keepdims=True) > 0, "float32")
    told = told * ops.cast(ops.logical_not(ops.logical_or(above, below)), "float32")
    fit = (fit - ops.max(fit, axis=1, keepdims=True)) * told[:, None]
    return ops.reshape(ops.transpose(ops.exp(fit), (0, 2, 1)), shares.shape)


def _deviation(values: Tensor, seen: Tensor) -> Tensor:
    """Standard deviation by the median absolute deviation, (batch, 1); 1 where nothing is seen."""
    some = ops.sum(seen, axis=-1, keepdims=True) > 0
    middle = quantile(values, seen, 0.5)
    spread = quantile(ops.abs(values - middle), seen, 0.5)
    return ops.where(some, ops.maximum(1.4826 * spread, 1e-3 * ops.abs(middle) + 1e-9), number(1.0))


def _fitted(values: Tensor, prior: Tensor, place: Tensor, often: Tensor, solid: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of the coil's field (batch, n), and the mean of each kind without it (batch, kinds)."""
    low, high = (quantile(values, solid, q) for q in (0.005, 0.995))
    usual = solid * ops.cast(ops.logical_and(values >= low, values <= high), "float32")
    shares = prior * usual[:, None]
    weight, even = ops.square(shares), values
    ridge = tensor(1e-6 * np.eye(3))[None]
    for _ in range(_ROUNDS):
        inner = often[:, None] * weight * shares
        means = ops.sum(inner * even[:, None], axis=-1) / at_least(ops.sum(inner, axis=-1), 1e-6)
        likely = ops.exp(at_least(-0.5 * ops.square(even[:, None] - means[..., None]), -deep.MOST))
        weight = shares * likely
        weight = weight * likely / at_least(ops.sum(weight, axis=1, keepdims=True), 1e-9)
        share = ops.sum(weight, axis=1)
        own = ops.sum(means[..., None] * weight, axis=1) / at_least(share, 1e-9)
        rows = place * (share * own)[..., None]
        across = ops.transpose(rows, (0, 2, 1))
        gram = ops.matmul(across, rows)
        size = ops.mean(ops.sum(ops.square(rows), axis=1), axis=-1)[:, None, None] + 1e-9
        right = ops.matmul(across, (share * (values - own))[..., None])
        field = clipped(1 + ops.matmul(place, solved(gram / size + ridge, right / size))[..., 0], 0.5, 2)
        even = values / field
    return field, means


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solution (batch, 3, 1) of linear equations with (batch, 3, 3); by determinants, which wait for nothing."""
    a, b, c, d = (v[..., 0] for v in (matrix[..., :1], matrix[..., 1:2], matrix[..., 2:], right))
    tops = [ops.sum(x * ops.cross(y, z, axis=-1), axis=-1) for x, y, z in ((d, b, c), (a, d, c), (a, b, d))]
    return ops.stack(tops, axis=-1)[..., None] / ops.sum(a * ops.cross(b, c, axis=-1), axis=-1)[:, None, None]


_ROUNDS = 15
