"""Regressions against known effects and against statsmodels' own maximum likelihood."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats

from bids_epvs.errors import UsageError
from bids_epvs.group import association, regression, table
from bids_epvs.records import Cohort
from bids_epvs.synth.cohort import Design, write_cohort


def cohort(rng, people=120, sessions=1, **outcome):
    """Counts that grow by 3 % a year and with the volume of the region; grades whose odds grow by 10 % a year."""
    age, null = np.repeat(rng.uniform(45, 90, people), sessions), np.repeat(rng.normal(size=people), sessions)
    n = people * sessions
    size = 3e4 * np.exp(rng.normal(0, 0.3, n))
    mean = 20 * size / 3e4 * np.exp(np.log(1.03) * (age - 65))
    latent = np.log(1.1) * (age - 65) + rng.logistic(size=n)
    rating = np.searchsorted([-2, 0, 1, 2.5], latent).astype(float)
    ids = {"participant_id": [f"sub-{k // sessions:03d}" for k in range(n)]}
    if sessions > 1:
        ids["session_id"] = [f"ses-{k % sessions}" for k in range(n)]
    wide = pd.DataFrame(
        {**ids, "age": age, "sex": rng.choice(["F", "M"], n), "null": null, "body mass": rng.normal(25, 3, n)}
    )
    long = pd.DataFrame(
        {**ids, "model": "unet", "region": "BasalGanglia", "hemisphere": "both", "label": ids["participant_id"]}
    )
    long["count"] = rng.poisson(mean * rng.gamma(4, 1 / 4, n)).astype(float)
    long["volume_mm3"] = np.exp(0.02 * (age - 65) + rng.normal(0, 0.4, n))
    long["rating"], long["rating_scale"], long["region_volume_mm3"] = rating, "Potter", size
    return Cohort(wide, long.assign(**outcome), {}, ("age", "sex", "null", "body mass"))


def effect(found, term):
    (row,) = found[found["term"] == term].to_dict("records")
    return row


def test_counts_give_the_rate_ratio_of_maximum_likelihood(rng):
    made = cohort(rng, people=400)
    found = effect(association.associations(made, ["count ~ age + null"]), "age")
    design = sm.add_constant(made.wide[["age", "null"]])
    offset = np.log(made.long["region_volume_mm3"])
    other = sm.NegativeBinomial(made.long["count"], design, offset=offset).fit(disp=False, maxiter=500)
    assert found["value"] == pytest.approx(np.exp(other.params["age"]), rel=2e-3)
    assert np.log(found["value_high"]) == pytest.approx(other.conf_int().loc["age", 1], abs=1.5e-3)
    assert found["value_low"] < 1.03 < found["value_high"]
    assert (found["effect"], found["regression"], found["n"]) == ("rate ratio", "negative binomial", 400)
    assert 0.9 < found["dispersion"] < 1.1
    assert found["check_p"] > 0.01


def test_counts_that_are_not_spread_wider_are_poisson(rng):
    made = cohort(rng)
    made.long["count"] = np.full(len(made.long), 7.0) + (np.arange(len(made.long)) % 2)
    assert effect(association.associations(made, ["count ~ age"]), "age")["regression"] == "Poisson"


def test_residuals_show_what_a_regression_misses(rng):
    mean = np.full(400, 20.0)
    assert regression.residuals_p(rng.poisson(mean), mean, 0.0) > 0.01
    assert regression.residuals_p(rng.poisson(mean * rng.gamma(2, 1 / 2, 400)), mean, 0.0) < 1e-6


def test_grades_give_odds_ratios(rng):
    made = cohort(rng, people=400)
    found = effect(association.associations(made, ["rating ~ age + null"]), "age")
    assert found["value_low"] < 1.1 < found["value_high"]
    assert found["effect"] == "odds ratio"
    assert found["check_p"] > 0.001  # odds are proportional here
    severe = effect(association.associations(made, ["severity ~ age + null"]), "age")
    logit = sm.Logit((made.long["rating"] >= 2).astype(float), sm.add_constant(made.wide[["age", "null"]])).fit(
        disp=False
    )
    assert severe["value"] == pytest.approx(np.exp(logit.params["age"]), rel=1e-4)
    assert severe["regression"] == "logistic"


def test_odds_that_are_not_proportional_are_noticed(rng):
    made = cohort(rng, people=600)
    age = made.wide["age"].to_numpy()
    low, high = rng.random(600) < 0.5, rng.random(600) < 1 / (1 + np.exp(-0.25 * (age - 65)))
    made.long["rating"] = np.where(low, 0.0, np.where(high, 4.0, 2.0))
    assert effect(association.associations(made, ["rating ~ age"]), "age")["check_p"] < 0.01


def test_hosmer_lemeshow_by_hand():
    y, chance = np.tile([0.0, 1.0], 50), np.full(100, 0.5)
    assert regression.hosmer_lemeshow(y, chance) == pytest.approx(1.0)
    assert regression.hosmer_lemeshow(np.ones(100), chance) == pytest.approx(scipy_stats.chi2.sf(10 * 25 / 2.5, 8))


def test_anything_else_is_linear_in_units_of_the_covariate(rng):
    made = cohort(rng)
    found = effect(association.associations(made, ["np.log(volume_mm3) ~ age + C(sex)"]), "age")
    least = scipy_stats.linregress(made.wide["age"], np.log(made.long["volume_mm3"]))
    assert found["value"] == pytest.approx(least.slope, abs=0.002)
    assert found["effect"] == "slope"


def test_sessions_of_one_person_are_not_counted_twice(rng):
    once = cohort(rng, people=60)
    again = once.long.assign(volume_mm3=once.long["volume_mm3"] * np.exp(rng.normal(0, 0.1, 60)))
    twice = Cohort(
        pd.concat([once.wide.assign(session_id=s) for s in ("ses-1", "ses-2")]),
        pd.concat([once.long.assign(session_id="ses-1"), again.assign(session_id="ses-2")]),
        {},
        once.covariates,
    )
    for formula in ("count ~ age", "rating ~ age", "severity ~ age", "np.log(volume_mm3) ~ age"):
        one, two = (effect(association.associations(c, [formula]), "age") for c in (once, twice))
        width = [
            np.log(r["value_high"] / r["value_low"]) if r["effect"] != "slope" else r["value_high"] - r["value_low"]
            for r in (one, two)
        ]
        assert two["value"] == pytest.approx(one["value"], rel=0.05), formula
        assert width[1] > 0.85 * width[0], formula
        assert (two["n"], two["participants"]) == (120, 60)


def test_q_is_benjamini_hochberg_over_regions(rng):
    parts = [cohort(rng).long.assign(region=r) for r in ("BasalGanglia", "CentrumSemiovale", "Hippocampus")]
    first = cohort(rng)
    found = association.associations(Cohort(first.wide, pd.concat(parts), {}, first.covariates), ["count ~ null"])
    p = np.sort(found["p"].to_numpy(float))
    expected = np.minimum.accumulate((p * 3 / np.arange(1, 4))[::-1])[::-1]
    assert np.sort(found["q"].to_numpy(float)) == pytest.approx(expected)


def test_what_cannot_be_estimated_says_why(rng):
    made = cohort(rng, people=12)
    assert "at least 15 needed" in association.associations(made, ["count ~ age + null"])["note"].iloc[0]
    made = cohort(rng, people=60)
    twin = Cohort(made.wide.assign(twin=made.wide["age"] * 2), made.long, {}, (*made.covariates, "twin"))
    assert "follows from" in association.associations(twin, ["count ~ age + twin"])["note"].iloc[0]
    same = Cohort(made.wide, made.long.assign(rating=1.0), {}, made.covariates)
    assert "same for all" in association.associations(same, ["rating ~ age"])["note"].iloc[0]
    apart = Cohort(made.wide, made.long.assign(rating=np.where(made.wide["age"] > 65, 3.0, 1.0)), {}, made.covariates)
    assert "separation" in association.associations(apart, ["severity ~ age"])["note"].iloc[0]


def test_a_formula_that_cannot_be_read_is_refused(rng):
    made = cohort(rng)
    with pytest.raises(UsageError, match="expected 'count ~ age"):
        association.associations(made, ["count"])
    with pytest.raises(UsageError, match=r"height.*Columns: .*age"):
        association.associations(made, ["count ~ height"])


def test_the_default_uses_what_the_dataset_has(rng, tmp_path):
    made = cohort(rng)
    assert association.default_formulas(made) == ("count ~ age + C(sex)", "rating ~ age + C(sex)")
    assert association.default_formulas(Cohort(made.wide, made.long, {}, ("null",))) == ()
    assert association.associations(made, ['count ~ Q("body mass")'])["p"].notna().all()
    write_cohort(tmp_path / "raw", tmp_path / "out", Design(150, rate=1.03, seed=4))
    collected = table.collect(tmp_path / "out", tmp_path / "raw")
    found = association.associations(collected, association.default_formulas(collected))
    age = found[(found["term"] == "age") & found["formula"].str.startswith("count") & (found["model"] == "unet")]
    assert len(age) == 6
    assert ((age["value_low"] < 1.03) & (age["value_high"] > 1.03)).sum() >= 5
    assert (age["q"] >= age["p"]).all()
