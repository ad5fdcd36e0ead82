"""How good a classifier is, with intervals: two classes, ordered grades, probabilities. Pure functions."""

from __future__ import annotations

import numpy as np
from scipy import stats

from bids_epvs.measure.agreement import Estimate, Values, calibration_error, reliability

NOTHING = float("nan")
BINS = 5
"""Of probability, for calibration over sessions, of which there are few."""


def proportion(successes: int, n: int) -> Estimate:
    """A share with its exact 95 % interval (Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404).

    >>> e = proportion(35, 39); round(e.value, 3), round(e.low, 3), round(e.high, 3)
    (0.897, 0.758, 0.971)
    """
    if n == 0:
        return Estimate(NOTHING, NOTHING, NOTHING, 0)
    ends = stats.binomtest(successes, n).proportion_ci(0.95, "exact")
    return Estimate(successes / n, float(ends.low), float(ends.high), n)


def better_than_guessing(correct: int, truth: np.ndarray) -> float:
    """One-sided p of an accuracy against the no-information rate, the share of the most frequent class (binomial)."""
    n = len(truth)
    if n == 0:
        return NOTHING
    rate = float(np.unique(truth, return_counts=True)[1].max()) / n
    return float(stats.binomtest(correct, n, rate, alternative="greater").pvalue)


def auc(truth: Values, score: Values) -> Estimate:
    """Area under the ROC curve with the 95 % interval of DeLong, DeLong & Clarke-Pearson 1988 (doi:10.2307/2531595).

    Parameters
    ----------
    truth : array of 0 and 1
    score : array of float
        Larger speaks for 1; ties count half.
    """
    truth, score = np.asarray(truth), np.asarray(score, float)
    positive, negative = score[truth == 1], score[truth == 0]
    m, n = len(positive), len(negative)
    if m == 0 or n == 0:
        return Estimate(NOTHING, NOTHING, NOTHING, m + n)
    wins = (positive[:, None] > negative).astype(float) + 0.5 * (positive[:, None] == negative)
    value = float(wins.mean())
    if m < 2 or n < 2:
        return Estimate(value, NOTHING, NOTHING, m + n)
    spread = np.sqrt(wins.mean(axis=1).var(ddof=1) / m + wins.mean(axis=0).var(ddof=1) / n)
    return Estimate(value, max(0.0, value - 1.96 * spread), min(1.0, value + 1.96 * spread), m + n)


def binary(truth: Values, score: Values, *, threshold: float = 0.5) -> dict[str, float]:
    """Figures of a classifier of two classes.

    Returns
    -------
    dict
        ``n, positive, accuracy`` (``_low``, ``_high``: exact 95 % interval), ``p_no_information, auc`` (DeLong
        interval), ``sensitivity, specificity, ppv, npv`` (exact intervals), ``f1, brier`` and
        ``ece`` (expected calibration error, `BINS` bins).
    """
    actual, chance = np.asarray(truth).astype(int), np.asarray(score, float)
    said = (chance >= threshold).astype(int)
    tp, tn = int((said & actual).sum()), int(((1 - said) & (1 - actual)).sum())
    fp, fn = int((said & (1 - actual)).sum()), int(((1 - said) & actual).sum())
    out: dict[str, float] = {"n": len(actual), "positive": int(actual.sum())}
    shares = {
        "accuracy": proportion(tp + tn, len(actual)),
        "auc": auc(actual, chance),
        "sensitivity": proportion(tp, tp + fn),
        "specificity": proportion(tn, tn + fp),
        "ppv": proportion(tp, tp + fp),
        "npv": proportion(tn, tn + fn),
    }
    for name, e in shares.items():
        out |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    out["p_no_information"] = better_than_guessing(tp + tn, actual)
    out["f1"] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else NOTHING
    out["brier"] = float(np.mean((chance - actual) ** 2)) if len(actual) else NOTHING
    out["ece"] = calibration_error(reliability(actual.astype(float), chance, bins=BINS))
    return out


def ranked_probability_score(truth: Values, chances: np.ndarray) -> float:
    """Mean ranked probability score of ordered grades, 0 is perfect and 1 the worst (Epstein 1969).

    Parameters
    ----------
    truth : array of int
    chances : ndarray
        (n, grades).
    """
    grades = chances.shape[1]
    reached = np.asarray(truth)[:, None] <= np.arange(grades)
    return float((((np.cumsum(chances, axis=1) - reached) ** 2)[:, :-1].sum(axis=1) / (grades - 1)).mean())
