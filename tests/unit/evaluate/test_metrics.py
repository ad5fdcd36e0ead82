"""Measures of a segmentation on truths small enough to count by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bids_epvs.evaluate import metrics
from bids_epvs.evaluate.metrics import Truth

SPACING = (1.0, 1.0, 3.0)
EVERYWHERE = np.ones((20, 16, 6), bool)


def lines(*specs):
    """Labels with a line of voxels along x: (index, x from, x to, y, z)."""
    out = np.zeros(EVERYWHERE.shape, np.int32)
    for index, low, high, y, z in specs:
        out[low:high, y, z] = index
    return out


def truth(labels, expected=None):
    return Truth(labels > 0, labels, np.unique(labels[labels > 0]) if expected is None else np.array(expected))


def test_a_perfect_segmentation():
    labels = lines((1, 2, 7, 3, 1), (2, 10, 15, 8, 4))
    found = metrics.measures(truth(labels), labels, (labels > 0) * 1.0, SPACING, EVERYWHERE)
    for name in ("sensitivity", "precision", "f1", "dice", "volumetric_similarity", "auc", "surface_1mm", "valdo_dice"):
        assert found[name] == 1, name
    for name in ("hausdorff_mm", "mahalanobis", "valdo_volume_mm3", "valdo_count"):
        assert found[name] == 0, name
    assert found["magnitude_accuracy"] == pytest.approx(np.sqrt(2))
    assert (found["count_truth"], found["volume_truth_mm3"]) == (2, 30)


def test_misses_and_false_alarms():
    labels = lines((1, 2, 7, 3, 1), (2, 10, 15, 8, 4), (3, 2, 7, 13, 2))
    made = lines((1, 2, 7, 4, 1), (2, 12, 13, 2, 2))  # beside the first by a voxel; nothing near the second
    seen = metrics.detection(truth(labels), made, SPACING)
    assert seen.hit == {1: True, 2: False, 3: False}
    assert seen.right == {1: True, 2: False}
    assert seen.sensitivity == pytest.approx(1 / 3)
    assert seen.precision == pytest.approx(1 / 2)
    assert seen.f1 == pytest.approx(2 / (2 + 1 + 2))


def test_a_neighbouring_slice_is_no_hit_when_slices_are_thick():
    labels, made = lines((1, 2, 7, 3, 1)), lines((1, 2, 7, 3, 2))
    assert not metrics.detection(truth(labels), made, SPACING).hit[1]
    assert metrics.detection(truth(labels), made, (1.0, 1.0, 1.0)).hit[1]


def test_what_hardly_shows_is_neither_missed_nor_wrong():
    labels = lines((1, 2, 7, 3, 1), (2, 10, 15, 8, 4))
    known = truth(labels, expected=[1])
    made = lines((1, 10, 15, 8, 4))
    seen = metrics.detection(known, made, SPACING)
    assert seen.hit == {1: False}
    assert seen.right == {}
    assert np.isnan(seen.precision)


def test_only_lesions_of_the_region_count():
    labels = lines((1, 2, 7, 3, 1), (2, 10, 15, 8, 4))
    where = EVERYWHERE.copy()
    where[:, :, 3:] = False
    found = metrics.measures(truth(labels), np.zeros_like(labels), None, SPACING, where)
    assert (found["count_truth"], found["sensitivity"]) == (1, 0)
    assert np.isnan(found["auc"])


def test_nothing_and_nothing_found():
    nothing = np.zeros(EVERYWHERE.shape, np.int32)
    found = metrics.measures(truth(nothing), nothing, nothing * 1.0, SPACING, EVERYWHERE)
    assert found["f1"] == found["dice"] == found["volumetric_similarity"] == found["surface_1mm"] == 1
    assert np.isnan(found["sensitivity"]) and np.isnan(found["auc"]) and np.isnan(found["mahalanobis"])
    labels = lines((1, 2, 7, 3, 1))
    assert np.isnan(metrics.distances(labels > 0, nothing > 0, SPACING)[0])


def test_overlap_and_distance_by_hand():
    a, b = lines((1, 2, 7, 3, 1)) > 0, lines((1, 4, 9, 3, 1)) > 0
    assert metrics.dice(a, b) == pytest.approx(2 * 3 / 10)
    assert metrics.volumetric_similarity(a, lines((1, 4, 14, 3, 1)) > 0) == pytest.approx(1 - 5 / 15)
    hausdorff, close = metrics.distances(a, b, SPACING)
    assert hausdorff == 2
    assert close == pytest.approx(8 / 10)  # one voxel at either end is 2 mm away
    assert metrics.distances(a, lines((1, 2, 7, 3, 2)) > 0, SPACING)[0] == 3


def test_mahalanobis_of_shifted_cubes():
    a = np.zeros((20, 20, 20), bool)
    a[2:8, 2:8, 2:8] = True
    b = np.roll(a, 3, axis=0)
    expected = 3 / np.sqrt(np.cov(np.argwhere(a).T)[0, 0])
    assert metrics.mahalanobis(a, b, (1, 1, 1)) == pytest.approx(expected)
    assert metrics.mahalanobis(a, b, (2, 2, 2)) == pytest.approx(expected), "no unit"


def test_auc_is_that_of_scikit_learn(rng):
    score = rng.integers(0, 30, 4000) / 30
    labels = rng.random(4000) < score * 0.3
    assert metrics.auc(labels, score) == pytest.approx(roc_auc_score(labels, score))


def test_markers_lie_inside_winding_lesions():
    ring = np.zeros((9, 9, 3), np.int32)
    ring[1:8, 1:8, 1] = 1
    ring[2:7, 2:7, 1] = 0
    (point,) = metrics.markers(ring, (1, 1, 1)).values()
    assert ring[point] == 1


def test_dice_of_touched_lesions_alone():
    labels = lines((1, 2, 7, 3, 1), (2, 10, 15, 8, 4))
    made = lines((1, 4, 9, 3, 1))
    assert metrics.matched_dice(truth(labels), made) == pytest.approx(0.6)
    assert np.isnan(metrics.matched_dice(truth(labels), np.zeros_like(labels)))
