"""Statistics of a cohort as parts of a page: tables with captions that say n, test and interval, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_epvs.prepare.regions import NAMES
from bids_epvs.prepare.template import icbm152
from bids_epvs.records import Analysis, Cohort, FrequencyMap
from bids_epvs.report import figures, plots
from bids_epvs.report.wording import NONE, chance, quartiles, ranged, records, signed_quartiles, text

MAP_SLICES_MM = (-22, -12, -6, 0, 5, 10, 16, 22, 28, 36, 44, 54)
"""Heights of the slices of a frequency map, ICBM152."""
SHOWN = ("BasalGanglia", "CentrumSemiovale")
"""Regions with a figure of the differences between methods."""
MOST_ROWS = 400
"""Rows of a table in the page; the TSV has all."""


@dataclass(frozen=True)
class Part:
    """A table of the page.

    Attributes
    ----------
    title, caption : str
    header : tuple of str
    rows : tuple of tuple of str
        The first `MOST_ROWS` are kept.
    pictures : tuple of (str, str)
        Caption and ``<svg>`` or ``<img>``.
    file : str
        The TSV with all figures.
    folded : bool
        Shown when its title is clicked.
    """

    title: str
    caption: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[tuple[str, str], ...] = ()
    file: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.rows[:MOST_ROWS])


def parts(cohort: Cohort, analysis: Analysis) -> dict[str, list[Part]]:
    """Section -> its parts; sections without anything to say are left out."""
    made = {
        "Descriptives": descriptives(analysis),
        "Agreement": agreement(cohort, analysis),
        "Repeatability": repeatability(analysis),
        "Associations": associations(analysis),
        "Frequency map": frequency(analysis.maps),
    }
    return {title: found for title, found in made.items() if found}


def descriptives(analysis: Analysis) -> list[Part]:
    """Counts, volumes, grades and asymmetry by region; then by site, sex, ..."""
    table = analysis.descriptives[analysis.descriptives["hemisphere"] == "both"]
    out = []
    for split in ("all", *analysis.by):
        own = table[table["by"] == split]
        if own.empty:
            continue
        head = [
            "region",
            "method",
            "sessions",
            "count",
            "volume (mm³)",
            "% of region",
            "grades 0/1/2/3/4",
            "asymmetry",
            "p",
        ]
        rows = []
        for row in _in_order(own):
            cells = [
                row["region"],
                row["model"],
                text(row["sessions"], 0),
                quartiles(row, "count"),
                quartiles(row, "volume_mm3"),
            ]
            cells += [quartiles(row, "volume_fraction", 100), _grades(row), signed_quartiles(row, "asymmetry")]
            cells += [chance(row["asymmetry_p"])]
            rows.append(tuple(cells) if split == "all" else (str(row["level"]), *cells))
        caption = (
            "Median (first to third quartile) over sessions. Asymmetry: (left - right) / (left + right) of counts, one "
            "session a person, with the p of Wilcoxon's signed-rank test."
        )
        title = "All sessions" if split == "all" else f"By {split}"
        header = tuple(head if split == "all" else [split, *head])
        file = "group_descriptives.tsv"
        out.append(Part(title, caption, header, tuple(rows), file=file, folded=split != "all"))
    return out


def _in_order(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows by region and method."""
    return records(table.sort_values(["region", "model"], key=_ordered, kind="stable"))


def _ordered(column: pd.Series) -> pd.Series:
    """Regions in their own order, anything else as it came."""
    wanted = NAMES if column.name == "region" else column.unique()
    return column.map({n: k for k, n in enumerate(wanted)})


def _grades(row: Mapping[str, Any]) -> str:
    grades = [row[f"grade_{k}"] for k in range(5)]
    return NONE if pd.isna(grades[0]) else "/".join(f"{g:.0f}" for g in grades)


KINDS = {"methods": "Between methods", "human": "Methods and raters", "raters": "Between raters"}


def agreement(cohort: Cohort, analysis: Analysis) -> list[Part]:
    """Counts and volumes, grades, for each kind of pair; Williams' test; differences as figures."""
    out = []
    for kind, title in KINDS.items():
        own = analysis.agreement[analysis.agreement["kind"] == kind]
        counts = own[own["value"].isin(["count", "volume_mm3"])]
        grades = own[own["value"].isin(["rating", "severity"])]
        if len(counts):
            out.append(_counts_agree(title, counts, _pictures(cohort, counts) if kind == "methods" else ()))
        if len(grades):
            out.append(_grades_agree(title, grades))
    if len(analysis.williams):
        out.append(_williams(analysis.williams))
    return out


def _counts_agree(title: str, own: pd.DataFrame, pictures: tuple[tuple[str, str], ...]) -> Part:
    header = (
        "region",
        "value",
        "a",
        "b",
        "n",
        "ICC(2,1)",
        "CCC",
        "bias a - b",
        "limits of agreement",
        "slope",
        "p of slope",
    )
    rows = []
    for r in records(own):
        limits = f"{text(r['limit_low'], 1)} to {text(r['limit_high'], 1)}"
        cells = (r["region"], r["value"], r["a"], r["b"], text(r["n"], 0), ranged(r, "icc"), ranged(r, "ccc"))
        rows.append((*cells, ranged(r, "bias", 1), limits, ranged(r, "slope"), chance(r["slope_p"])))
    caption = (
        f"{_people(own)}, one session a person; 95 % intervals in brackets (ICC: F, CCC: Fisher's z, bias, slope: t). "
        "A slope other than 0 means that the difference grows with the size (Bland & Altman)."
    )
    return Part(f"{title}: counts and volumes", caption, header, tuple(rows), pictures, "group_agreement.tsv")


def _grades_agree(title: str, own: pd.DataFrame) -> Part:
    header = (
        "region",
        "value",
        "a",
        "b",
        "n",
        "equal grades",
        "kappa, quadratic weights",
        "Gwet's AC2, ordinal weights",
    )
    rows = []
    for r in records(own):
        equal = NONE if pd.isna(r["exact"]) else f"{100 * r['exact']:.0f} %"
        cells = (r["region"], r["value"], r["a"], r["b"], text(r["n"], 0), equal)
        rows.append((*cells, ranged(r, "kappa"), ranged(r, "ac2")))
    caption = (
        f"{_people(own)}, one session a person; 95 % intervals in brackets. Kappa collapses where one grade prevails, "
        "AC2 does not."
    )
    return Part(f"{title}: grades", caption, header, tuple(rows), file="group_agreement.tsv")


def _williams(table: pd.DataFrame) -> Part:
    header = ("region", "value", "rater", "a", "b", "n", "r with a", "r with b", "t", "p")
    rows = []
    for r in records(table):
        cells = (r["region"], r["value"], r["rater"], r["a"], r["b"], text(r["n"], 0), text(r["r_a"]), text(r["r_b"]))
        rows.append((*cells, text(r["t"]), chance(r["p"])))
    caption = (
        f"{_people(table)}. Williams' test (two-sided, n - 3 degrees of freedom) of two methods' correlations with the "
        "same rater."
    )
    return Part("Which method is nearer to a rater", caption, header, tuple(rows), file="group_williams.tsv")


def _people(table: pd.DataFrame) -> str:
    low, high = int(table["n"].min()), int(table["n"].max())
    return f"n = {low} persons" if low == high else f"n = {low} to {high} persons"


def _pictures(cohort: Cohort, counts: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    """Scatter and Bland-Altman plot of the counts of two methods."""
    out = []
    wanted = counts[(counts["value"] == "count") & counts["region"].isin(SHOWN)]
    both = cohort.long[cohort.long["hemisphere"] == "both"]
    for r in records(wanted):
        own = both[both["region"] == r["region"]].pivot(index="label", columns="model", values="count")
        pair = own[[r["b"], r["a"]]].dropna().to_numpy(float)
        caption = f"{r['region']}: every session; right: differences with bias and limits of agreement of what is shown"
        out.append((caption, plots.comparison(pair[:, 0], pair[:, 1], "EPVS", names=(r["b"], r["a"]))))
    return tuple(out)


def repeatability(analysis: Analysis) -> list[Part]:
    """Sessions of one person."""
    table = analysis.repeatability
    if table.empty:
        return []
    header = (
        "region",
        "method",
        "value",
        "n",
        "ICC(1,1)",
        "within-subject SD",
        "smallest detectable change",
        "mean change",
    )
    rows = []
    for r in _in_order(table):
        cells = (r["region"], r["model"], r["value"], text(r["n"], 0), ranged(r, "icc"), text(r["within_sd"]))
        rows.append((*cells, text(r["smallest_detectable_change"]), ranged(r, "change", 1)))
    caption = (
        f"{_people(table)} with at least two sessions, the first two of each; 95 % intervals in brackets (ICC: F, "
        "change: t). Real change between the sessions counts as error."
    )
    return [Part("First and second session", caption, header, tuple(rows), file="group_repeatability.tsv")]


def associations(analysis: Analysis) -> list[Part]:
    """A table and a forest plot a formula."""
    out = []
    for formula in analysis.formulas:
        own = analysis.associations[analysis.associations["formula"] == formula]
        fitted = own[own["value"].notna()]
        caption = f"{_regression_caption(fitted)} {_reasons(own[own['value'].isna()])}"
        header = ("region", "method", "term", "effect (95 % interval)", "p", "q", "n", "dispersion", "residual check p")
        rows = []
        for r in _in_order(fitted):
            cells = (r["region"], r["model"], r["term"], ranged(r, "value", 3), chance(r["p"]), chance(r["q"]))
            rows.append((*cells, text(r["n"], 0), text(r["dispersion"]), chance(r["check_p"])))
        out.append(Part(formula, caption.strip(), header, tuple(rows), _forests(fitted), "group_associations.tsv"))
    return out


def _reasons(own: pd.DataFrame) -> str:
    """Why there is no result, each reason once."""
    said = []
    for note, same in own.drop_duplicates(["model", "region", "note"]).groupby("note", sort=False):
        who = [f"{r['region']} ({r['model']})" for r in records(same.head(3))]
        more = f" and {len(same) - 3} more" if len(same) > 3 else ""
        said.append(f"{note}: {', '.join(who)}{more}")
    return f"No result: {'; '.join(said)}." if said else ""


def _regression_caption(fitted: pd.DataFrame) -> str:
    if fitted.empty:
        return ""
    kinds = ", ".join(fitted["regression"].unique())
    checks = "; ".join(c for c in fitted["check"].dropna().unique())
    low, high = int(fitted["n"].min()), int(fitted["n"].max())
    rows = f"n = {low}" if low == high else f"n = {low} to {high}"
    people = int(fitted["participants"].max())
    checked = f" Residual check: {checks}; a small p casts doubt." if checks else ""
    effects = ", ".join(fitted["effect"].unique())
    return (
        f"{rows} sessions of up to {people} persons; regression: {kinds}; {effects} per unit of the term with 95 % "
        f"intervals and two-sided p (t). q: false discovery rate over regions (Benjamini & Hochberg).{checked}"
    )


def _forests(fitted: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    out = []
    for (term, effect), own in fitted.groupby(["term", "effect"], sort=False):
        rows = [
            (f"{r['region']}, {r['model']}", r["value"], r["value_low"], r["value_high"]) for r in records(own.head(40))
        ]
        label = f"{effect} per unit of {term}"
        out.append((f"{label}, 95 % intervals", plots.forest(rows, label, ratio=effect != "slope")))
    return tuple(out)


def frequency(maps: Sequence[FrequencyMap]) -> list[Part]:
    """A mosaic a method (and group of persons), one scale for all of a method."""
    out = []
    for model in dict.fromkeys(m.model for m in maps):
        own = [m for m in maps if m.model == model]
        top = max(max(float(m.smooth.max()) for m in own), 1e-6)
        pictures = []
        for one in own:
            who = "All persons" if one.by == "all" else f"{one.by} {one.level}"
            pictures.append((f"{who}, n = {one.participants}", _mosaic(one.smooth, top, f"{model}, {who}")))
        caption = (
            f"Share of persons with an EPVS at a place of ICBM152 (sessions of a person averaged), smoothed with a "
            f"Gaussian of 4 mm; brightest: {100 * top:.1f} %. Axial slices at z = "
            f"{', '.join(str(z) for z in MAP_SLICES_MM)} mm; the patient's left is on the right. "
            "Raw and smoothed maps: group_*_frequency.nii.gz."
        )
        out.append(Part(model, caption, pictures=tuple(pictures)))
    return out


def _mosaic(share: np.ndarray, top: float, what: str) -> str:
    """An ``<img>`` of a map over the template."""
    base = icbm152("T1w")
    inverse = np.linalg.inv(base.affine)
    heights = [int(np.clip(round((inverse @ [0, 0, z, 1])[2]), 0, base.shape[2] - 1)) for z in MAP_SLICES_MM]
    picture = figures.jpeg(figures.heat(np.asarray(base.dataobj), share, top=top, slices=heights))
    uri = figures.data_uri(picture, "jpeg")
    return f'<img src="{uri}" alt="frequency map, {what}" style="width:100%">'
