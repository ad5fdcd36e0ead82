"""What to look at before the numbers of a cohort are used: outliers, disagreement, failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bids_epvs.derivatives import columns
from bids_epvs.group.stats import keys
from bids_epvs.measure.ratings import APART, SEVERITY
from bids_epvs.records import Cohort

OUTLIER_Z = 3.5
"""Iglewicz & Hoaglin 1993, How to detect and handle outliers."""
FEWEST = 5
"""Sessions below which nobody is called an outlier."""


def robust_z(values: np.ndarray) -> np.ndarray:
    """0.6745 (x - median) / MAD; where the MAD is 0, (x - median) / (1.2533 mean absolute deviation); nan stays.

    References
    ----------
    Iglewicz & Hoaglin 1993.
    """
    known = values[np.isfinite(values)]
    if len(known) < FEWEST:
        return np.full(len(values), np.nan)
    away = values - np.median(known)
    mad = float(np.median(np.abs(away[np.isfinite(away)])))
    scale = mad / 0.6745 if mad > 0 else 1.2533 * float(np.abs(away[np.isfinite(away)]).mean())
    return away / scale if scale > 0 else np.where(np.isfinite(values), 0.0, np.nan)


def quality(cohort: Cohort) -> pd.DataFrame:
    """What to look at before the numbers are used, a row per session; columns `columns.QC`."""
    rows = [_failed(f.label, f.reason) for f in cohort.failures]
    if len(cohort.long):
        both = cohort.long[cohort.long["hemisphere"] == "both"]
        largest, odd = _outliers(both)
        apart, empty = _disagreements(both), _listed(both[both[["count", "rating"]].isna().all(axis=1)], "region")
        names = keys(cohort.wide)
        for ids in cohort.wide[names].itertuples(index=False, name=None):
            row, label = dict(zip(names, ids, strict=True)), "_".join(map(str, ids))
            notes = cohort.notes.get(label, ())
            found = {"outliers": odd.get(label, ""), "disagreements": apart.get(label, "")}
            found |= {"missing_regions": empty.get(label, ""), "warnings": "; ".join(notes)}
            verdict = "check" if any(found.values()) else "ok"
            rows.append({**row, "verdict": verdict, "largest_z": largest.get(label, np.nan), **found})
    absent = {"session_id"} - {key for row in rows for key in row}
    out = pd.DataFrame(rows, columns=[c for c in columns.QC if c not in absent])
    return out.astype({"reason": object}).fillna({"reason": ""}).sort_values(keys(out), ignore_index=True)


def _failed(label: str, reason: str) -> dict[str, Any]:
    subject, _, session = label.partition("_")
    return {
        "participant_id": subject,
        **({"session_id": session} if session else {}),
        "verdict": "failed",
        "reason": reason,
    }


def _outliers(both: pd.DataFrame) -> tuple[Mapping[str, float], Mapping[str, str]]:
    """Largest absolute robust z of each session, and what exceeds `OUTLIER_Z` in words."""
    parts = []
    for (model, region), own in both.groupby(["model", "region"], sort=False):
        z = robust_z(np.log1p(own["count"].to_numpy(float)))
        parts.append(pd.DataFrame({"label": own["label"], "z": z, "text": f"{region} count ({model})"}))
    sizes = both.drop_duplicates(["label", "region"])
    for (region,), own in sizes.groupby(["region"], sort=False):
        z = robust_z(own["region_volume_mm3"].to_numpy(float))
        parts.append(pd.DataFrame({"label": own["label"], "z": z, "text": f"{region} volume"}))
    every = pd.concat(parts, ignore_index=True)
    every["z"] = every["z"].abs()
    largest = {str(label): float(z) for label, z in every.groupby("label")["z"].max().items()}
    return largest, _listed(every[every["z"] > OUTLIER_Z], "text")


def _disagreements(both: pd.DataFrame) -> Mapping[str, str]:
    """Regions whose grades differ by `APART` or more between methods."""
    rated = both[both["rating"].notna() & (both["rating_scale"] != SEVERITY)]
    grades = rated.groupby(["label", "region"], sort=False)["rating"].agg(["min", "max"]).reset_index()
    return _listed(grades[grades["max"] - grades["min"] >= APART], "region")


def _listed(table: pd.DataFrame, column: str) -> Mapping[str, str]:
    """Label -> the values of a column, each once."""
    return {str(label): ", ".join(dict.fromkeys(own[column])) for label, own in table.groupby("label")}
