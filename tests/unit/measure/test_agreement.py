"""Agreement statistics against published tables and other libraries."""

import numpy as np
import pytest
from scipy import stats

from bids_epvs.measure import agreement

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
FIRST = [0, 1, 1, 2, 3, 4, 2, 1, 0, 1, 2, 3, 4, 4, 1, 0, 0, 2, 3, 1]
SECOND = [0, 1, 2, 2, 3, 4, 1, 1, 0, 1, 3, 3, 4, 3, 1, 0, 1, 2, 2, 1]


def test_icc_of_shrout_and_fleiss_1979():
    found = agreement.icc(SHROUT_FLEISS)
    assert (round(found.value, 2), found.n) == (0.29, 6)
    assert (round(found.low, 2), round(found.high, 2)) == (0.02, 0.76)  # pingouin 0.5: [0.02, 0.76]
    within = agreement.icc_within(SHROUT_FLEISS)
    assert round(within.value, 2) == 0.17
    assert (round(within.low, 2), round(within.high, 2)) == (-0.13, 0.72)


def test_icc_leaves_out_missing_rows_and_says_nan_where_there_is_none():
    table = np.vstack([SHROUT_FLEISS, [np.nan, 1, 2, 3]])
    assert agreement.icc(table) == agreement.icc(SHROUT_FLEISS)
    for nothing in (np.zeros((0, 2)), np.ones((1, 2)), np.ones((5, 2))):
        assert np.isnan(agreement.icc(nothing).value)
        assert np.isnan(agreement.icc_within(nothing).value)
    same = np.repeat(np.arange(5.0)[:, None], 2, axis=1)
    assert agreement.icc(same).value == agreement.icc_within(same).value == 1
    assert agreement.icc(same + np.array([0, 1])).value < 1


@pytest.mark.filterwarnings("error")
def test_icc_of_raters_that_disagree_has_an_interval_as_long_as_there_is_a_degree_of_freedom():
    for counts in ([[336, 0], [388, 0], [161, 0]], [[69, 0], [29, 0], [62, 1]]):
        found = agreement.icc(counts)
        assert -1.5 < found.low < found.value < found.high <= 1
    found = agreement.icc([[11.74, 19.765], [13.3, 16.323], [4.48, 25.989]])
    assert found.value == pytest.approx(-0.339, abs=1e-3)
    assert np.isnan(found.low) and np.isnan(found.high)


def test_differences_of_bland_and_altman_1986():
    found = agreement.bland_altman(LARGE, MINI)
    assert (round(found.bias.value, 1), round(found.sd, 1)) == (-2.1, 38.8)
    assert (round(found.bias.low, 1), round(found.bias.high, 1)) == (-22.0, 17.8)  # the paper: -22.0 to 17.8
    assert round(found.bias.value - 2 * found.sd, 1) == -79.6  # the paper rounds first: -79.7
    assert found.low == pytest.approx(found.bias.value - 1.96 * found.sd)
    growing = agreement.bland_altman(np.arange(20) * 1.2, np.arange(20))
    assert growing.slope.value == pytest.approx(0.2 / 1.1)
    assert growing.slope_p < 1e-6
    two = agreement.bland_altman([3, 5], [1, 2])
    assert (two.bias.value, two.sd) == pytest.approx((2.5, np.sqrt(0.5)))
    assert np.isnan(two.slope.value)
    assert np.isnan(agreement.bland_altman([1], [2]).bias.value)


def test_concordance_by_its_definition_and_its_interval_by_simulation(rng):
    x, y = np.array(LARGE, float), np.array(MINI, float)
    expected = 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert agreement.ccc(x, y).value == pytest.approx(expected)
    truth = 2 * 0.8 / (1 + 1 + 0.3**2)
    inside = 0
    for _ in range(400):
        a, b = rng.multivariate_normal([0, 0.3], [[1, 0.8], [0.8, 1]], 40).T
        found = agreement.ccc(a, b)
        inside += found.low <= truth <= found.high
    assert 0.91 <= inside / 400 <= 0.99
    assert np.isnan(agreement.ccc([1, 1, 1], [1, 1, 1]).value)
    assert np.isnan(agreement.ccc([1, 2], [1, 2]).value)


@pytest.mark.parametrize(
    ("kind", "ac", "low", "high"),  # irrCAC 0.4.4 (Gwet's own formulas)
    [
        ("identity", 0.627618, 0.353954, 0.901282),
        ("ordinal", 0.900083, 0.823097, 0.97707),
        ("quadratic", 0.930836, 0.87685, 0.984822),
        ("linear", 0.82009, 0.685227, 0.954953),
    ],
)
def test_ac2_against_irrcac(kind, ac, low, high):
    found = agreement.gwet_ac2(FIRST, SECOND, categories=5, kind=kind)
    assert (found.value, found.low, found.high) == pytest.approx((ac, low, high), abs=2e-6)


def test_the_paradox_of_kappa_in_gwet_2002():
    a, b = np.repeat([0, 0, 1], [118, 5, 2]), np.repeat([0, 1, 0], [118, 5, 2])
    assert round(agreement.gwet_ac2(a, b, categories=2, kind="identity").value, 4) == 0.9408
    assert round(agreement.weighted_kappa(a, b, categories=2, kind="identity").value, 4) == -0.0234


@pytest.mark.parametrize(
    ("kind", "value", "low", "high"),  # statsmodels 0.15
    [
        ("identity", 0.615385, 0.359403, 0.871367),
        ("linear", 0.790210, 0.635890, 0.944530),
        ("quadratic", 0.908397, 0.83089, 0.985904),
    ],
)
def test_kappa_against_statsmodels(kind, value, low, high):
    found = agreement.weighted_kappa(FIRST, SECOND, categories=5, kind=kind)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-5)


def test_grades_that_all_agree_or_are_missing():
    assert np.isnan(agreement.weighted_kappa([1, 1, 1], [1, 1, 1], categories=5).value)  # chance explains all
    assert agreement.gwet_ac2([1, 1, 1], [1, 1, 1], categories=5).value == 1
    assert agreement.weighted_kappa([0, 1, np.nan], [0, 1, 2], categories=5).n == 2
    assert agreement.weighted_kappa([], [], categories=5).n == 0
    assert np.isnan(agreement.gwet_ac2([1], [1], categories=5).value)


def test_williams_of_steiger_1980():
    t, p = agreement.williams(0.4, 0.5, 0.1, 103)
    assert (round(t, 2), round(p, 2)) == (-0.89, 0.37)
    assert agreement.williams(0.5, 0.4, 0.1, 103)[0] == -t
    assert np.isnan(agreement.williams(0.5, 0.4, 0.1, 3)[0])


def test_williams_keeps_its_level(rng):
    hits = 0
    for _ in range(600):
        a = rng.normal(size=30)
        b, c = a + rng.normal(size=(2, 30))
        r = np.corrcoef([a, b, c])
        hits += agreement.williams(r[0, 1], r[0, 2], r[1, 2], 30)[1] < 0.05
    assert 0.025 <= hits / 600 <= 0.08


def test_change_between_scans():
    pairs = np.array([[10.0, 12.0], [20.0, 20.0], [31.0, 29.0]])
    assert agreement.smallest_detectable_change(pairs) == pytest.approx(1.96 * np.sqrt(2 * 4 / 3))
    assert np.isnan(agreement.smallest_detectable_change(np.zeros((0, 2))))


def test_poisson_binomial_is_binomial_for_equal_chances(rng):
    assert agreement.poisson_binomial([0.3] * 12) == pytest.approx(stats.binom.pmf(np.arange(13), 12, 0.3))
    chances = rng.random(40)
    drawn = (rng.random((4000, 40)) < chances).sum(axis=1)
    for missed in (0.0, 3.0):
        low, high = agreement.interval(agreement.count_distribution(chances, missed))
        number = drawn + rng.poisson(missed, 4000)
        assert 0.88 <= np.mean((low <= number) & (number <= high)) <= 0.99
    assert agreement.interval(agreement.poisson_binomial([])) == (0, 0)
    assert agreement.count_distribution([], 2.0)[:3] == pytest.approx(stats.poisson.pmf([0, 1, 2], 2.0))
