"""The regressions of `association`, each on standardised covariates: coefficients, their errors, a residual check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Fit:
    """Coefficients of one regression.

    Attributes
    ----------
    regression, effect : str
        What it is, and what a coefficient is after `ratio`.
    ratio : bool
        Whether coefficients are logarithms of ratios.
    terms : DataFrame
        Index: term; ``value``, ``error`` (coefficient and its standard error), ``freedom`` (of its t distribution).
    figures : dict
        ``check``, ``check_p``, ``dispersion``, ``note`` where there are any.
    """

    regression: str
    effect: str
    ratio: bool
    terms: pd.DataFrame
    figures: dict[str, Any]


def _with_constant(x: pd.DataFrame) -> pd.DataFrame:
    return x.assign(Intercept=1.0)[["Intercept", *x.columns]]


def _terms(names: pd.Index, value: Any, error: Any, freedom: float) -> pd.DataFrame:
    table = {"value": np.asarray(value, float), "error": np.asarray(error, float), "freedom": freedom}
    return pd.DataFrame(table, index=names)


def negative_binomial(y: np.ndarray, x: pd.DataFrame, offset: np.ndarray, groups: np.ndarray | None) -> Fit:
    """Negative binomial regression (variance mu + alpha mu^2) with a log link; Poisson where alpha would be 0.

    Hypotheses are tested with t quantiles: Wald tests with normal ones are too sure of themselves below 50 rows.
    """
    import statsmodels.api as sm

    design = _with_constant(x)
    alpha = _spread(y, design, offset)
    family = sm.families.NegativeBinomial(alpha=alpha) if alpha > 0 else sm.families.Poisson()
    freedom = len(y) - design.shape[1]
    name = "negative binomial" if alpha > 0 else "Poisson"
    if groups is not None:
        used = sm.GEE(y, design, groups=groups, family=family, cov_struct=sm.cov_struct.Exchangeable(), offset=offset)
        made = used.fit(cov_type="bias_reduced")
        freedom = len(np.unique(groups)) - design.shape[1]
        name += " GEE"
    else:
        made = sm.GLM(y, design, family=family, offset=offset).fit()
    mean = np.asarray(made.fittedvalues)
    pearson = float(((y - mean) ** 2 / (mean + alpha * mean**2)).sum() / (len(y) - design.shape[1]))
    figures = {"dispersion": pearson, "check": "quantile residuals normal (Kolmogorov-Smirnov)"}
    figures["check_p"] = residuals_p(y, mean, alpha)
    return Fit(name, "rate ratio", True, _terms(design.columns, made.params, made.bse, freedom), figures)


def _spread(y: np.ndarray, design: pd.DataFrame, offset: np.ndarray) -> float:
    """Alpha of NB2 for which Pearson's chi-square equals its degrees of freedom; 0 without overdispersion.

    The moment estimator is less biased in small samples than maximum likelihood (Breslow 1984, doi:10.2307/2347661).
    """
    import statsmodels.api as sm

    freedom = len(y) - design.shape[1]
    alpha = 0.0
    for _ in range(25):
        family = sm.families.NegativeBinomial(alpha=alpha) if alpha > 0 else sm.families.Poisson()
        mean = np.asarray(sm.GLM(y, design, family=family, offset=offset).fit().fittedvalues)
        new = _solved(y, mean, freedom)
        if abs(new - alpha) < 1e-4 * max(alpha, 1e-3):
            return new
        alpha = new
    return alpha


def _solved(y: np.ndarray, mean: np.ndarray, freedom: int) -> float:
    """Root of sum (y - mean)^2 / (mean + alpha mean^2) = freedom, by bisection."""
    squares = (y - mean) ** 2

    def excess(alpha: float) -> float:
        return float((squares / (mean + alpha * mean**2)).sum() - freedom)

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0 and high < 1e4:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def residuals_p(y: np.ndarray, mean: np.ndarray, alpha: float) -> float:
    """Whether randomised quantile residuals are normal: p of the Kolmogorov-Smirnov test (fixed seed).

    References
    ----------
    Dunn & Smyth 1996, doi:10.1080/10618600.1996.10474708.
    """
    law: Any = stats.nbinom(1 / alpha, 1 / (1 + alpha * mean)) if alpha > 0 else stats.poisson(mean)
    low, high = law.cdf(y - 1), law.cdf(y)
    drawn = low + np.random.default_rng(0).random(len(y)) * (high - low)
    return float(stats.kstest(drawn, "uniform").pvalue)


def ordinal(y: np.ndarray, x: pd.DataFrame, groups: np.ndarray | None) -> Fit:
    """Proportional odds; odds of a higher grade. Checked by the likelihood ratio against a multinomial logit."""
    import statsmodels.api as sm
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    grades = np.unique(y)
    if len(grades) == 2:
        found = logistic((y == grades[1]).astype(float), x, groups)
        return Fit("logistic (two grades)", found.effect, True, found.terms, found.figures)
    code = np.searchsorted(grades, y)
    model = OrderedModel(code, x.to_numpy(), distr="logit")
    made = model.fit(method="bfgs", disp=False, maxiter=500)
    covariance, freedom = np.asarray(made.cov_params()), len(y) - len(made.params)
    name = "ordinal logit"
    if groups is not None:
        score = pd.DataFrame(model.score_obs(made.params)).groupby(groups).sum().to_numpy()
        covariance = covariance @ (score.T @ score) @ covariance * len(score) / (len(score) - 1)
        freedom, name = len(score) - len(made.params), "ordinal logit, clustered"
    count = x.shape[1]
    error = np.sqrt(np.diag(covariance))[:count]
    figures: dict[str, Any] = {"check": "proportional odds (likelihood ratio against multinomial logit)"}
    free = sm.MNLogit(code, _with_constant(x)).fit(method="bfgs", disp=False, maxiter=500)
    gain = 2 * (free.llf - made.llf)
    figures["check_p"] = float(stats.chi2.sf(max(gain, 0), (len(grades) - 2) * count)) if groups is None else np.nan
    return Fit(name, "odds ratio", True, _terms(x.columns, made.params[:count], error, freedom), figures)


def logistic(y: np.ndarray, x: pd.DataFrame, groups: np.ndarray | None) -> Fit:
    """Logistic regression; checked with Hosmer & Lemeshow's test over tenths from 50 rows on."""
    import statsmodels.api as sm

    design = _with_constant(x)
    if groups is None:
        made = sm.GLM(y, design, family=sm.families.Binomial()).fit()
        freedom, name = len(y) - design.shape[1], "logistic"
    else:
        structure = sm.cov_struct.Exchangeable()
        used = sm.GEE(y, design, groups=groups, family=sm.families.Binomial(), cov_struct=structure)
        made = used.fit(cov_type="bias_reduced")
        freedom, name = len(np.unique(groups)) - design.shape[1], "logistic GEE"
    figures: dict[str, Any] = {}
    if len(y) >= 50 and groups is None:
        figures = {"check": "Hosmer-Lemeshow", "check_p": hosmer_lemeshow(y, np.asarray(made.fittedvalues))}
    return Fit(name, "odds ratio", True, _terms(design.columns, made.params, made.bse, freedom), figures)


def hosmer_lemeshow(y: np.ndarray, chance: np.ndarray, bins: int = 10) -> float:
    """p of the Hosmer-Lemeshow test, tenths of predicted chance.

    References
    ----------
    Hosmer & Lemeshow 1980, doi:10.1080/03610928008827941.
    """
    parts = np.array_split(np.argsort(chance, kind="stable"), bins)
    total = 0.0
    for part in parts:
        expected, seen, n = chance[part].sum(), y[part].sum(), len(part)
        total += (seen - expected) ** 2 / max(expected * (1 - expected / n), 1e-9)
    return float(stats.chi2.sf(total, bins - 2))


def linear(y: np.ndarray, x: pd.DataFrame, groups: np.ndarray | None) -> Fit:
    """Least squares, or a mixed model with a random intercept a person; residuals checked with Shapiro-Wilk."""
    import statsmodels.api as sm

    design = _with_constant(x)
    if groups is None:
        made = sm.OLS(y, design).fit()
        freedom, name = len(y) - design.shape[1], "linear"
    else:
        made = sm.MixedLM(y, design, groups=groups).fit(reml=True)
        freedom, name = len(np.unique(groups)) - design.shape[1], "linear mixed"
    count = design.shape[1]
    values, errors = np.asarray(made.params)[:count], np.asarray(made.bse)[:count]
    residual = np.asarray(made.resid)[:5000]
    figures = {"check": "residuals normal (Shapiro-Wilk)", "check_p": float(stats.shapiro(residual).pvalue)}
    return Fit(name, "slope", False, _terms(design.columns, values, errors, freedom), figures)
