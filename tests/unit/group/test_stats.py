"""Statistics of a cohort, on tables with known content."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from bids_epvs.group import human, quality, stats, table
from bids_epvs.measure import agreement
from bids_epvs.records import Cohort, Failure
from bids_epvs.synth.cohort import Design, write_cohort


def long(counts, *, region="BasalGanglia", model="unet", ratings=None, sessions=None):
    """Both hemispheres of one method and region: the left side has all EPVS."""
    rows = []
    for number, count in enumerate(counts):
        ids = {"participant_id": f"sub-{number:02d}"}
        if sessions:
            ids = {"participant_id": f"sub-{number // sessions:02d}", "session_id": f"ses-{number % sessions}"}
        for side, value in (("left", count), ("right", 0.0), ("both", count)):
            rating = np.nan if ratings is None else float(ratings[number])
            row = {"model": model, "region": region, "hemisphere": side, "count": value, "volume_mm3": 2.0 * value}
            more = {
                "volume_fraction": value / 1e4,
                "region_volume_mm3": 3e4,
                "rating": rating,
                "rating_scale": "Potter",
            }
            rows.append({**ids, **row, **more, "label": "_".join(ids.values())})
    return pd.DataFrame(rows)


def cohort(table_, **more):
    names = [c for c in ("participant_id", "session_id") if c in table_]
    wide = table_[names].drop_duplicates().reset_index(drop=True)
    return Cohort(wide, table_, {}, **more)


def test_descriptives_are_quartiles_over_sessions():
    made = cohort(long([1, 2, 3, 4, 100], ratings=[0, 1, 1, 1, 4]))
    found = stats.descriptives(made, ()).set_index("hemisphere").loc["both"]
    assert (found["count_q1"], found["count_median"], found["count_q3"]) == (2, 3, 4)
    assert (found["count_min"], found["count_max"], found["sessions"]) == (1, 100, 5)
    assert [found[f"grade_{k}"] for k in range(5)] == [1, 3, 0, 0, 1]
    assert found["asymmetry_median"] == 1.0
    assert found["asymmetry_p"] == pytest.approx(scipy_stats.wilcoxon([1, 2, 3, 4, 100]).pvalue)


def test_splits_follow_the_columns_of_the_dataset():
    made = cohort(long([1.0, 2, 30, 40]), covariates=("sex", "eye"))
    made.wide["sex"], made.wide["eye"] = list("FFMM"), list("abab")
    assert stats.splits(made) == ("sex",)
    assert stats.splits(made, ("eye",)) == ("eye",)
    found = stats.descriptives(made, ("sex",))
    both = found[(found["hemisphere"] == "both") & (found["by"] == "sex")].set_index("level")
    assert both["count_median"].to_dict() == {"F": 1.5, "M": 35.0}


def test_methods_are_compared_once_a_person():
    a, b = [494, 395, 516, 434, 476, 557], [512, 430, 520, 428, 500, 600]
    one = pd.concat(
        [long(np.repeat(a, 2).astype(float), sessions=2), long(np.repeat(b, 2).astype(float), sessions=2, model="x")]
    )
    found = stats.between_methods(cohort(one)).set_index("value").loc["count"]
    expected = agreement.bland_altman(a, b)
    assert (found["a"], found["b"], found["n"]) == ("unet", "x", 6)
    assert found["bias"] == pytest.approx(expected.bias.value)
    assert found["limit_low"] == pytest.approx(expected.low)
    assert found["icc"] == pytest.approx(agreement.icc(np.c_[a, b]).value)


def test_severity_is_mild_or_severe_on_any_scale():
    graded = long([1.0] * 4, ratings=[0, 1, 2, 4])
    own = long([np.nan] * 4, model="resnet152", ratings=[0, 0, 1, 0]).assign(rating_scale="Severity")
    made = stats.matrix(pd.concat([graded, own]), "BasalGanglia", "severity")
    assert made["unet"].tolist() == [0, 0, 1, 1]
    assert made["resnet152"].tolist() == [0, 0, 1, 0]
    assert list(stats.matrix(pd.concat([graded, own]), "BasalGanglia", "rating")) == ["unet"]
    midbrain = long([1.0] * 2, region="Midbrain", ratings=[0, 1])
    assert stats.matrix(midbrain, "Midbrain", "severity")["unet"].isna().all()


def test_raters_are_found_by_the_names_of_columns(tmp_path):
    (tmp_path / "phenotype").mkdir()
    rows = "participant_id\tanna_BasalGanglia_rating\tben_BasalGanglia_rating\tCentrumSemiovale_count\tmood\n"
    rows += (
        "".join(f"sub-{k:02d}\t{k % 5}\t{min(k % 5 + k % 2, 4)}\t{10 * k}\t3\n" for k in range(10))
        + "sub-99\tn/a\t1\t2\t3\n"
    )
    (tmp_path / "phenotype" / "visual.tsv").write_text(rows)
    (tmp_path / "phenotype" / "other.tsv").write_text("age\n3\n")
    found = human.read(tmp_path)
    assert set(found["rater"]) == {"anna", "ben", "visual"}
    assert len(found) == 10 + 11 + 11
    graded = long([10.0 * k for k in range(10)], ratings=[k % 5 for k in range(10)])
    counted = long([10.0 * k for k in range(10)], region="CentrumSemiovale")
    agreed, _ = stats.with_raters(cohort(pd.concat([graded, counted])), found)
    row = agreed.set_index(["kind", "b"])
    assert row.loc[("human", "anna"), "kappa"] == 1.0
    assert row.loc[("human", "visual"), "ccc"] == 1.0
    assert row.loc[("raters", "ben"), "exact"] == pytest.approx(0.6)  # half are one higher, and 4 stays 4
    assert human.read(tmp_path / "none").empty


def test_williams_compares_methods_with_a_rater(rng):
    truth = np.round(rng.gamma(4, 20, 40))
    near, far = truth + rng.normal(0, 5, 40), truth + rng.normal(0, 60, 40)
    both = pd.concat([long(near, model="near"), long(far, model="far")])
    scores = pd.DataFrame(
        {"participant_id": [f"sub-{k:02d}" for k in range(40)], "rater": "anna", "region": "BasalGanglia"}
    )
    _, found = stats.with_raters(cohort(both), scores.assign(value="count", score=truth))
    (row,) = found.to_dict("records")
    r = np.corrcoef([truth, far, near])
    t, p = agreement.williams(r[0, 1], r[0, 2], r[1, 2], 40)
    assert (row["a"], row["b"], row["n"]) == ("far", "near", 40)
    assert (row["t"], row["p"]) == pytest.approx((t, p))
    assert row["p"] < 0.01


def test_repeatability_uses_the_first_two_sessions():
    pairs = np.array([[10.0, 12, 99], [20, 20, 99], [31, 29, 99]])
    found = stats.repeatability(cohort(long(pairs.ravel(), sessions=3))).set_index("value").loc["count"]
    assert found["n"] == 3
    assert found["icc"] == pytest.approx(agreement.icc_within(pairs[:, :2]).value)
    assert found["smallest_detectable_change"] == pytest.approx(1.96 * np.sqrt(2 * 4 / 3))
    assert found["change"] == pytest.approx(0.0)
    assert stats.repeatability(cohort(long([1.0, 2.0]))).empty


def test_robust_z_of_iglewicz_and_hoaglin():
    values = np.array([1.0, 2, 3, 4, 5, np.nan, 50])
    z = quality.robust_z(values)
    known = values[~np.isnan(values)]
    mad = np.median(np.abs(known - 3.5))
    assert z[6] == pytest.approx(0.6745 * 46.5 / mad)
    assert np.isnan(z[5])
    assert np.isnan(quality.robust_z(np.arange(3.0))).all()  # too few to call anyone odd
    assert quality.robust_z(np.r_[np.zeros(9), 1.0])[9] > 3.5  # the MAD is 0
    assert (quality.robust_z(np.ones(9)) == 0).all()


def test_quality_lists_outliers_disagreement_and_failures():
    counts = np.array([10.0, 11, 12, 13, 14, 15, 16, 900])
    one = long(counts, ratings=[1] * 8)
    two = long(counts, model="x", ratings=[1] * 7 + [4])
    made = cohort(pd.concat([one, two]), failures=(Failure("sub-77", "truncated"),), notes={"sub-00": ("dark",)})
    found = quality.quality(made).set_index("participant_id")
    assert found.loc["sub-77", ["verdict", "reason"]].tolist() == ["failed", "truncated"]
    assert found.loc["sub-07", "verdict"] == "check"
    assert "BasalGanglia count (unet)" in found.loc["sub-07", "outliers"]
    assert found.loc["sub-07", "disagreements"] == "BasalGanglia"
    assert found.loc["sub-07", "largest_z"] > 3.5
    assert found.loc["sub-00", "warnings"] == "dark"
    assert found.loc["sub-03", "verdict"] == "ok"


def test_a_cohort_of_tables_is_read_whole(tmp_path):
    write_cohort(tmp_path / "raw", tmp_path / "out", Design(30, sessions=2, seed=1))
    made = table.collect(tmp_path / "out", tmp_path / "raw")
    assert len(made.wide) == 60
    assert made.covariates == ("age", "sex", "site")
    assert stats.splits(made) == ("sex", "site")
    unet, frangi = (
        stats.repeatability(made).query(f"model == '{m}' and value == 'count'")["icc"].mean()
        for m in ("unet", "frangi")
    )
    assert unet > frangi + 0.05
    _, found = stats.with_raters(made, human.read(tmp_path / "raw"))
    assert set(found["rater"]) == {"anna", "ben"}
