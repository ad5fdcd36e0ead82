"""Tissues by the intensities of a scan, with the probabilities of labels as prior (expectation maximisation)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.prepare.labels import ATLAS_LABELS, INDICES

SMOOTH_MM = 0.8
"""Standard deviation (mm) of the smoothing of label scores along axes with small voxels."""
_CLASSES = ("CSF", "GM", "WM", "DGM")
_CLASS_OF = {"CSF": "CSF", "GM": "GM", "WM": "WM", "DGM": "DGM", "Pallidum": "DGM"}
MIXED = (7, 46, 8, 47, 16, 28, 60)
"""Labels that hold several tissues, or one unlike the cerebrum's: intensities do not decide about them."""
KEPT = (*MIXED, 11, 50, 13, 52, 26, 58)
"""Those, and caudate, pallidum and accumbens, where the network that found them has seen the intensities itself: one
Gaussian for all nuclei takes the dark pallidum for white matter, and voxels between ventricle and white matter for
caudate (compared on simulated T2w of heads 12 and 17)."""
BORDER = 0.15
"""Share of the grey matter voxels that hold fluid too. Without a class for them the Gaussian of grey matter is so broad
that on FLAIR cortex is taken for white matter (heads 12 and 17 at 1 mm: white matter 0.85 and 0.86, with it 0.87 both;
T2w and T1w gain less or nothing)."""


def posteriors(images: Sequence[Nifti1Image], mask: np.ndarray, prior: np.ndarray) -> dict[str, np.ndarray]:
    """Posterior of each tissue class from intensities and atlas priors.

    Expectation maximisation of one Gaussian a class over the sequences together, and one for what lies between fluid
    and grey matter (`BORDER`), weighted by the priors at each voxel; where `MIXED` labels prevail the prior stays.

    References
    ----------
    Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018 (without its deformation).
    """
    kinds = [_CLASS_OF.get(e.tissue) if e.brain else None for e in ATLAS_LABELS.values()]
    inside = prior[mask]
    clear = inside[:, np.isin(INDICES, MIXED)].sum(axis=1) < 0.5
    weights = np.stack([inside[:, [k for k, c in enumerate(kinds) if c == name]].sum(-1) for name in _CLASSES], 1)
    weights = np.maximum(weights, 1e-3)
    weights /= weights.sum(axis=1, keepdims=True)
    values = np.stack([_scaled(i, mask) for i in images], axis=1)
    found = weights.copy()
    seen, shares = values[clear].astype(np.float64), weights[clear].astype(np.float64)
    found[clear] = expectation_maximisation(seen, shares, border=BORDER)
    out = {}
    for k, name in enumerate(_CLASSES):
        out[name] = np.zeros(mask.shape, np.float32)
        out[name][mask] = found[:, k]
    return out


def expectation_maximisation(
    values: np.ndarray, priors: np.ndarray, *, iterations: int = 25, most: int = 150_000, border: float = 0.0
) -> np.ndarray:
    """Posteriors of a Gaussian mixture whose mixing proportions are given at each sample.

    Parameters
    ----------
    values : ndarray
        (samples, channels).
    priors : ndarray
        (samples, classes), rows sum to 1; the first posterior.
    iterations : int
    most : int
        Means and covariances are estimated from every n-th sample, so that about as many take part.
    border : float
        Share of the second class that is mixed with the first, evenly in all proportions; it has a Gaussian between
        theirs, and its posterior is added to that of the second.

    Returns
    -------
    ndarray
        (samples, classes), rows sum to 1.
    """
    step = max(1, round(len(values) / most))
    some, shares = values[::step], _with_border(priors[::step], border)
    classes = priors.shape[1]
    weight = shares**2
    for _ in range(iterations):
        gaussians = [_gaussian(some, w) for w in weight[:, :classes].T]
        if border:
            (first, _), (second, spread) = gaussians[:2]
            gaussians.append(((first + second) / 2, spread + np.outer(second - first, second - first) / 12))
        weight = _posterior(some, shares, gaussians)
    found = _posterior(values, _with_border(priors, border), gaussians)
    found[:, 1] += found[:, classes:].sum(axis=1)
    return found[:, :classes]


def _with_border(priors: np.ndarray, border: float) -> np.ndarray:
    """(samples, classes) with the share `border` of the second class in a column of its own, if any."""
    if not border:
        return priors
    out = np.concatenate([priors, border * priors[:, 1:2]], axis=1)
    out[:, 1] *= 1 - border
    return out


def _gaussian(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (channels,) and covariance (channels, channels)."""
    total = max(float(weight.sum()), 1e-9)
    mean = weight @ values / total
    centred = values - mean
    return mean, (weight[:, None] * centred).T @ centred / total + 1e-4 * np.eye(values.shape[1])


def _posterior(
    values: np.ndarray, priors: np.ndarray, gaussians: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Priors (samples, classes) times the density of each class, rows sum to 1."""
    joint = np.empty_like(priors)
    for k, (mean, covariance) in enumerate(gaussians):
        centred = values - mean
        distance = np.einsum("ij,ij->i", centred @ np.linalg.inv(covariance), centred)
        joint[:, k] = np.exp(-0.5 * distance) / np.sqrt(np.linalg.det(covariance)) + 1e-12
    joint *= priors
    return joint / joint.sum(axis=1, keepdims=True)


def _scaled(image: Nifti1Image, mask: np.ndarray) -> np.ndarray:
    """Intensities in the mask, cut at the percentiles 0.5 and 99 and scaled to 0-1."""
    inside = np.asarray(image.dataobj, np.float32)[mask]
    low, high = np.percentile(inside, [0.5, 99])
    return (np.clip(inside, low, high) - low) / max(high - low, 1e-6)


def label_map(
    prior: np.ndarray,
    posterior: dict[str, np.ndarray],
    mask: np.ndarray,
    spacing: Sequence[float],
    *,
    kept: tuple[int, ...] = MIXED,
) -> np.ndarray:
    """Most probable label: prior of the label, reweighted by posterior over prior of its tissue (int16).

    Cortex and deep grey matter share one weight: their intensities overlap, so the prior decides between them. Labels
    of `kept` keep their prior. The scores are smoothed by `SMOOTH_MM`, so that noise makes no islands.
    """
    sigma = [SMOOTH_MM / s if s < 2 * SMOOTH_MM else 0.0 for s in spacing]
    kinds = [_CLASS_OF.get(e.tissue) if e.brain else None for e in ATLAS_LABELS.values()]
    best = np.full(mask.shape, -1.0, np.float32)
    out = np.zeros(mask.shape, np.int16)
    rest = 1 - prior[..., np.isin(INDICES, kept)].sum(axis=-1)
    for names in (("CSF",), ("GM", "DGM"), ("WM",)):
        members = [k for k, c in enumerate(kinds) if c in names]
        total = np.maximum(prior[..., members].sum(-1), 1e-3)
        weight = rest * sum(posterior[name] for name in names) / total
        for k in members:
            own = prior[..., k] if INDICES[k] in kept else prior[..., k] * weight
            score = ndimage.gaussian_filter(own, sigma, truncate=3)
            better = mask & (score > best)
            best[better] = score[better]
            out[better] = INDICES[k]
    return out
