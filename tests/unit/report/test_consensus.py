"""Answers of all methods side by side."""

import numpy as np
import pandas as pd

from bids_epvs.measure.ratings import SUMMARY_COLUMNS
from bids_epvs.report import consensus
from bids_epvs.report.subject import answer, counted


def table(*rows):
    keys = ("model", "region", "hemisphere", "count", "rating", "rating_scale")
    return pd.DataFrame([dict(zip(keys, r, strict=True)) for r in rows]).reindex(columns=SUMMARY_COLUMNS)


NAN = float("nan")


def test_grades_that_differ_by_two_are_told():
    summary = table(
        ("unet", "BasalGanglia", "left", 30, 3, "Potter"),
        ("unet", "BasalGanglia", "both", 40, 3, "Potter"),
        ("rating2d", "BasalGanglia", "both", NAN, 1, "Potter"),
        ("resnet152", "BasalGanglia", "both", NAN, 1, "Severity"),
        ("cnn", "BasalGanglia", "both", 12.3, NAN, None),
        ("unet", "Hippocampus", "both", 4, NAN, None),
        ("cnn", "Thalamus", "both", NAN, NAN, None),
    )
    found = consensus.lines(summary)
    assert found["models"] == ["unet", "rating2d", "resnet152", "cnn"]
    assert [r["region"] for r in found["rows"]] == ["BasalGanglia", "Hippocampus"]
    first, second = found["rows"]
    assert first["apart"] == 2
    assert [answer(a) for a in first["answers"]] == ["40 (grade 3)", "grade 1", "moderate to severe", "12.3"]
    assert second["apart"] is None
    assert [answer(a) for a in second["answers"]] == ["4", "", "", ""]


def test_numbers_as_people_read_them():
    assert [counted(v) for v in (3.0, 3.25, np.nan)] == ["3", "3.2", "n/a"]
    assert answer({"count": NAN, "rating": 0.0, "rating_scale": "Severity"}) == "none or mild"
    assert answer({"count": NAN, "rating": NAN, "rating_scale": None}) == "n/a"
