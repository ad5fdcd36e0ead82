"""Tissues by the intensities of a scan, with the probabilities of labels as prior (expectation maximisation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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
LESION, LESION_NEAR = 0.05, 0.5
"""Share of the white matter voxels that are lesions or hold fluid, and that share where the ventricles may be
(`_NEAR`), as lesions lie around them. Without a class for them they are taken for fluid: six T2w of heads 12 and 17 at
1 mm have Dice 0.90 in the lateral ventricles, with 0.1 everywhere 0.94, with these shares 0.95 (white matter 0.003 and
0.005 more). A FLAIR full of lesions had two solutions, in one of which they were fluid (0.61). See `_shows_lesions`."""
_NEAR = 0.05
"""Prior of the lateral ventricles from which on a voxel is near them."""


def posteriors(images: Sequence[Nifti1Image], mask: np.ndarray, prior: np.ndarray) -> dict[str, np.ndarray]:
    """Posterior of each tissue class from intensities and atlas priors.

    Expectation maximisation of one Gaussian a class over the sequences together, and one each for what lies between
    fluid and grey matter (`BORDER`) and for lesions of white matter (`LESION`), weighted by the priors at each voxel;
    where `MIXED` labels prevail the prior stays.

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
    mixtures = [Mixture(1, BORDER, _border)]
    if _shows_lesions(seen, shares):
        near = inside[:, np.isin(INDICES, (4, 43))].sum(axis=1)[clear] > _NEAR
        mixtures.append(Mixture(2, np.where(near, LESION_NEAR, LESION), _lesions))
    found[clear] = expectation_maximisation(seen, shares, mixtures=mixtures)
    out = {}
    for k, name in enumerate(_CLASSES):
        out[name] = np.zeros(mask.shape, np.float32)
        out[name][mask] = found[:, k]
    return out


def _shows_lesions(values: np.ndarray, priors: np.ndarray) -> bool:
    """Whether lesions look unlike all tissues in the first sequence: not on a T1w.

    There the class took the rim of the ventricles from them (head 05, Dice 0.96 to 0.94).
    """
    fluid, grey, white = (np.average(values[:, 0], weights=weight) for weight in priors[:, :3].T ** 2)
    return not fluid < grey < white


class Mixture(NamedTuple):
    """A second Gaussian of a class, for voxels of it that look otherwise.

    Attributes
    ----------
    of : int
        Number of the class.
    share : float or ndarray
        Share of the class that it has, everywhere or at each sample.
    ends : callable
        Means of the classes, (classes, channels), to the two intensities, (channels,) each, between which these voxels
        lie evenly.
    """

    of: int
    share: float | np.ndarray
    ends: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _border(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fluid and grey matter."""
    return means[0], means[1]


def _lesions(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """White matter and fluid; on FLAIR, where grey matter does not lie between these, grey matter and 1 (`_scaled`)."""
    fluid, grey, white = means[:3]
    between = (grey - white) * (fluid - grey) > 0
    return np.where(between, white, grey), np.where(between, fluid, 1.0)


def expectation_maximisation(
    values: np.ndarray,
    priors: np.ndarray,
    *,
    iterations: int = 25,
    most: int = 150_000,
    mixtures: Sequence[Mixture] = (),
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
    mixtures : sequence of Mixture
        Their posteriors are added to those of their classes.

    Returns
    -------
    ndarray
        (samples, classes), rows sum to 1.
    """
    step = max(1, round(len(values) / most))
    every = _with_mixtures(priors, mixtures)
    some, shares = values[::step], every[::step]
    classes = priors.shape[1]
    weight = shares**2
    for _ in range(iterations):
        gaussians = [_gaussian(some, w) for w in weight[:, :classes].T]
        means = np.stack([mean for mean, _ in gaussians])
        for mixture in mixtures:
            low, high = mixture.ends(means)
            spread = gaussians[mixture.of][1] + np.outer(high - low, high - low) / 12
            gaussians.append(((low + high) / 2, spread))
        weight = _posterior(some, shares, gaussians)
    found = _posterior(values, every, gaussians)
    for column, mixture in enumerate(mixtures, start=classes):
        found[:, mixture.of] += found[:, column]
    return found[:, :classes]


def _with_mixtures(priors: np.ndarray, mixtures: Sequence[Mixture]) -> np.ndarray:
    """(samples, classes) with the shares of `mixtures` in columns of their own behind the others."""
    out = np.column_stack([priors, *(m.share * priors[:, m.of] for m in mixtures)])
    for m in mixtures:
        out[:, m.of] *= 1 - m.share
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
