"""Borders of the deep grey matter by the scan's own intensities.

Networks at 2 mm know where a nucleus lies, but see its border less sharply than the scan shows it. Here each nucleus
has a mean of its own in each sequence, found by expectation maximisation, since one mean for all of them takes the dark
pallidum for white matter. The numbers below were chosen on simulated heads 12 and 17 and on the overlap between
sequences of two real sessions. A Markov random field was tried: where there is no contrast it takes corners off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.resample import bounding_box

KINDS = ((2, 41), (11, 50), (12, 51), (13, 52), (10, 49))
"""Left and right index of white matter, caudate, putamen, pallidum, thalamus. Accumbens looks like its neighbours, the
ventral diencephalon holds several tissues: both stay as they are."""
NUCLEI = tuple(index for kind in KINDS[1:] for index in kind)
SOLID = (2, 41, *NUCLEI, 26, 58, 28, 60)
"""Those, accumbens and ventral diencephalon."""
MARGIN_MM = 8.0
"""White matter within this of the nuclei's bounding box takes part."""
SURE_WHITE = 0.95
"""Probability above which a voxel is white matter."""
SOME = 0.3
"""Least probability of all kinds together in a voxel that is one of them."""
CLEAR = 0.9
"""Probability of solid structures in a voxel, and its neighbours, that counts in the means a network sees."""
POSSIBLE = 0.02
"""Least probability of a kind that intensities can raise."""
TRUST, MOST = 0.7, 3.0
"""Weight of a log-likelihood, as noise and texture of neighbours are alike, and its largest loss."""
AT_FLUID = 0.02
"""How often voxels that touch fluid or cortex count in the means: they hold some of it. A thin caudate beside wide
ventricles would seem bright, and lose its other border."""
UNLIKE = 3.0
"""Standard deviations from all means beyond which intensities (of EPVS, lesions, vessels) say nothing."""
SMOOTH_MM = 0.6
"""Standard deviation (mm) of the neighbourhood whose log-likelihoods are averaged; axes with voxels below 2 mm."""
_ROUNDS, _SAMPLES = 15, 50_000
_INDICES = list(ATLAS_LABELS)


def sharpened(
    labels: np.ndarray, prior: np.ndarray, images: Sequence[np.ndarray], spacing: Sequence[float]
) -> np.ndarray:
    """Labels whose borders between nuclei, and to white matter, follow the intensities.

    Only voxels that are one of `KINDS` change, to another of them of the same side.

    Parameters
    ----------
    labels : ndarray of int16
        Indices of `ATLAS_LABELS`, (X, Y, Z).
    prior : ndarray of float32
        (X, Y, Z, ATLAS_LABELS).
    images : sequence of ndarray
        Bias-corrected sequences, (X, Y, Z).
    spacing : sequence of float
        mm.

    References
    ----------
    Mixture with given priors as Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018.
    """
    nuclei = np.isin(labels, NUCLEI)
    if not nuclei.any():
        return labels
    box = bounding_box(nuclei, [int(np.ceil(MARGIN_MM / s)) for s in spacing])
    left, right = (prior[box][..., [_INDICES.index(kind[side]) for kind in KINDS]] for side in range(2))
    given = left + right
    total = given.sum(axis=-1)
    solid = np.isin(labels[box], np.ravel(KINDS)) & (total > SOME)
    given /= np.maximum(total, 1e-6)[..., None]
    if not (solid & (given[..., 0] > SURE_WHITE)).any():
        return labels
    unsure = solid & (np.count_nonzero(given >= POSSIBLE, axis=-1) > 1)
    sigma = [SMOOTH_MM / s if s < 2 else 0.0 for s in spacing]
    clear = ndimage.binary_erosion(np.isin(labels[box], SOLID), _around(spacing))
    values = np.stack([image[box] for image in images], axis=-1)
    fit = _averaged(fitting(values, given, solid, clear, spacing), solid, sigma)
    with np.errstate(divide="ignore"):
        score = np.log(np.where(given[unsure] < POSSIBLE, 0, given[unsure])) + TRUST * fit[unsure]
    out = labels.copy()
    side = np.isin(labels[box][unsure], [index for _, index in KINDS]).astype(int)
    out[box][unsure] = np.array(KINDS, labels.dtype)[np.argmax(score, axis=-1), side]
    return out


def likelihoods(values: np.ndarray, shares: np.ndarray, sure: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """How well each voxel fits each of `KINDS` by their intensities in this scan, as input of a network.

    Parameters
    ----------
    values : ndarray
        Intensities, (X, Y, Z); 0 where nothing was imaged.
    shares : ndarray
        Probability of each of `KINDS`, sides together, (X, Y, Z, kinds).
    sure : ndarray
        Probability of all of `SOLID`, (X, Y, Z).
    spacing : sequence of float
        mm.

    Returns
    -------
    ndarray of float32
        (X, Y, Z, kinds), 1 for the likeliest; 1 for all kinds in voxels that are none of them or resemble none, and
        everywhere where no white matter is sure.
    """
    out = np.ones(shares.shape, np.float32)
    total = shares.sum(axis=-1)
    solid = (total > SOME) & (values > 0)
    given = shares / np.maximum(total, 1e-6)[..., None]
    if (solid & (given[..., 0] > SURE_WHITE)).any():
        clear = ndimage.binary_erosion(sure > CLEAR, _around(spacing))
        out = np.exp(fitting(values[..., None], given, solid, clear, spacing))
    return out


def _around(spacing: Sequence[float]) -> np.ndarray:
    """Neighbours of a voxel along axes with voxels below 2 mm."""
    return np.ones([3 if s < 2 else 1 for s in spacing])


def fitting(
    values: np.ndarray, given: np.ndarray, solid: np.ndarray, clear: np.ndarray, spacing: Sequence[float]
) -> np.ndarray:
    """How well each voxel fits each of `KINDS`: `log_likelihoods`, float32 (X, Y, Z, kinds), 0 where it is not solid.

    Parameters
    ----------
    values : ndarray
        Bias-corrected sequences, (X, Y, Z, channels).
    given : ndarray
        Probability of each kind, (X, Y, Z, kinds), sums to 1 where solid; somewhere white matter must be sure.
    solid : ndarray of bool
        Voxels that are one of `KINDS`.
    clear : ndarray of bool
        Voxels that touch neither fluid nor cortex (the others hardly count, see `AT_FLUID`).
    spacing : sequence of float
        mm.
    """
    even = values.astype(np.float32)
    white = solid & (given[..., 0] > SURE_WHITE)
    counts = np.where(clear, 1, AT_FLUID)[solid]
    places = _places(solid, spacing)
    for _ in range(2):  # the deviation is too large while the field is in it
        even /= _deviation(even[white])
        field, means = _fitted(even[solid], given[solid], places, counts)
        even[solid] /= field
    fit = np.zeros(given.shape, np.float32)
    fit[solid] = log_likelihoods(even[solid], means)
    return fit


def _averaged(fit: np.ndarray, mask: np.ndarray, sigma: Sequence[float]) -> np.ndarray:
    """Mean around each voxel of a mask, weighted by a Gaussian (voxels), of (X, Y, Z, kinds) inside the mask."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=3)
    return ndimage.gaussian_filter(fit, (*sigma, 0), truncate=3) / np.maximum(weight, 1e-3)[..., None]


def _deviation(sure: np.ndarray) -> np.ndarray:
    """Standard deviation of each channel of white matter, (channels,), by the median absolute deviation."""
    middle = np.median(sure, axis=0)
    return np.maximum(1.4826 * np.median(np.abs(sure - middle), axis=0), 1e-3 * np.abs(middle) + 1e-9)


def _places(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of the voxels of a mask from their middle, (n, 3), in units of 50 mm."""
    at = np.argwhere(mask) * np.asarray(spacing)
    return (at - at.mean(axis=0)) / 50.0


def _fitted(
    values: np.ndarray, prior: np.ndarray, place: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the coil's field, a factor (n, channels), and the mean of each kind without it (kinds, channels).

    A mixture of Gaussians of deviation 1 with given mixing shares; the factor is linear in the place, (n, 3). A
    sample counts as often as `counts` says, more where the prior is sure, and hardly where it fits no kind.
    """
    step = max(1, len(values) // _SAMPLES)
    some, shares, where = values[::step].astype(np.float64), prior[::step].astype(np.float64), place[::step]
    low, high = np.percentile(some, [0.5, 99.5], axis=0)
    usual = ((some >= low) & (some <= high)).all(axis=1)
    some, where, often = np.ascontiguousarray(some[usual].T), where[usual], counts[::step][usual]
    shares = np.ascontiguousarray(shares[usual].T)  # kinds first: sums over them are several times as fast
    weight, even = shares**2, some
    slopes = np.zeros((3, len(some)))
    for _ in range(_ROUNDS):
        inner = often * weight * shares
        means = inner @ even.T / np.maximum(inner.sum(axis=1), 1e-6)[:, None]
        likely = np.exp(_fit(even, means))
        weight = shares * likely
        weight *= likely / np.maximum(weight.sum(axis=0), 1e-9)
        share = weight.sum(axis=0)
        expected = means.T @ weight / np.maximum(share, 1e-9)
        for c, (own, other) in enumerate(zip(expected, some, strict=True)):
            rows = where * (share * own)[:, None]
            slopes[:, c] = np.linalg.lstsq(rows.T @ rows, rows.T @ (share * (other - own)), rcond=None)[0]
        even = some / np.clip(1 + (where @ slopes).T, 0.5, 2)
    return np.clip(1 + place @ slopes, 0.5, 2).astype(np.float32), means


def _fit(values: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Log-likelihood of (channels, n) under each of `KINDS`, at least -`MOST`, (kinds, n)."""
    return np.maximum(np.stack([-0.5 * np.square(values - mean[:, None]).sum(axis=0) for mean in means]), -MOST)


def log_likelihoods(values: np.ndarray, means: np.ndarray) -> np.ndarray:
    """How well each sample fits each of `KINDS`, (n, kinds), 0 for the likeliest, and for all where it resembles none.

    Parameters
    ----------
    values : ndarray
        (n, channels), in standard deviations.
    means : ndarray
        (kinds, channels).
    """
    out = _fit(values.T, means)
    out[:, ((values > means.max(axis=0) + UNLIKE) | (values < means.min(axis=0) - UNLIKE)).any(axis=1)] = 0
    return (out - out.max(axis=0)).T
