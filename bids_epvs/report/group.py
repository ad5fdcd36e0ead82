"""The report of all subjects: one self-contained HTML page that links to the subject reports."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bids_epvs.models import load
from bids_epvs.prepare.regions import NAMES
from bids_epvs.records import Cohort
from bids_epvs.report import plots
from bids_epvs.report.subject import environment

COVARIATES_SHOWN = 4
"""Columns of participants.tsv shown in the page; the TSV has them all."""


def render(cohort: Cohort, *, thumbnails: Mapping[str, bytes], methods: str, versions: Mapping[str, str]) -> str:
    """The page.

    Parameters
    ----------
    cohort : Cohort
    thumbnails : mapping
        JPEG of each session by label, for the contact sheet; sessions without one are left out of it.
    methods : str
        Methods paragraph.
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
            warned=[(label, notes) for label, notes in cohort.notes.items() if notes],
            sheet=[
                (label, report_link(label), _uri(thumbnails[label])) for label in cohort.notes if label in thumbnails
            ],
            link=report_link,
            methods=methods,
            versions=versions,
        )
    )


def report_link(label: str) -> str:
    """Relative link to a session in the report of its subject.

    >>> report_link("sub-01_ses-2")
    'sub-01.html#sub-01_ses-2'
    """
    return f"{label.split('_')[0]}.html#{label}"


def _uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _section(cohort: Cohort, model: str) -> dict[str, Any]:
    """Table and distributions of one model."""
    own = cohort.long[(cohort.long["model"] == model) & (cohort.long["hemisphere"] == "both")]
    shown = [n for n in NAMES if n in set(own["region"])]
    counts = {n: own.loc[own["region"] == n, "count"].dropna().to_numpy(float) for n in shown}
    volumes = {n: own.loc[own["region"] == n, "volume_mm3"].dropna().to_numpy(float) for n in shown}
    return {
        "spec": load(model),
        "header": _header(cohort, shown),
        "rows": [_row(cohort, row, model, shown) for _, row in cohort.wide.iterrows()],
        "counts": plots.distributions(counts, "EPVS count"),
        "volumes": plots.distributions(volumes, "EPVS volume (mm³)"),
    }


def _header(cohort: Cohort, regions: list[str]) -> list[tuple[str, str]]:
    """(text, title) of each column."""
    out = [("session", "link to the report")]
    out += [(c, "from the dataset") for c in cohort.covariates[:COVARIATES_SHOWN]]
    for name in regions:
        out.append((name, f"EPVS in the {name}, both hemispheres"))
        if _rated(cohort, name):
            out.append((f"{name} grade", "Potter grade of the fuller hemisphere"))
    return [*out, ("all", "EPVS in all regions"), ("mm³", "volume of EPVS"), ("warnings", "quality warnings")]


def _rated(cohort: Cohort, region: str) -> bool:
    """Whether any session has a grade of the region."""
    own = cohort.long[cohort.long["region"] == region]
    return bool(own["rating"].notna().any())


def _row(cohort: Cohort, row: pd.Series, model: str, regions: list[str]) -> dict[str, Any]:
    """Label and cells of one session, in the order of `_header`."""
    label = "_".join(str(row[c]) for c in ("participant_id", "session_id") if c in row)
    cells: list[Any] = [row[c] for c in cohort.covariates[:COVARIATES_SHOWN]]
    for name in regions:
        cells.append(row.get(f"{model}_{name}_count"))
        rating = f"{model}_{name}_rating"
        if _rated(cohort, name):
            cells.append(row.get(rating))
    cells += [row.get(f"{model}_count"), row.get(f"{model}_volume_mm3"), row["quality_warnings"]]
    return {"label": label, "cells": [cell(v) for v in cells]}


def cell(value: Any) -> str:
    """A table cell: whole numbers without decimals, others with at most two, n/a where missing.

    >>> [cell(v) for v in (3.0, 2.345, "F", float("nan"))]
    ['3', '2.35', 'F', 'n/a']
    """
    if value is None or pd.isna(value):
        return "n/a"
    if isinstance(value, str):
        return value
    number = float(value)
    return f"{number:.0f}" if number.is_integer() else f"{number:.2f}"
