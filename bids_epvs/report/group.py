"""The report of all subjects: one self-contained HTML page that links to the subject reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from bids_epvs.models import load
from bids_epvs.prepare.regions import NAMES
from bids_epvs.records import Analysis, Cohort
from bids_epvs.report import figures, plots, statistics
from bids_epvs.report.subject import environment
from bids_epvs.report.wording import records

COVARIATES_SHOWN = 4
"""Columns of participants.tsv shown in the page; the TSV has them all."""
SHEET = 200
"""Pictures of the contact sheet: with more the page would be too large; those to be checked come first."""


def render(
    cohort: Cohort,
    analysis: Analysis,
    *,
    thumbnails: Mapping[str, bytes],
    methods: str,
    references: Sequence[str],
    versions: Mapping[str, str],
) -> str:
    """The page.

    Parameters
    ----------
    cohort : Cohort
    analysis : Analysis
    thumbnails : mapping
        JPEG of each session by label, for the contact sheet; sessions without one are left out of it.
    methods : str
        Methods paragraph.
    references : sequence of str
        Citations that go with it.
    versions : mapping
        Package versions.
    """
    models = list(dict.fromkeys(cohort.long["model"])) if len(cohort.long) else []
    return (
        environment()
        .get_template("group.html")
        .render(
            sections=[_section(cohort, name) for name in models],
            n_sessions=len(cohort.wide),
            n_subjects=cohort.wide["participant_id"].nunique() if len(cohort.wide) else 0,
            failures=cohort.failures,
            parts=statistics.parts(cohort, analysis),
            notes=analysis.notes,
            quality=_quality(analysis.quality),
            verdicts=analysis.quality["verdict"].value_counts().to_dict(),
            sheet=[
                (label, report_link(label), figures.data_uri(thumbnails[label], "jpeg"))
                for label in to_show(analysis, thumbnails)
            ],
            hidden=max(0, len(thumbnails) - SHEET),
            methods=methods,
            references=references,
            versions=versions,
        )
    )


def report_link(label: str) -> str:
    """Relative link to a session in the report of its subject.

    >>> report_link("sub-01_ses-2")
    'sub-01.html#sub-01_ses-2'
    """
    return f"{label.split('_')[0]}.html#{label}"


def to_show(analysis: Analysis, thumbnails: Mapping[str, bytes]) -> list[str]:
    """Labels of the contact sheet: all, or the first `SHEET`, those to be checked before the others."""
    labels = [label for label in _labels(analysis.quality) if label in thumbnails]
    if len(labels) <= SHEET:
        return labels
    verdict = dict(zip(_labels(analysis.quality), analysis.quality["verdict"], strict=True))
    return sorted(sorted(labels, key=lambda label: verdict[label] != "check")[:SHEET])


def _labels(table: pd.DataFrame) -> list[str]:
    """``sub-01_ses-1`` of each row."""
    names = [c for c in ("participant_id", "session_id") if c in table]
    return ["_".join(v for v in row if isinstance(v, str)) for row in table[names].itertuples(index=False)]


def payload(header: list[tuple[str, str]], rows: list[list[Any]]) -> Markup:
    """A table for the script of the page, as JSON that cannot end its element; rows begin with label and link."""
    text = json.dumps({"header": header, "rows": rows}, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def _quality(table: pd.DataFrame) -> Markup:
    """The table of `quality.quality`, sessions to look at first."""
    names = ["verdict", "largest_z", "outliers", "disagreements", "missing_regions", "warnings", "reason"]
    header = [("session", "link to the report"), *((n.replace("_", " "), "") for n in names)]
    order = table["verdict"].map({"failed": 0, "check": 1, "ok": 2}).sort_values(kind="stable").index
    sorted_table = table.loc[order]
    rows = [
        [label, report_link(label), *(cell(row[n], empty="") for n in names)]
        for label, (_, row) in zip(_labels(sorted_table), sorted_table.iterrows(), strict=True)
    ]
    return payload(header, rows)


def _section(cohort: Cohort, model: str) -> dict[str, Any]:
    """Table of one model, and distributions of what it gives: counts, volumes or neither."""
    own = cohort.long[(cohort.long["model"] == model) & (cohort.long["hemisphere"] == "both")]
    shown = [n for n in NAMES if n in set(own["region"])]
    columns = _columns(cohort, model, shown)
    return {
        "spec": load(model),
        "table": payload(
            [("session", "link to the report"), *((text, title) for text, title, _ in columns)],
            [_row(r, [name for _, _, name in columns]) for r in records(cohort.wide)],
        ),
        "counts": _distributions(own, shown, "count", "EPVS count"),
        "volumes": _distributions(own, shown, "volume_mm3", "EPVS volume (mm³)"),
    }


def _distributions(own: pd.DataFrame, regions: list[str], measure: str, label: str) -> str:
    """Picture of a measure by region; empty where no session has a value."""
    values = {n: own.loc[own["region"] == n, measure].dropna().to_numpy(float) for n in regions}
    return plots.distributions(values, label) if any(map(len, values.values())) else ""


def _columns(cohort: Cohort, model: str, regions: list[str]) -> list[tuple[str, str, str]]:
    """(text, title, column of ``group_epvs.tsv``) of each column of the table of a model that has a value."""
    severity = load(model).task == "severity"
    out = []
    for name in regions:
        out.append((name, f"EPVS in the {name}, both hemispheres", f"{model}_{name}_count"))
        if severity:
            out.append((f"{name} severe", "1: moderate to severe, 0: none or mild", f"{model}_{name}_rating"))
        else:
            out.append((f"{name} grade", "Potter grade of the fuller hemisphere", f"{model}_{name}_rating"))
    out.append(("all", "EPVS in all regions", f"{model}_count"))
    out.append(("mm³", "volume of EPVS", f"{model}_volume_mm3"))
    valued = [c for c in out if c[2] in cohort.wide and cohort.wide[c[2]].notna().any()]
    covariates = [(c, "from the dataset", c) for c in cohort.covariates[:COVARIATES_SHOWN]]
    return [*covariates, *valued, ("warnings", "quality warnings", "quality_warnings")]


def _row(row: Mapping[str, Any], columns: list[str]) -> list[Any]:
    """Label, link and cells of one session."""
    label = "_".join(str(row[c]) for c in ("participant_id", "session_id") if c in row)
    return [label, report_link(label), *(cell(row[c]) for c in columns)]


def cell(value: Any, *, empty: str = "n/a") -> str:
    """A table cell: whole numbers without decimals, others with at most two, n/a where missing.

    >>> [cell(v) for v in (3.0, 2.345, "F", float("nan"))]
    ['3', '2.35', 'F', 'n/a']
    """
    if value is None or pd.isna(value):
        return empty
    if isinstance(value, str):
        return value
    number = float(value)
    return f"{number:.0f}" if number.is_integer() else f"{number:.2f}"
