"""Enhancement of thin bright structures by a Haar transform of groups of similar blocks.

Each block of 4 x 4 pixels is stacked with those of its neighbourhood that resemble it most; what they share is
separated from noise by an orthonormal Haar transform within the blocks and along the stack, and made stronger.

References
----------
Hou et al. 2017, doi:10.1038/srep42577; block matching as Dabov et al. 2007, doi:10.1109/TIP.2007.901238.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from scipy.ndimage import uniform_filter
from skimage.restoration import denoise_nl_means

BLOCK = 4
GROUP = 8
"""Blocks in a stack, the block itself included."""
SEARCH = 3
"""Pixels that a similar block may be away, along each axis."""
LOW, HIGH = 2.0, 8.0
"""Coefficients below `LOW` standard deviations of the noise are noise; up to `HIGH` they are weak structure."""
GAIN = 2.5
QUIET = 0.3
"""Share of the stacks in which noise is measured: those that vary least."""
QUIET_SHARE = 0.7
"""Of the standard deviation of white noise is found there, in what differs between the blocks of a stack."""
ROUNDING = BLOCK * GROUP**0.5 * float(np.finfo(np.float32).eps)
"""Part of the largest value that a coefficient, a sum over a stack, is inexact by in 32 bits."""


@cache
def haar_matrix(n: int) -> np.ndarray:
    """Orthonormal Haar transform of `n` samples, (n, n); the first row is the mean.

    >>> haar_matrix(2).round(3)
    array([[ 0.707,  0.707],
           [ 0.707, -0.707]])
    """
    if n == 1:
        return np.ones((1, 1))
    above = np.kron(haar_matrix(n // 2), [1.0, 1.0])
    below = np.kron(np.eye(n // 2), [1.0, -1.0])
    return np.concatenate([above, below]) / np.sqrt(2)


@cache
def transforms() -> tuple[np.ndarray, np.ndarray]:
    """Along a stack, (GROUP, GROUP), and within a block, (BLOCK ** 2, BLOCK ** 2); float32."""
    within = np.kron(haar_matrix(BLOCK), haar_matrix(BLOCK))
    return haar_matrix(GROUP).astype(np.float32), within.astype(np.float32)


def noise_levels(change: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """Standard deviation of the noise in each coefficient of a stack, (GROUP, BLOCK ** 2).

    Noise of scans is correlated between pixels (interpolation, filters): coarse coefficients hold more of it than fine
    ones, and the mean of a stack, whose blocks overlap, more than their differences. It is measured in the quietest
    stacks; how it depends on the coefficient within a block, in the differences alone, where there is no anatomy.

    Parameters
    ----------
    change : ndarray
        Transformed stacks, (stacks, GROUP, BLOCK ** 2).
    seen : ndarray of bool, optional
        Stacks to look at.
    """
    if seen is not None and seen.any():
        change = change[seen]
    energy = np.square(change)
    busy = energy[..., 1:].sum(axis=(1, 2))
    quiet = energy[busy <= np.quantile(busy, QUIET)].mean(axis=0)
    within = quiet[1:].mean(axis=0)
    out = np.tile(within, (GROUP, 1))
    out[0] *= max(1.0, quiet[0, 1:].mean() / max(within[1:].mean(), 1e-30))
    return np.sqrt(out) / QUIET_SHARE


def groups(image: np.ndarray) -> np.ndarray:
    """Pixel index (flat) of each pixel of each block of each stack, (blocks, GROUP, BLOCK * BLOCK).

    The blocks of a stack are ordered by their distance to the first one; ties go to the nearer shift.
    """
    rows, columns = (n - BLOCK + 1 for n in image.shape)
    shifts = sorted(product(range(-SEARCH, SEARCH + 1), repeat=2), key=lambda s: (s[0] ** 2 + s[1] ** 2, s))
    padded = np.pad(image.astype(np.float64), SEARCH, mode="edge")
    h, w = image.shape
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    apart = np.empty((len(shifts), rows, columns), np.float32)
    for k, (i, j) in enumerate(shifts):
        other = padded[SEARCH + i : SEARCH + i + h, SEARCH + j : SEARCH + j + w]
        mean = uniform_filter((image - other) ** 2, BLOCK, origin=-(BLOCK // 2))[:rows, :columns]
        whole = (row + i >= 0) & (row + i < rows) & (column + j >= 0) & (column + j < columns)
        apart[k] = np.where(whole, np.maximum(mean, 0), np.inf)
    apart[0] = 0  # the block itself
    best = np.argsort(apart, axis=0, kind="stable")[:GROUP]
    corner = row * w + column
    moves = np.array([i * w + j for i, j in shifts])
    inside = (np.arange(BLOCK)[:, None] * w + np.arange(BLOCK)[None]).ravel()
    starts = corner[None] + moves[best]
    return starts.reshape(GROUP, -1).T[:, :, None] + inside


def enhanced(image: np.ndarray, *, gain: float = GAIN) -> np.ndarray:
    """An image with its weak thin structures made stronger and its noise weaker.

    Parameters
    ----------
    image : ndarray
        (X, Y), at least 8 x 8 pixels, not negative.
    gain : float
        Factor on coefficients between `LOW` and `HIGH` standard deviations of the noise.

    Returns
    -------
    ndarray of float32
        The same shape and scale; means of blocks and strong structures are kept.
    """
    image = np.asarray(image, np.float32)
    where = groups(image)
    stacks = image.ravel()[where]
    along, within = transforms()
    change = np.einsum("gk,nkp,bp->ngb", along, stacks, within, optimize=True)
    levels = noise_levels(change, stacks[:, 0].min(axis=1) > 0)
    sigma = float(np.sqrt(np.square(levels[1, 1:]).mean()))
    if sigma <= ROUNDING * float(image.max()):  # how sums are rounded depends on the processor
        return image.copy()
    size = np.abs(change) / np.maximum(levels, 1e-3 * sigma)
    factor = np.where(size < LOW, 0.0, np.where(size < HIGH, gain, 1.0)).astype(np.float32)
    factor[:, 0, 0] = 1  # the mean of the stack
    back = np.einsum("gk,ngb,bp->nkp", along, change * factor, within, optimize=True)
    total = np.bincount(where.ravel(), weights=back.ravel().astype(np.float64), minlength=image.size)
    often = np.bincount(where.ravel(), minlength=image.size)
    out = np.where(often > 0, total / np.maximum(often, 1), image.ravel()).reshape(image.shape)
    smooth = denoise_nl_means(out, patch_size=3, patch_distance=SEARCH, h=0.4 * sigma, sigma=sigma / 4)
    return np.maximum(smooth, 0).astype(np.float32)
