"""How far counts of the whole app lie from the truth, errors of brain and regions included.

A method's own interval knows nothing of errors of the regions that it is given. ``spreads.json``, beside the weights,
holds what simulated sessions of held-out heads showed that went through the whole app (``benchmarks/spreads.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd

from bids_epvs.models.count import interval, root


@cache
def packaged() -> Mapping[str, Mapping]:
    """By method: ``WeightsSHA256`` of the networks it was measured with, and for each kind of slices the regions."""
    path = files("bids_epvs.data.weights").joinpath("spreads.json")
    return json.loads(path.read_text()) if path.is_file() else {}


def known(model: str, sha256: str, slices: str) -> Mapping[str, Mapping[str, float]]:
    """``spread`` and ``spread_both`` of each region; empty for other weights than those that were measured.

    `slices` is their `planes.kind`; where coronal and sagittal ones were not measured, axial ones of their thickness
    count.
    """
    own = packaged().get(model, {})
    if not sha256 or sha256 not in own.get("WeightsSHA256", ()):
        return {}
    return own.get(slices) or (own.get("thick", {}) if slices == "turned" else {})


def measured(counts: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Root mean square errors of square roots of counts, by region.

    Parameters
    ----------
    counts : DataFrame
        ``region``, ``hemisphere`` (left, right, both), ``count`` and ``truth``, a row for each session.

    Returns
    -------
    dict
        ``spread`` of one hemisphere, ``spread_both`` of both together, ``n`` sessions.
    """
    away = np.square(root(counts["count"].to_numpy(float)) - root(counts["truth"].to_numpy(float)))
    out = {}
    for region, own in counts.assign(away=away).groupby("region", sort=False):
        both = own["hemisphere"] == "both"
        sides = float(np.sqrt(own.loc[~both, "away"].mean()))
        whole = float(np.sqrt(own.loc[both, "away"].mean()))
        out[str(region)] = {"spread": round(sides, 4), "spread_both": round(whole, 4), "n": int(both.sum())}
    return out


def widened(summary: pd.DataFrame, spreads: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """A summary whose intervals of counts are at least as wide as the errors of the whole app make them."""
    out = summary.copy()
    for k, row in summary.iterrows():
        own = spreads.get(row["region"])
        if own is None or pd.isna(row["count"]):
            continue
        low, high = interval(float(row["count"]), own["spread_both" if row["hemisphere"] == "both" else "spread"])
        out.loc[k, "count_low"] = np.fmin(low, row["count_low"])
        out.loc[k, "count_high"] = np.fmax(high, row["count_high"])
    return out
