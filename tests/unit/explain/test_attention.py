"""EPVS at the peaks of attention."""

import numpy as np
import pytest

from bids_epvs.explain import attention
from bids_epvs.records import Finding, Prediction, Prepared

SPACING = (0.5, 0.5, 4.0)


def blobs(shape, places):
    """Small Gaussian hills of given heights (in-plane radius 1 mm, one slice)."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    out = np.zeros(shape, np.float32)
    for centre, height in places:
        away = ((grid - centre) * np.array([0.5, 0.5, 4.0])) ** 2
        out += (height * np.exp(-away.sum(axis=-1) / 2 / 0.6**2)).astype(np.float32)
    return out


def session(regions, csf=None):
    return Prepared(
        images={},
        brain=regions > 0,
        regions=regions,
        csf=np.zeros(regions.shape, bool) if csf is None else csf,
        spacing=SPACING,
        native=None,
        slices={},
        hemisphere=np.ones(regions.shape, np.uint8),
    )


PLACES = [((10, 10, 2), 1.0), ((30, 12, 2), 0.6), ((20, 30, 4), 0.8), ((8, 30, 5), 0.2)]


def test_peaks_come_in_order_of_height():
    values = blobs((40, 40, 8), PLACES)
    points, heights = attention.peaks(values, np.ones(values.shape, bool), SPACING)
    assert [tuple(p) for p in points[:4]] == [(10, 10, 2), (20, 30, 4), (30, 12, 2), (8, 30, 5)]
    assert (np.diff(heights) <= 0).all()


def test_one_hill_over_two_slices_is_one_peak():
    values = blobs((40, 40, 8), [((10, 10, 2), 1.0)])
    values[..., 3] = 0.9 * values[..., 2]
    points, _ = attention.peaks(values, np.ones(values.shape, bool), SPACING)
    assert [tuple(p) for p in points] == [(10, 10, 2)]


def test_no_peak_lies_outside_the_mask():
    values = blobs((40, 40, 8), PLACES)
    where = np.zeros(values.shape, bool)
    assert len(attention.peaks(values, where, SPACING)[0]) == 0
    where[25:] = True
    points, _ = attention.peaks(values, where, SPACING)
    assert tuple(points[0]) == (30, 12, 2)


@pytest.mark.parametrize(("count", "marked"), [(2.4, 2), (2.6, 3), (0.3, 0)])
def test_as_many_are_marked_as_are_counted(count, marked):
    values = blobs((40, 40, 8), PLACES)
    regions = np.ones(values.shape, np.uint8)  # left basal ganglia
    made = Prediction(
        "gpunet", saliency=values, findings=(Finding("BasalGanglia", "left", count), Finding("BasalGanglia", "both", 9))
    )
    found = attention.explain(session(regions), made, {})
    assert found.instances.max() == marked
    assert np.array_equal(found.mask, found.instances > 0)
    for number, (place, _) in enumerate(sorted(PLACES, key=lambda p: -p[1])[:marked], start=1):
        own = found.instances == number
        assert own[place]
        assert values[own].min() >= attention.PART * values[place]


def test_fluid_is_never_marked():
    values = blobs((40, 40, 8), PLACES)
    csf = np.zeros(values.shape, bool)
    csf[5:15, 5:15] = True
    made = Prediction("gpunet", saliency=values, findings=(Finding("BasalGanglia", "left", 4.0),))
    found = attention.explain(session(np.ones(values.shape, np.uint8), csf), made, {})
    assert not (found.mask & csf).any()
    assert found.mask[20, 30, 4]


def test_without_a_map_nothing_is_marked():
    made = Prediction("gpunet")
    assert attention.explain(session(np.ones((4, 4, 4), np.uint8)), made, {}) is made
