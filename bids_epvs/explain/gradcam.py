"""3-D Grad-CAM: which places of a layer speak for the answer of a classifier.

References
----------
Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74. Display scale 0-10: Williamson et al. 2022 (see `models.resnet152`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, stats

from bids_epvs.explain import clever
from bids_epvs.models import resnet152
from bids_epvs.prepare.regions import NAMES, indices
from bids_epvs.records import Prediction, Prepared

if TYPE_CHECKING:
    import keras

HIGH = 7.0
"""Display values above this are high activation."""


def gradcam(model: keras.Model, image: np.ndarray, layer: str, *, output: str = "logit") -> np.ndarray:
    """Grad-CAM of one image at the resolution of a layer.

    The map is ReLU(sum_k w_k A_k), w_k the mean over places of the gradient of the output with respect to feature map
    A_k; larger values speak more for a positive answer.

    Parameters
    ----------
    model : keras.Model
    image : ndarray
        (X, Y, Z, channels).
    layer : str
        Name of a layer with 3-D feature maps.
    output : str
        Name of the layer whose single value is explained: the logit, as a sigmoid near 0 or 1 has no gradient.

    Returns
    -------
    ndarray of float32
        (x, y, z), not negative.

    Raises
    ------
    ValueError
        There is no such layer.
    """
    features, slopes = gradients(model, image, layer, output)
    weight = slopes.mean(axis=(0, 1, 2))
    return np.maximum(features @ weight, 0).astype(np.float32)


def gradients(model: keras.Model, image: np.ndarray, layer: str, output: str) -> tuple[np.ndarray, np.ndarray]:
    """Feature maps of a layer and the gradient of an output with respect to them, both (x, y, z, maps)."""
    import keras

    at, end = (model.get_layer(name).output for name in (layer, output))
    before, after = keras.Model(model.input, at), keras.Model(at, end)  # nothing is differentiated before the layer
    features = keras.ops.convert_to_numpy(before(np.asarray(image, np.float32)[None], training=False))
    return features[0], input_gradients(after, features)[1][0]


def input_gradients(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (n,) of a model with one output and their gradients with respect to its inputs (n, X, Y, Z, channels).

    The only place that calls a backend by name.
    """
    import keras

    seen = keras.ops.convert_to_tensor(np.asarray(images, np.float32))
    if keras.backend.backend() == "torch":
        import torch

        with torch.enable_grad():
            value = model(seen.requires_grad_(), training=False)
            (slope,) = torch.autograd.grad(value.sum(), seen)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(seen)
            value = model(seen, training=False)
        slope = tape.gradient(value, seen)
    else:
        raise NotImplementedError(f"gradients need TensorFlow or torch, not {keras.backend.backend()}")
    return keras.ops.convert_to_numpy(value).reshape(len(images)), keras.ops.convert_to_numpy(slope)


def resized(small: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A map on a finer grid over the same field of view, linear; float32."""
    factors = [n / m for n, m in zip(shape, small.shape, strict=True)]
    return ndimage.zoom(small, factors, order=1, mode="nearest", grid_mode=True).astype(np.float32)


def displayed(raw: np.ndarray) -> np.ndarray:
    """The scale of the paper: 0 to 10, the maximum of this image is 10. Not comparable between scans."""
    top = float(raw.max(initial=0))
    return (raw * np.float32(10 / top)).astype(np.float32) if top > 0 else np.zeros_like(raw, np.float32)


@dataclass(frozen=True)
class Spread:
    """How a map is distributed.

    Attributes
    ----------
    high : float
        Share of voxels with a display value above `HIGH`.
    skewness : float
        Of display values above 0; large where few places decide.
    counts : tuple of int
        Voxels in ten equal bins of the display scale.
    """

    high: float
    skewness: float
    counts: tuple[int, ...]


def spread(shown: np.ndarray, inside: np.ndarray) -> Spread:
    """Distribution of display values inside a mask."""
    values = shown[inside]
    if not values.size:
        return Spread(0.0, 0.0, (0,) * 10)
    positive = values[values > 0]
    skewness = float(stats.skew(positive)) if positive.size > 2 and np.ptp(positive) > 0 else 0.0
    counts, _ = np.histogram(values, bins=10, range=(0, 10))
    return Spread(float((values > HIGH).mean()), skewness, tuple(int(n) for n in counts))


def explain(prepared: Prepared, made: Prediction, parameters: Mapping[str, Any]) -> Prediction:
    """Add the Grad-CAM map of the severity classifier, in the scan's own space, and how it is distributed."""
    found = resnet152.seen(prepared)
    if found is None:
        return made
    image, where = found
    model, _ = resnet152.network(parameters.get("weights"))
    small = gradcam(model, image[..., None], parameters["layer"])
    looked = resnet152.looked(prepared.regions, where)
    saliency = where.back(resized(small, resnet152.SHAPE) * looked) * prepared.brain
    inside = where.back(looked.astype(np.float32)) > 0.5
    seen = spread(displayed(saliency), inside & prepared.brain)
    about: dict[str, Any] = {
        "FractionAbove7": round(seen.high, 4),
        "Skewness": round(seen.skewness, 3),
        "Histogram": seen.counts,
    }
    if parameters.get("clever"):
        about["CLEVER"] = round(clever.score(lambda x: input_gradients(model, x), image[..., None]), 4)
    shares = {k: round(v, 4) for k, v in by_region(saliency, prepared.regions).items()}
    return replace(made, saliency=saliency, parameters={**made.parameters, **about, "ShareByRegion": shares})


def by_region(saliency: np.ndarray, regions: np.ndarray) -> dict[str, float]:
    """Share of the sum of a map that lies in each region; 0 for an empty map."""
    total = float(saliency.sum())
    return {
        name: float(saliency[np.isin(regions, indices(name))].sum()) / total if total > 0 else 0.0 for name in NAMES
    }
