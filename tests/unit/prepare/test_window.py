"""Boxes of fixed size around a region."""

import numpy as np
import pytest

from bids_epvs.prepare import window
from bids_epvs.prepare.resample import overlap


def test_overlaps_keep_the_mean_over_voxels_of_any_size():
    for count, size, others, step in ((10, 5.0, 63, 0.8), (100, 0.43, 86, 0.5)):
        weights = overlap(count, size, others, step)
        assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
        assert np.allclose(weights @ np.ones(others), 1, atol=1e-5)


def test_an_overlap_may_start_anywhere_and_ends_with_the_row():
    weights = overlap(6, 1.0, 4, 1.0, start=-1.0)
    assert np.array_equal(weights, np.eye(6, 4, -1))
    assert np.allclose(overlap(1, 1.0, 4, 1.0, start=0.5), [[0.5, 0.5, 0, 0]])


@pytest.mark.parametrize("spacing", [(0.5, 0.45, 5.0), (1.1, 0.9, 0.8)])
def test_a_bright_spot_keeps_its_place_there_and_back(spacing, rng):
    shape = tuple(round(90 / s) for s in spacing)
    region = np.zeros(shape, bool)
    region[tuple(slice(int(0.3 * n), int(0.6 * n)) for n in shape)] = True
    box = window.around(region, spacing, (60, 50, 16), (0.6, 0.6, 3.0))
    spot = np.array([0.4, 0.5, 0.45]) * shape
    spot = spot.astype(int)
    image = np.zeros(shape, np.float32)
    image[tuple(spot)] = 1
    seen = box.cut(image)
    assert seen.shape == (60, 50, 16)
    there = np.array(np.unravel_index(seen.argmax(), seen.shape))
    millimetres = np.array(box.low) + (there + 0.5) * box.step
    assert (np.abs(millimetres - (spot + 0.5) * spacing) <= np.maximum(spacing, box.step) / 2 + 1e-6).all()
    back = np.array(np.unravel_index(box.back(seen).argmax(), shape))
    assert (np.abs(back - spot) * spacing <= np.maximum(spacing, box.step) + 1e-6).all()


def test_outside_the_scan_and_outside_the_box_there_is_nothing():
    region = np.zeros((10, 10, 10), bool)
    region[0:2, 4:6, 4:6] = True
    box = window.around(region, (1.0, 1.0, 1.0), (8, 4, 4), (1.0, 1.0, 1.0))
    seen = box.cut(np.ones((10, 10, 10)))
    assert box.low == (-3.0, 3.0, 3.0)
    assert seen[:3].max() == 0 and seen[3:].min() == 1
    back = box.back(np.ones((8, 4, 4)))
    assert back.sum() == 5 * 4 * 4 and back[:5, 3:7, 3:7].min() == 1
