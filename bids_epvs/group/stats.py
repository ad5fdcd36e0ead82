"""Descriptives, agreement and repeatability: tables of a cohort, from its tables alone.

Sessions of one person are not independent, so everything that has an interval or a test (agreement, Williams' test,
left against right) uses each person's first session with a value; repeatability uses the first two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bids_epvs.derivatives import columns
from bids_epvs.measure import agreement
from bids_epvs.measure.ratings import GRADES, SEVERITY, severe
from bids_epvs.records import Cohort

COMPARED = ("count", "volume_mm3", "rating", "severity")
SPLITS = ("site", "scanner", "manufacturer", "sex", "gender", "group", "diagnosis", "dx")
"""Columns of participants.tsv by which descriptives are split where nobody says otherwise (any case)."""
MOST_LEVELS = 12
FEWEST = 5
"""Persons below which no test is made."""


def splits(cohort: Cohort, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Columns to split by: those wanted, else the known ones with 2 to `MOST_LEVELS` values."""
    if wanted:
        return tuple(wanted)
    known = [c for c in cohort.covariates if c.lower() in SPLITS]
    return tuple(c for c in known if 2 <= cohort.wide[c].nunique() <= MOST_LEVELS)


def keys(table: pd.DataFrame) -> list[str]:
    """The identifiers that a table has."""
    return [c for c in ("participant_id", "session_id") if c in table]


def descriptives(cohort: Cohort, by: Sequence[str]) -> pd.DataFrame:
    """Median and quartiles of counts, volumes and fractions, grades and asymmetry; columns `columns.DESCRIPTIVES`."""
    rows = []
    for split in ("all", *by):
        table = cohort.long
        if split != "all":
            table = table.merge(cohort.wide[[*keys(cohort.wide), split]], on=keys(table), how="left")
        levels = [("all", table)] if split == "all" else [(str(k), t) for k, t in table.groupby(split)]
        for level, part in levels:
            for (model, region, side), own in part.groupby(["model", "region", "hemisphere"], sort=False):
                where = {"by": split, "level": level, "model": model, "region": region, "hemisphere": side}
                extra = asymmetry(part, str(model), str(region)) if side == "both" else {}
                rows.append({**where, **_described(own), **extra})
    return pd.DataFrame(rows, columns=list(columns.DESCRIPTIVES))


def _described(own: pd.DataFrame) -> dict[str, Any]:
    """Numbers of one method, region and hemisphere."""
    shown = own[own[["count", "rating"]].notna().any(axis=1)]
    out: dict[str, Any] = {"sessions": len(shown), "participants": shown["participant_id"].nunique()}
    for value in ("count", "volume_mm3", "volume_fraction"):
        q1, median, q3 = shown[value].quantile([0.25, 0.5, 0.75])
        out |= {f"{value}_median": median, f"{value}_q1": q1, f"{value}_q3": q3}
    out |= {"count_min": shown["count"].min(), "count_max": shown["count"].max()}
    if shown["rating"].notna().any() and not (shown["rating_scale"] == SEVERITY).any():
        out |= {f"grade_{k}": int((shown["rating"] == k).sum()) for k in range(GRADES)}
    return out


def asymmetry(table: pd.DataFrame, model: str, region: str) -> dict[str, float]:
    """(left - right) / (left + right) of counts: median, quartiles, and Wilcoxon's test over persons.

    Subjects without an EPVS on either side have no asymmetry; positive values: more on the left.
    """
    own = first_sessions(table[(table["model"] == model) & (table["region"] == region)])
    sides = own.pivot(index="participant_id", columns="hemisphere", values="count")
    if not {"left", "right"} <= set(sides):
        return {}
    left, right = (sides[s].to_numpy(float) for s in ("left", "right"))
    there = left + right > 0  # nan compares false
    index = (left - right)[there] / (left + right)[there]
    if not len(index):
        return {}
    q1, median, q3 = np.quantile(index, [0.25, 0.5, 0.75])
    differs = (left - right)[there] != 0
    p = float(stats.wilcoxon(left[there], right[there]).pvalue) if differs.sum() >= FEWEST else np.nan
    return {"asymmetry_median": median, "asymmetry_q1": q1, "asymmetry_q3": q3, "asymmetry_p": p}


def first_sessions(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each person's first session with a count."""
    if "session_id" not in table:
        return table
    shown = table[table["count"].notna()] if "count" in table else table
    first = shown.groupby("participant_id")["session_id"].transform("min")
    return shown[shown["session_id"] == first]


def matrix(long: pd.DataFrame, region: str, value: str) -> pd.DataFrame:
    """One value of both hemispheres, a row per session (index: identifiers), a column per method that gives it.

    ``rating`` are grades of five; ``severity`` is mild or severe, see `ratings.severe`.
    """
    own = long[(long["region"] == region) & (long["hemisphere"] == "both")]
    if value == "severity":
        own = own.assign(severity=severe(own))
    elif value == "rating":
        own = own[own["rating_scale"] != SEVERITY]
    return own.pivot(index=keys(long), columns="model", values=value)


def firsts(table: pd.DataFrame) -> pd.DataFrame:
    """The first row of each person of a table indexed by identifiers, rows with a missing value left out."""
    return table.dropna().groupby(level="participant_id").first()


def between_methods(cohort: Cohort) -> pd.DataFrame:
    """Agreement of every two methods; columns `columns.AGREEMENT`."""
    rows = []
    for region in cohort.long["region"].unique():
        for value in COMPARED:
            table = matrix(cohort.long, region, value)
            for a, b in combinations(table.columns, 2):
                rows += compared("methods", region, value, firsts(table[[a, b]]))
    return pd.DataFrame(rows, columns=list(columns.AGREEMENT))


def with_raters(cohort: Cohort, ratings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Agreement of methods with raters and of raters with each other; Williams' test of every two methods.

    Parameters
    ----------
    cohort : Cohort
    ratings : DataFrame
        From `human.read`: identifiers, ``rater``, ``region``, ``value``, ``score``.

    Returns
    -------
    agreement, williams : DataFrame
        Columns `columns.AGREEMENT` and `columns.WILLIAMS`.
    """
    rows, tests = [], []
    for (region, value), own in ratings.groupby(["region", "value"], sort=False):
        human = own.pivot_table(index=keys(own), columns="rater", values="score", aggfunc="first")
        machine = matrix(cohort.long, str(region), str(value)).dropna(axis=1, how="all")
        human = human.rename(columns={c: f"{c} (rater)" for c in human.columns if c in machine.columns})
        both = _joined(machine, human)
        for rater in human.columns:
            for model in machine.columns:
                rows += compared("human", region, value, firsts(both[[model, rater]]))
            for a, b in combinations(machine.columns, 2):
                tests += _williams(region, value, rater, firsts(both[[rater, a, b]]))
        for a, b in combinations(human.columns, 2):
            rows += compared("raters", region, value, firsts(human[[a, b]]))
    return (
        pd.DataFrame(rows, columns=list(columns.AGREEMENT)),
        pd.DataFrame(tests, columns=list(columns.WILLIAMS)),
    )


def _joined(machine: pd.DataFrame, human: pd.DataFrame) -> pd.DataFrame:
    """Methods beside raters; raters without sessions rated the first session of a person."""
    if machine.index.names == human.index.names:
        return machine.join(human, how="inner")
    if "session_id" in machine.index.names:
        return machine.groupby(level="participant_id").first().join(human, how="inner")
    return machine.join(human.groupby(level="participant_id").first(), how="inner")


def compared(kind: str, region: object, value: object, pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """The row of two columns, or none where fewer than three persons have both."""
    if len(pairs) < 3:
        return []
    a, b = (pairs[c].to_numpy(float) for c in pairs)
    row: dict[str, Any] = {"kind": kind, "region": region, "value": value, "a": pairs.columns[0], "b": pairs.columns[1]}
    row |= {"n": len(pairs), "mae": float(np.abs(a - b).mean()), "pearson": agreement.pearson(a, b)}
    if value in ("rating", "severity"):
        grades = GRADES if value == "rating" else 2
        row |= _estimate("kappa", agreement.weighted_kappa(a, b, categories=grades))
        row |= _estimate("ac2", agreement.gwet_ac2(a, b, categories=grades))
        return [{**row, "exact": float((a == b).mean())}]
    found = agreement.bland_altman(a, b)
    row |= _estimate("icc", agreement.icc(np.c_[a, b])) | _estimate("ccc", agreement.ccc(a, b))
    row |= _estimate("bias", found.bias) | _estimate("slope", found.slope)
    return [{**row, "limit_low": found.low, "limit_high": found.high, "slope_p": found.slope_p}]


def _estimate(name: str, found: agreement.Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _williams(region: object, value: object, rater: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Williams' test on the columns rater, a, b; none where fewer than four persons have all."""
    if len(table) < 4:
        return []
    human, a, b = (table[c].to_numpy(float) for c in table)
    r_a, r_b, r_ab = agreement.pearson(human, a), agreement.pearson(human, b), agreement.pearson(a, b)
    t, p = agreement.williams(r_a, r_b, r_ab, len(table))
    names = {"rater": rater, "a": table.columns[1], "b": table.columns[2]}
    figures = {"n": len(table), "r_a": r_a, "r_b": r_b, "r_ab": r_ab, "t": t, "p": p}
    return [{"region": region, "value": value, **names, **figures}]


def repeatability(cohort: Cohort) -> pd.DataFrame:
    """Agreement of the first two sessions of each person; columns `columns.REPEATABILITY`."""
    rows = []
    if "session_id" in cohort.long:
        for region in cohort.long["region"].unique():
            for value in COMPARED:
                table = matrix(cohort.long, region, value)
                for model in table.columns:
                    rows += _repeated(model, region, value, pairs_of_sessions(table[model]))
    return pd.DataFrame(rows, columns=list(columns.REPEATABILITY))


def pairs_of_sessions(values: pd.Series) -> np.ndarray:
    """First and second value of each person that has two, (persons, 2); the index holds identifiers."""
    each = [own.dropna().to_numpy(float)[:2] for _, own in values.groupby(level="participant_id")]
    both = [e for e in each if len(e) == 2]
    return np.array(both).reshape(-1, 2)


def _repeated(model: str, region: str, value: str, pairs: np.ndarray) -> list[dict[str, Any]]:
    if len(pairs) < 2:
        return []
    change = agreement.bland_altman(pairs[:, 1], pairs[:, 0]).bias
    limit = agreement.smallest_detectable_change(pairs)
    row = {"model": model, "region": region, "value": value, "n": len(pairs), "smallest_detectable_change": limit}
    row |= {"within_sd": limit / (1.96 * np.sqrt(2))} | _estimate("change", change)
    if len(pairs) < 3:  # of two persons it says nothing
        return [row]
    return [{**row, **_estimate("icc", agreement.icc_within(pairs))}]
