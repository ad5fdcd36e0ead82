"""Regressions of counts, grades and volumes on covariates, one for each method and region.

===========================  ============================================================================
left side of the formula     regression
===========================  ============================================================================
``count``                    negative binomial (NB2), log of the region's volume as offset: rate ratios
``rating``                   ordinal logit (proportional odds): odds ratios
``severity``                 logistic: odds ratios
anything else                linear, for example ``np.log(volume_mm3 + 1)``: slopes
===========================  ============================================================================

Where people have several sessions: generalised estimating equations with exchangeable correlation (counts, severity;
Liang & Zeger 1986, small-sample covariance of Mancl & DeRouen 2001), an ordinal logit with covariance clustered by
person, and a linear mixed model with a random intercept.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bids_epvs.derivatives import columns
from bids_epvs.errors import UsageError
from bids_epvs.group import regression
from bids_epvs.group.stats import keys
from bids_epvs.measure.ratings import SEVERITY, severe
from bids_epvs.records import Cohort

AGE, SEX = ("age", "age_years", "age_at_scan"), ("sex", "gender")
"""Names (any case) of the covariates of the default formula."""
VOLUME_TERM = "I(brain_volume_mm3 / 1e5)"
"""Brain volume per 100 mL."""
ROWS_PER_TERM = 5
"""Rows that each estimated number needs at least."""
FEWEST = 10


def default_formulas(cohort: Cohort) -> tuple[str, ...]:
    """Counts and grades on age, sex and brain volume, as far as the dataset has them; none without age and sex."""
    terms = []
    for names in (AGE, SEX):
        found = [c for c in cohort.covariates if c.lower() in names and cohort.wide[c].nunique() > 1]
        if found:
            numeric = pd.api.types.is_numeric_dtype(cohort.wide[found[0]])
            terms.append(_quoted(found[0]) if numeric and names is AGE else f"C({_quoted(found[0])})")
    if not terms:
        return ()
    if "brain_volume_mm3" in cohort.wide and cohort.wide["brain_volume_mm3"].nunique() > 1:
        terms.append(VOLUME_TERM)
    right = " + ".join(terms)
    return (f"count ~ {right}", f"rating ~ {right}")


def _quoted(name: str) -> str:
    """A column as patsy reads it."""
    return name if name.isidentifier() else f'Q("{name}")'


def associations(cohort: Cohort, formulas: Sequence[str]) -> pd.DataFrame:
    """Every formula for every method and region; columns `columns.ASSOCIATIONS`.

    Raises
    ------
    UsageError
        A formula cannot be read, or names a column that is not there.
    """
    table = frame(cohort)
    rows: list[dict[str, Any]] = []
    for formula in formulas:
        check(formula, table)
        for (model, region), own in table.groupby(["model", "region"], sort=False):
            where = {"formula": formula, "model": model, "region": region}
            rows += [{**where, **row} for row in one(formula, own)]
    out = pd.DataFrame(rows, columns=list(columns.ASSOCIATIONS))
    for _, own in out.groupby(["formula", "model", "term"]):
        known = own["p"].notna()
        if known.any():
            out.loc[own.index[known], "q"] = stats.false_discovery_control(own.loc[known, "p"].to_numpy(float))
    return out


def frame(cohort: Cohort) -> pd.DataFrame:
    """Both hemispheres of each session, method and region beside the covariates; ``severity`` is added."""
    both = cohort.long[cohort.long["hemisphere"] == "both"]
    both = both.assign(severity=severe(both))
    both["rating"] = both["rating"].where(both["rating_scale"] != SEVERITY)
    extra = [c for c in (*cohort.covariates, "brain_volume_mm3") if c in cohort.wide and c not in both]
    return both.merge(cohort.wide[[*keys(cohort.wide), *extra]], on=keys(both), how="left")


def check(formula: str, table: pd.DataFrame) -> None:
    """Refuse a formula that cannot be evaluated.

    Raises
    ------
    UsageError
    """
    import patsy

    left, tilde, right = formula.partition("~")
    if not tilde or not left.strip() or not right.strip():
        raise UsageError(f"expected 'count ~ age + sex', received {formula!r}.", where="--formula")
    probe = table.assign(count=1.0, rating=1.0, severity=1.0)
    try:
        patsy.dmatrices(formula, probe, return_type="dataframe", NA_action="drop")
    except Exception as error:  # patsy passes on whatever the evaluation raises
        names = [c for c in table.columns if c not in ("label", "hemisphere")]
        raise UsageError(
            f"{formula!r} cannot be evaluated ({_first_line(error)}).",
            where="--formula",
            remedy=f"Columns: {', '.join(names)}.",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def one(formula: str, own: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of one formula, method and region: a row a term, or one row that says why there is none."""
    import patsy

    outcome = formula.partition("~")[0].strip()
    missing = own[outcome].notna().sum() == 0 if outcome in own else False
    if missing:
        return []
    left, right = patsy.dmatrices(formula, own, return_type="dataframe", NA_action="drop")
    kept = own.loc[left.index]
    said: dict[str, Any] = {"n": len(kept), "participants": kept["participant_id"].nunique()}
    y, x = left.iloc[:, 0].to_numpy(float), right.loc[:, right.std() > 0]
    needed = max(FEWEST, ROWS_PER_TERM * (x.shape[1] + 1))
    if len(kept) < needed:
        return [{**said, "note": f"{len(kept)} complete rows, at least {needed} needed"}]
    if not len(x.columns) or np.linalg.matrix_rank(np.c_[np.ones(len(x)), x / x.std()]) <= x.shape[1]:
        return [{**said, "note": "covariates do not vary, or one follows from the others"}]
    if np.ptp(y) == 0:
        return [{**said, "note": "the outcome is the same for all"}]
    groups = kept["participant_id"].to_numpy()
    repeated = said["participants"] < len(kept)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = _fit(outcome, y, x, kept, groups if repeated else None)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        return [{**said, "note": f"no fit: {_first_line(error)}"}]
    return [{**said, **row} for row in _rows(fit, x)]


def _fit(outcome: str, y: np.ndarray, x: pd.DataFrame, kept: pd.DataFrame, groups: np.ndarray | None) -> regression.Fit:
    """The regression that an outcome calls for, on standardised covariates."""
    scaled = (x - x.mean()) / x.std()
    if outcome == "count":
        size = kept["region_volume_mm3"].to_numpy(float)
        return regression.negative_binomial(y, scaled, np.log(size), groups)
    if outcome == "rating":
        return regression.ordinal(y, scaled, groups)
    if outcome == "severity":
        return regression.logistic(y, scaled, groups)
    return regression.linear(y, scaled, groups)


def _rows(fit: regression.Fit, x: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a term, in units of the covariates."""
    rows: list[dict[str, Any]] = []
    for term in x.columns:
        value, error, freedom = (float(v) for v in fit.terms.loc[term, ["value", "error", "freedom"]])  # type: ignore[arg-type]
        if not np.isfinite(value) or not np.isfinite(error) or error <= 0 or error > 50:
            rows.append({"regression": fit.regression, "term": term, "note": "cannot be estimated (separation)"})
            continue
        size = float(x[term].std())
        half = stats.t.ppf(0.975, freedom) * error
        ends = np.array([value, value - half, value + half]) / size
        middle, low, high = np.exp(ends) if fit.ratio else ends
        p = float(2 * stats.t.sf(abs(value / error), freedom))
        row: dict[str, Any] = {"regression": fit.regression, "effect": fit.effect, "term": term}
        rows.append({**row, **fit.figures, "value": middle, "value_low": low, "value_high": high, "p": p})
    return rows
