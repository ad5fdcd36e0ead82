"""The page of an evaluation: tables of tables.summary, figures of counts and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bids_epvs.report import plots
from bids_epvs.report.group import cell
from bids_epvs.report.subject import environment
from bids_epvs.report.wording import chance

AGREEMENT = ("icc_count", "icc_volume", "ccc_count", "pearson_count", "bias_count", "bias_volume")


def render(
    sessions: pd.DataFrame,
    summary: pd.DataFrame,
    diameters: pd.DataFrame,
    reliability: pd.DataFrame,
    regional: Mapping[str, pd.DataFrame],
    numbers: pd.DataFrame,
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
    regional : mapping
        Tables of what is said of whole regions: ``counts, volumes, williams, grades, severity, calibration, hits``.
    numbers : DataFrame
        A row for each session, method and region: counts found and true.
    shown : sequence of str
        Measures whose mean and standard error are shown.
    descriptions : mapping
        What each column means.
    remarks : sequence of str
        What a reader must know, such as that the truth was simulated.
    versions : mapping
    """
    models = list(dict.fromkeys(summary["model"])) if len(summary) else []
    labels = numbers["label"] if sessions.empty else sessions["label"]
    parts = summary.groupby("part", sort=False) if len(summary) else ()
    return (
        environment()
        .get_template("evaluation.html")
        .render(
            n=labels.nunique(),
            remarks=remarks,
            parts=[_part(part, rows) for part, rows in parts],
            regional=[_table(name, regional[name]) for name in TITLES if len(regional[name])],
            by_region=_scatter(numbers),
            shown=shown,
            agreement=AGREEMENT,
            figures=[
                _figures(m, sessions[(sessions["model"] == m) & (sessions["region"] == "all")])
                for m in models
                if ((sessions["model"] == m) & (sessions["region"] == "all")).any()
            ],
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


TITLES = {
    "counts": "Counts by region",
    "volumes": "Volumes by region, mm³: of the mask, and expected from the probability of each voxel",
    "williams": "Which method's counts correlate better with the truth (Williams' test)",
    "grades": "Grades (Potter)",
    "severity": "None or mild against moderate to severe",
    "calibration": "Probability of moderate to severe EPVS against how often they are there",
    "hits": "EPVS hit at a number of wrong marks a region of an image",
}
_WORDS = ("part", "truth", "measure", "model", "region", "a", "b", "resolution")


def _table(name: str, content: pd.DataFrame) -> dict[str, Any]:
    """Title, header and cells of one of the regional tables; ends of intervals stand behind their value."""
    names = [str(c) for c in content]
    ends = {c for c in names if c.endswith(("_low", "_high")) and c.rpartition("_")[0] in names}
    shown = [c for c in names if c not in ends]
    rows = []
    for row in content.to_dict("records"):
        cells = []
        for c in shown:
            text = str(row[c]) if c in _WORDS else chance(row[c]) if c in ("p", "p_no_information") else cell(row[c])
            if f"{c}_low" in ends and pd.notna(row[f"{c}_low"]):
                text += f" ({cell(row[f'{c}_low'])} to {cell(row[f'{c}_high'])})"
            cells.append(text)
        rows.append(cells)
    return {"name": name, "title": TITLES[name], "header": shown, "rows": rows}


def _scatter(numbers: pd.DataFrame) -> list[dict[str, str]]:
    """Scatter and Bland-Altman plots of the counts of each method and region."""
    known = numbers[numbers["count"].notna() & numbers["count_truth"].notna()]
    return [
        {
            "title": f"{model}, {region}",
            "picture": plots.comparison(rows["count_truth"].to_numpy(float), rows["count"].to_numpy(float), "EPVS"),
        }
        for (model, region), rows in known.groupby(["model", "region"], sort=False)
        if len(rows) > 1
    ]


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
