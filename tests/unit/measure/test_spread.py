"""Intervals that hold errors of the whole app."""

import numpy as np
import pandas as pd
import pytest

from bids_epvs.measure import spread
from bids_epvs.models.count import interval, root


def rows(rng, error, n=400):
    truth = rng.uniform(5, 80, n)
    found = np.maximum((np.sqrt(truth) + rng.normal(0, error, n)) ** 2, 0)
    return pd.DataFrame({"region": "BasalGanglia", "hemisphere": "both", "count": found, "truth": truth})


def test_errors_are_found_again_and_their_intervals_hold_the_truth(rng):
    own = rows(rng, 0.8)
    sides = own.assign(hemisphere="left", count=own["truth"])
    found = spread.measured(pd.concat([own, sides]))["BasalGanglia"]
    assert found["spread_both"] == pytest.approx(0.8, rel=0.1) and found["spread"] == 0 and found["n"] == 400
    fresh = rows(rng, 0.8)
    ends = np.array([interval(c, found["spread_both"]) for c in fresh["count"]])
    covered = (ends[:, 0] <= fresh["truth"]) & (fresh["truth"] <= ends[:, 1])
    assert covered.mean() == pytest.approx(0.92, abs=0.04), "90 %, and a little for whole numbers"


def test_intervals_become_wider_never_narrower():
    summary = pd.DataFrame(
        {
            "region": ["BasalGanglia", "BasalGanglia", "Hippocampus", "Thalamus"],
            "hemisphere": ["left", "both", "both", "both"],
            "count": [20.0, 40.0, np.nan, 3.0],
            "count_low": [0.0, 39.0, np.nan, np.nan],
            "count_high": [90.0, 41.0, np.nan, np.nan],
        }
    )
    known = {"BasalGanglia": {"spread": 0.5, "spread_both": 1.0}, "Hippocampus": {"spread": 1.0, "spread_both": 1.0}}
    made = spread.widened(summary, known)
    assert made.loc[0, ["count_low", "count_high"]].tolist() == [0, 90]
    low, high = made.loc[1, ["count_low", "count_high"]]
    assert low < 30 and high > 52 and root(40) - root(low) == pytest.approx(1.645, abs=0.1)
    assert made.loc[2:, ["count_low", "count_high"]].isna().all(axis=None), "no count, or a region not measured"
    assert summary.loc[1, "count_low"] == 39, "the summary given is left alone"


def test_only_the_weights_that_were_measured_have_spreads(monkeypatch):
    own = {"unet": {"WeightsSHA256": ["abc"], "thick": {"BasalGanglia": {"spread": 1.0, "spread_both": 2.0}}}}
    monkeypatch.setattr(spread, "packaged", lambda: own)
    assert spread.known("unet", "abc", "thick")["BasalGanglia"]["spread_both"] == 2.0
    assert spread.known("unet", "abc", "turned") == spread.known("unet", "abc", "thick"), "not measured apart"
    assert spread.known("unet", "other", "thick") == {} == spread.known("unet", "abc", "thin")
    assert spread.known("frangi", "", "thick") == {}
