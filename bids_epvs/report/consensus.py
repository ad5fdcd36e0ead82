"""The answers of all methods side by side, and where they disagree."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bids_epvs.measure.ratings import SEVERITY
from bids_epvs.prepare.regions import NAMES


def lines(summary: pd.DataFrame) -> dict[str, Any]:
    """Counts and grades by region and method.

    Parameters
    ----------
    summary : DataFrame
        `measure.ratings.SUMMARY_COLUMNS` of one session.

    Returns
    -------
    dict
        ``models``; ``rows``: region, an answer for each method (count, rating, scale, nan where it gives none), and
        ``apart``: the largest difference of two grades of one scale, None with fewer than two.
    """
    models = list(dict.fromkeys(summary["model"]))
    both = summary[summary["hemisphere"] == "both"]
    rows = []
    for name in NAMES:
        own = both[both["region"] == name].set_index("model")
        if own[["count", "rating"]].notna().any(axis=None):
            answers = [own.loc[m].to_dict() if m in own.index else {} for m in models]
            rows.append({"region": name, "answers": answers, "apart": apart(own)})
    return {"models": models, "rows": rows}


def apart(own: pd.DataFrame) -> int | None:
    """Largest difference of two grades of one scale (a severity is no grade); None with fewer than two."""
    grades = own.loc[own["rating"].notna() & (own["rating_scale"] != SEVERITY), "rating"]
    return int(grades.max() - grades.min()) if len(grades) > 1 else None
