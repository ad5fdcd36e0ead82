"""CLEVER: how far an image can be changed, at least, before a classifier changes its mind (a robustness score).

References
----------
Weng et al. 2018, Evaluating the robustness of neural networks: an extreme value theory approach, ICLR
(arXiv:1801.10578).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

Slopes = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images (n, ...) to probabilities (n,) and their gradients (n, ...)."""


def in_ball(rng: np.random.Generator, n: int, shape: tuple[int, ...], radius: float) -> np.ndarray:
    """Points uniform in a ball around 0 in the L2 norm, (n, *shape) float32."""
    size = int(np.prod(shape))
    way = rng.standard_normal((n, size), dtype=np.float32)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    far = radius * rng.random((n, 1)) ** (1 / size)
    return (way * far).astype(np.float32).reshape(n, *shape)


def score(
    slopes: Slopes,
    image: np.ndarray,
    *,
    radius: float = 10.0,
    batches: int = 50,
    samples: int = 6,
    seed: int = 0,
) -> float:
    """CLEVER score of one image for a classifier of two classes with probabilities p and 1 - p (untargeted, L2).

    The margin g = |2 p - 1| is divided by the local Lipschitz constant: the location of the reverse Weibull
    distribution that fits the largest gradient norms of g in batches of points around the image.

    Parameters
    ----------
    slopes : callable
        See `Slopes`.
    image : ndarray
        (X, Y, Z, channels).
    radius : float
        Of the ball that is searched; the score cannot be larger.
    batches, samples : int
        The paper of `resnet152` used 50 and 6.
    seed : int

    Returns
    -------
    float
        0 to `radius`, on the scale of the image's intensities.
    """
    rng = np.random.default_rng(seed)
    chance, _ = slopes(image[None])
    margin = abs(2 * float(chance[0]) - 1)
    largest = []
    for _ in range(batches):
        _, slope = slopes(image[None] + in_ball(rng, samples, image.shape, radius))
        largest.append(2 * np.linalg.norm(slope.reshape(samples, -1), axis=1).max())
    steepest = lipschitz(np.array(largest))
    return float(min(radius, margin / steepest)) if steepest > 0 else radius


def lipschitz(largest: np.ndarray) -> float:
    """Location of the reverse Weibull distribution of maxima; the largest of them where no fit is sensible."""
    top = float(largest.max())
    if top <= 0 or np.ptp(largest) < 1e-9 * top:
        return top
    scaled = largest / top
    _, location, _ = stats.weibull_max.fit(scaled, 1.0, loc=1.05, scale=max(float(scaled.std()), 1e-6))
    return top * float(np.clip(location, 1.0, 2.0))
