"""The page of an evaluation: tables of tables.summary, figures of counts and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bids_epvs.report import plots
from bids_epvs.report.group import cell
from bids_epvs.report.subject import environment

AGREEMENT = ("icc_count", "icc_volume", "ccc_count", "pearson_count", "bias_count", "bias_volume")


def render(
    sessions: pd.DataFrame,
    summary: pd.DataFrame,
    diameters: pd.DataFrame,
    reliability: pd.DataFrame,
    *,
    shown: Sequence[str],
    descriptions: Mapping[str, str],
    remarks: Sequence[str],
    versions: Mapping[str, str],
) -> str:
    """One self-contained HTML page.

    Parameters
    ----------
    sessions, summary, diameters, reliability : DataFrame
        A row for each session, method and region; for each part, method and region; for each method and diameter; for
        each method and bin of probability.
    shown : sequence of str
        Measures whose mean and standard error are shown.
    descriptions : mapping
        What each column means.
    remarks : sequence of str
        What a reader must know, such as that the truth was simulated.
    versions : mapping
    """
    models = list(dict.fromkeys(summary["model"]))
    return (
        environment()
        .get_template("evaluation.html")
        .render(
            n=sessions["label"].nunique(),
            remarks=remarks,
            parts=[_part(part, rows) for part, rows in summary.groupby("part", sort=False)],
            shown=shown,
            agreement=AGREEMENT,
            figures=[_figures(m, sessions[(sessions["model"] == m) & (sessions["region"] == "all")]) for m in models],
            diameters=diameters.to_dict("records"),
            reliability=[
                {"model": m, "picture": plots.reliability(rows["predicted"].to_numpy(), rows["observed"].to_numpy())}
                for m, rows in reliability.groupby("model", sort=False)
            ],
            descriptions=descriptions,
            number=cell,
            versions=versions,
        )
    )


def _part(part: Any, rows: pd.DataFrame) -> dict[str, Any]:
    """Title and rows of one table."""
    return {"title": "All sessions" if part == "all" else str(part), "rows": rows.to_dict("records")}


def _figures(model: str, rows: pd.DataFrame) -> dict[str, str]:
    """Scatter and Bland-Altman plots of one method."""
    return {
        "model": model,
        "counts": plots.comparison(rows["count_truth"].to_numpy(float), rows["count_found"].to_numpy(float), "EPVS"),
        "volumes": plots.comparison(
            rows["volume_truth_mm3"].to_numpy(float), rows["volume_found_mm3"].to_numpy(float), "mm³"
        ),
    }
