"""Figures of classifiers against published and hand-worked ones."""

import numpy as np
import pytest

from bids_epvs.measure import classification as c


def test_the_figures_of_the_severity_paper():
    """Williamson et al. 2022: TP 12, FN 3, FP 1, TN 23."""
    truth = [1] * 15 + [0] * 24
    score = [0.9] * 12 + [0.1] * 3 + [0.9] + [0.1] * 23
    found = c.binary(truth, score)
    assert found["accuracy"] == pytest.approx(0.897, abs=5e-4)
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((0.758, 0.971), abs=5e-4)
    assert found["sensitivity"] == pytest.approx(0.8)
    assert found["specificity"] == pytest.approx(0.958, abs=5e-4)
    assert found["ppv"] == pytest.approx(12 / 13)
    assert found["npv"] == pytest.approx(23 / 26)
    assert found["f1"] == pytest.approx(0.857, abs=5e-4)
    assert found["p_no_information"] < 0.001
    assert found["brier"] == pytest.approx((12 * 0.01 + 3 * 0.81 + 0.81 + 23 * 0.01) / 39)


def test_auc_and_its_interval_by_hand():
    """Components 2/3, 1 (positives) and 1, 1, 1/2 (negatives)."""
    found = c.auc([1, 1, 0, 0, 0], [3, 4, 1, 2, 3.5])
    assert found.value == pytest.approx(5 / 6)
    spread = np.sqrt(np.var([2 / 3, 1], ddof=1) / 2 + np.var([1, 1, 0.5], ddof=1) / 3)
    assert found.low == pytest.approx(5 / 6 - 1.96 * spread)
    assert found.high == 1.0


def test_ties_count_half_and_one_class_has_no_curve():
    assert c.auc([1, 0], [2, 2]).value == 0.5
    assert np.isnan(c.auc([1, 1], [1, 2]).value)
    assert np.isnan(c.proportion(0, 0).value)


def test_the_interval_of_the_area_covers(rng):
    """Normal scores one standard deviation apart: the true area is 0.760."""
    covered = 0
    for _ in range(300):
        found = c.auc([1] * 40 + [0] * 60, np.r_[rng.normal(1, 1, 40), rng.normal(0, 1, 60)])
        covered += found.low <= 0.7602 <= found.high
    assert 0.91 < covered / 300 < 0.99


def test_always_the_commonest_class_is_not_better_than_guessing():
    truth = np.array([0] * 30 + [1] * 10)
    assert c.better_than_guessing(30, truth) > 0.5
    assert c.better_than_guessing(40, truth) < 1e-4
    assert np.isnan(c.better_than_guessing(0, np.array([])))


def test_ranked_probability_score():
    assert c.ranked_probability_score([2], np.eye(5)[[2]]) == 0
    assert c.ranked_probability_score([0], np.eye(5)[[4]]) == 1
    assert c.ranked_probability_score([0], np.eye(5)[[1]]) == pytest.approx(0.25)
