"""Agreement between two or more ways of measuring the same subjects.

Every function takes one row a subject and returns an `Estimate`, or a small record, without rounding. Rows with missing
values are left out; what cannot be computed is nan, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval.

    Attributes
    ----------
    value, low, high : float
    n : int
        Subjects it rests on.
    """

    value: float
    low: float
    high: float
    n: int


NOTHING = float("nan")


def complete(*columns: Values) -> np.ndarray:
    """Columns side by side as float (n, columns), rows with a missing value left out."""
    table = np.column_stack([np.asarray(c, float) for c in columns])
    return table[np.isfinite(table).all(axis=1)]


def icc(ratings: np.ndarray) -> Estimate:
    """Intraclass correlation ICC(2,1): two-way random effects, absolute agreement, one measurement.

    (MSR - MSE) / (MSR + (k - 1) MSE + k (MSC - MSE) / n); 1 is perfect.

    Parameters
    ----------
    ratings : ndarray
        (subjects, raters).

    References
    ----------
    Shrout & Fleiss 1979, doi:10.1037/0033-2909.86.2.420; interval: McGraw & Wong 1996, doi:10.1037/1082-989X.1.1.30.
    """
    table = complete(*np.asarray(ratings, float).T)
    n, k = table.shape
    if n < 2 or k < 2:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    rows, columns, total = table.mean(axis=1), table.mean(axis=0), table.mean()
    msr = k * ((rows - total) ** 2).sum() / (n - 1)
    msc = n * ((columns - total) ** 2).sum() / (k - 1)
    mse = ((table - rows[:, None] - columns + total) ** 2).sum() / ((n - 1) * (k - 1))
    below = msr + (k - 1) * mse + k * (msc - mse) / n
    if below <= 0:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    value = (msr - mse) / below
    if mse <= 1e-12 * msr:  # identical up to a shift of raters: the F quantiles below divide by zero
        return Estimate(value, NOTHING, NOTHING, n) if msc > 1e-12 * msr else Estimate(value, 1.0, 1.0, n)
    a = k * value / (n * (1 - value))
    b = 1 + k * value * (n - 1) / (n * (1 - value))
    freedom = (a * msc + b * mse) ** 2 / ((a * msc) ** 2 / (k - 1) + (b * mse) ** 2 / ((n - 1) * (k - 1)))
    upper, lower = stats.f.ppf(0.975, n - 1, freedom), stats.f.ppf(0.975, freedom, n - 1)
    if not upper < 1e9:  # hardly a degree of freedom is left: the ends would lie on one side of the value
        return Estimate(float(value), NOTHING, NOTHING, n)
    low = n * (msr - upper * mse) / (upper * (k * msc + (k * n - k - n) * mse) + n * msr)
    high = n * (lower * msr - mse) / (k * msc + (k * n - k - n) * mse + n * lower * msr)
    return Estimate(float(value), float(low), float(high), n)


def icc_within(ratings: np.ndarray) -> Estimate:
    """Intraclass correlation ICC(1,1): repeated scans in any order, one-way random effects.

    References
    ----------
    Shrout & Fleiss 1979, doi:10.1037/0033-2909.86.2.420.
    """
    table = complete(*np.asarray(ratings, float).T)
    n, k = table.shape
    if n < 2 or k < 2:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    rows = table.mean(axis=1)
    msb = k * ((rows - table.mean()) ** 2).sum() / (n - 1)
    msw = ((table - rows[:, None]) ** 2).sum() / (n * (k - 1))
    if msb + msw == 0:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    if msw == 0:
        return Estimate(1.0, 1.0, 1.0, n)
    ratio = msb / msw
    low = ratio / stats.f.ppf(0.975, n - 1, n * (k - 1))
    high = ratio * stats.f.ppf(0.975, n * (k - 1), n - 1)
    value, low, high = ((f - 1) / (f + k - 1) for f in (ratio, low, high))
    return Estimate(float(value), float(low), float(high), n)


def smallest_detectable_change(ratings: np.ndarray) -> float:
    """Change between two scans of one subject that exceeds measurement error with 95 % confidence, in the unit given.

    1.96 sqrt(2) times the within-subject standard deviation (Bland & Altman 1996, doi:10.1136/bmj.312.7047.1654).
    """
    table = complete(*np.asarray(ratings, float).T)
    if len(table) < 1 or table.shape[1] < 2:
        return NOTHING
    return float(1.96 * np.sqrt(2 * table.var(axis=1, ddof=1).mean()))


def pearson(a: Values, b: Values) -> float:
    """Pearson correlation; nan with fewer than three pairs or where one of both does not vary."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def ccc(x: Values, y: Values) -> Estimate:
    """Lin's concordance correlation: 2 s_xy / (s_x^2 + s_y^2 + (difference of means)^2); 1 is perfect.

    Moments are divided by n, the interval uses Fisher's z.

    References
    ----------
    Lin 1989, doi:10.2307/2532051, with the correction of 2000 (doi:10.1111/j.0006-341X.2000.00324.x).
    """
    table = complete(x, y)
    n = len(table)
    if n < 3:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    a, b = table.T
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    below = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    if below == 0:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    value = 2 * covariance / below
    r = covariance / np.sqrt(a.var() * b.var()) if a.var() * b.var() > 0 else 0.0
    if r == 0 or abs(value) >= 1 - 1e-12:
        return Estimate(float(value), NOTHING, NOTHING, n)
    shift = (a.mean() - b.mean()) ** 2 / np.sqrt(a.var() * b.var())
    v2, r2 = value**2, r**2
    inner = (1 - r2) * v2 / ((1 - v2) * r2) + 2 * value**3 * (1 - value) * shift / (r * (1 - v2) ** 2)
    inner -= value**4 * shift**2 / (2 * r2 * (1 - v2) ** 2)
    z, error = np.arctanh(value), np.sqrt(max(inner, 0) / (n - 2))
    low, high = np.tanh(z - 1.96 * error), np.tanh(z + 1.96 * error)
    return Estimate(float(value), float(low), float(high), n)


@dataclass(frozen=True)
class Difference:
    """A Bland-Altman analysis of x - y.

    Attributes
    ----------
    bias : Estimate
        Mean difference (t interval).
    sd : float
        Of the differences.
    low, high : float
        Limits of agreement, bias -+ 1.96 SD.
    slope : Estimate
        Of the differences on the means: not 0 where the difference grows with the size.
    slope_p : float
    """

    bias: Estimate
    sd: float
    low: float
    high: float
    slope: Estimate
    slope_p: float


def bland_altman(x: Values, y: Values) -> Difference:
    """Bias, limits of agreement, and whether the difference grows with the size.

    References
    ----------
    Bland & Altman 1986, doi:10.1016/S0140-6736(86)90837-8.
    """
    table = complete(x, y)
    n = len(table)
    if n < 2:
        empty = Estimate(NOTHING, NOTHING, NOTHING, n)
        return Difference(empty, NOTHING, NOTHING, NOTHING, empty, NOTHING)
    difference, mean = table[:, 0] - table[:, 1], table.mean(axis=1)
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    half = stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n)
    slope, p = Estimate(NOTHING, NOTHING, NOTHING, n), NOTHING
    if n > 2 and np.ptp(mean) > 0:
        line = stats.linregress(mean, difference)
        middle, wide = float(line.slope), float(stats.t.ppf(0.975, n - 2) * line.stderr)
        slope, p = Estimate(middle, middle - wide, middle + wide, n), float(line.pvalue)
    return Difference(
        Estimate(bias, float(bias - half), float(bias + half), n), sd, bias - 1.96 * sd, bias + 1.96 * sd, slope, p
    )


def weights(categories: int, kind: str) -> np.ndarray:
    """Credit for each pair of grades, 1 on the diagonal.

    Parameters
    ----------
    categories : int
    kind : {'identity', 'linear', 'quadratic', 'ordinal'}
        ``ordinal`` is 1 - C(|k - l| + 1, 2) / max (Gwet 2014).
    """
    apart = np.abs(np.subtract.outer(np.arange(categories), np.arange(categories)))
    cost = {"identity": apart > 0, "linear": apart, "quadratic": apart**2, "ordinal": apart * (apart + 1) / 2}[kind]
    return 1 - cost / max(float(np.max(cost)), 1.0)


def _grades(a: Values, b: Values, categories: int) -> np.ndarray:
    """Table of counts, rows `a`, columns `b`; grades are 0 ... categories - 1."""
    pairs = complete(a, b).astype(int)
    table = np.zeros((categories, categories))
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    return table


def weighted_kappa(a: Values, b: Values, *, categories: int, kind: str = "quadratic") -> Estimate:
    """Cohen's weighted kappa of two raters; 1 is perfect, 0 is chance.

    References
    ----------
    Cohen 1968, doi:10.1037/h0026256; standard error: Fleiss, Cohen & Everitt 1969, doi:10.1037/h0028106.
    """
    table = _grades(a, b, categories)
    n = int(table.sum())
    if n == 0:
        return Estimate(NOTHING, NOTHING, NOTHING, 0)
    share, credit = table / n, weights(categories, kind)
    row, column = share.sum(axis=1), share.sum(axis=0)
    seen, chance = (credit * share).sum(), (credit * np.outer(row, column)).sum()
    if chance > 1 - 1e-12:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    value = (seen - chance) / (1 - chance)
    mean = (credit @ column)[:, None] + (row @ credit)[None]
    inner = (share * (credit - mean * (1 - value)) ** 2).sum() - (value - chance * (1 - value)) ** 2
    error = np.sqrt(max(inner, 0) / n) / (1 - chance)
    return Estimate(float(value), float(value - 1.96 * error), float(min(1, value + 1.96 * error)), n)


def gwet_ac2(a: Values, b: Values, *, categories: int, kind: str = "ordinal") -> Estimate:
    """Gwet's AC2 of two raters: like weighted kappa, without its collapse when one grade prevails.

    References
    ----------
    Gwet 2014, Handbook of Inter-Rater Reliability, 4th edition; 2008, doi:10.1348/000711006X126600 (AC1, variance).
    """
    pairs = complete(a, b).astype(int)
    n = len(pairs)
    if n < 2 or categories < 2:
        return Estimate(NOTHING, NOTHING, NOTHING, n)
    credit = weights(categories, kind)
    share = _grades(a, b, categories) / n
    often = (share.sum(axis=0) + share.sum(axis=1)) / 2
    factor = credit.sum() / (categories * (categories - 1))
    chance = factor * (often * (1 - often)).sum()
    each = credit[pairs[:, 0], pairs[:, 1]]
    value = (each.mean() - chance) / (1 - chance)
    own = (each - chance) / (1 - chance)
    part = factor * ((1 - often)[pairs[:, 0]] + (1 - often)[pairs[:, 1]]) / 2
    own = own - 2 * (1 - value) * (part - chance) / (1 - chance)
    error = np.sqrt(((own - value) ** 2).sum() / (n * (n - 1)))
    half = stats.t.ppf(0.975, n - 1) * error
    return Estimate(float(value), float(value - half), float(min(1, value + half)), n)


def williams(r12: float, r13: float, r23: float, n: int) -> tuple[float, float]:
    """Whether two correlations with the same variable differ: t with n - 3 degrees of freedom, two-sided p.

    Parameters
    ----------
    r12, r13 : float
        The two correlations compared; 1 is the variable they share.
    r23 : float
        Between the other two.
    n : int
        Subjects.

    References
    ----------
    Williams 1959; Steiger 1980, doi:10.1037/0033-2909.87.2.245.
    """
    if n < 4:
        return NOTHING, NOTHING
    determinant = 1 - r12**2 - r13**2 - r23**2 + 2 * r12 * r13 * r23
    mean = (r12 + r13) / 2
    below = 2 * (n - 1) / (n - 3) * determinant + mean**2 * (1 - r23) ** 3
    if below <= 0:
        return NOTHING, NOTHING
    t = (r12 - r13) * np.sqrt((n - 1) * (1 + r23) / below)
    return float(t), float(2 * stats.t.sf(abs(t), n - 3))


def poisson_binomial(probabilities: Values) -> np.ndarray:
    """Distribution of the number of successes of independent trials: P(0) ... P(n).

    >>> poisson_binomial([0.5, 0.5]).round(3)
    array([0.25, 0.5 , 0.25])
    """
    out = np.ones(1)
    for p in np.asarray(probabilities, float):
        out = np.convolve(out, [1 - p, p])
    return out


def count_distribution(probabilities: Values, missed: float = 0.0) -> np.ndarray:
    """Distribution of a count: lesions found that may be none, and a Poisson number of lesions missed.

    Parameters
    ----------
    probabilities : array_like
        That each lesion found is one.
    missed : float
        Expected number of lesions missed.

    Returns
    -------
    ndarray
        P(0), P(1), ...; sums to 1.

    >>> count_distribution([1.0], 0.0)
    array([0., 1.])
    """
    found = poisson_binomial(probabilities)
    if missed <= 0:
        return found
    most = int(stats.poisson.ppf(1 - 1e-9, missed))
    out = np.convolve(found, stats.poisson.pmf(np.arange(most + 1), missed))
    return out / out.sum()


def interval(distribution: np.ndarray, *, level: float = 0.9) -> tuple[int, int]:
    """Central interval of a distribution over 0, 1, 2, ...

    >>> interval(poisson_binomial([1.0, 1.0, 0.5]))
    (2, 3)
    """
    below = np.cumsum(distribution)
    tail = (1 - level) / 2
    return int(np.searchsorted(below, tail + 1e-12)), int(np.searchsorted(below, 1 - tail - 1e-12))


def reliability(share: np.ndarray, score: np.ndarray, *, bins: int = 10) -> np.ndarray:
    """How probabilities agree with what is there, in equal bins of probability.

    Parameters
    ----------
    share : ndarray
        (n,), EPVS in each voxel, 0-1.
    score : ndarray
        (n,), probability, 0-1.
    bins : int

    Returns
    -------
    ndarray
        (bins, 3): voxels, sum of the probabilities, sum of the shares.
    """
    at = np.minimum((score * bins).astype(int), bins - 1)
    columns = (np.bincount(at, weights=w, minlength=bins) for w in (np.ones(len(at)), score, share))
    return np.stack(list(columns), axis=1)


def calibration_error(table: np.ndarray) -> float:
    """Expected calibration error (ECE) of `reliability`: mean absolute gap, weighted by voxels; nan without any.

    >>> calibration_error(np.array([[90.0, 9.0, 0.0], [10.0, 9.0, 9.0]]))
    0.09
    """
    total = table[:, 0].sum()
    return float(np.abs(table[:, 1] - table[:, 2]).sum() / total) if total else NOTHING
