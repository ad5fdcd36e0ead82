"""Masks of EPVS from probabilities: what is thinned, and that nothing is lost or falls apart."""

import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.models import pieces

AROUND = np.ones((3, 3, 3))


def parts(mask):
    return ndimage.label(mask, AROUND)


@pytest.fixture
def smooth(rng):
    """Blobs of all heights, many of which touch."""
    noise = ndimage.gaussian_filter(rng.random((40, 36, 12)), (1.4, 1.4, 0.5))
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def test_a_wide_spot_is_thinned_to_its_peak_and_faint_ones_are_kept():
    likely = np.zeros((20, 12, 6), np.float32)
    x, y = np.mgrid[:5, :5] - 2
    likely[2:7, 2:7, 2] = 0.5 - 0.05 * (np.abs(x) + np.abs(y))
    likely[2:5, 2:5, 4] = 0.3 - 0.01 * (x**2 + y**2)[1:4, 1:4]
    found = pieces.marked(likely, 0.25, 0.44)
    assert np.argwhere(found).tolist() == [[3, 3, 4], [3, 4, 2], [4, 3, 2], [4, 4, 2], [4, 5, 2], [5, 4, 2]]
    assert np.array_equal(pieces.marked(likely, 0.25, 0.25), likely >= 0.25)
    assert np.array_equal(pieces.marked(likely, 0.25, 0.0), likely >= 0.25)


def test_what_has_run_together_keeps_its_peaks_and_stays_one_piece():
    """Two spots beside each other, joined by a bridge three voxels wide that reaches no extent, and with a spur."""
    likely = np.zeros((24, 9, 3), np.float32)
    likely[4:20, 3:6, 1] = [0.31, 0.34, 0.32]
    likely[4, 4, 1], likely[19, 4, 1] = 0.9, 0.7
    likely[12, 6:8, 1] = 0.3, 0.28
    found = pieces.marked(likely, 0.25, 0.5)
    assert parts(found)[1] == 1
    assert found[4:20, 4, 1].all(), "the most likely way from one to the other"
    assert found.sum() == 16, "and nothing else: the spur is gone"


@pytest.mark.parametrize("extent", [0.7, 0.75, 0.8, 0.99])
def test_as_many_pieces_as_at_the_threshold(smooth, extent):
    before, n = parts(smooth >= 0.65)
    found = pieces.marked(smooth, 0.65, extent)
    labels, m = parts(found)
    assert n > 15
    assert m == n, "none lost, none fallen apart"
    assert sorted(before[labels == k][0] for k in range(1, n + 1)) == list(range(1, n + 1))
    assert found[smooth >= extent].all()
    assert not found[smooth < 0.65].any()
    peaks = (smooth == ndimage.maximum_filter(smooth, size=(3, 3, 1))) & (smooth >= 0.65)
    assert found[peaks].all(), "each slice of a line keeps its place"


def test_nothing_more_can_be_taken_away(smooth):
    """Each voxel below the extent that is no peak holds its neighbours together."""
    found = pieces.marked(smooth, 0.65, 0.8)
    peaks = smooth == ndimage.maximum_filter(smooth, size=(3, 3, 1))
    padded = np.pad(found, 1)
    spare = np.argwhere(found & (smooth < 0.8) & ~peaks)
    assert len(spare) > 10
    for x, y, z in spare:
        around = padded[x : x + 3, y : y + 3, z : z + 3].copy()
        around[1, 1, 1] = False
        assert parts(around)[1] > 1


def test_at_the_border_of_the_image_and_of_nothing():
    likely = np.zeros((4, 4, 2), np.float32)
    assert not pieces.marked(likely, 0.3, 0.5).any()
    likely[0, 0, 0], likely[3, 3, 1] = 0.4, 0.45
    assert np.array_equal(pieces.marked(likely, 0.3, 0.5), likely > 0)
    likely[:] = 0.4
    assert pieces.marked(likely, 0.3, 0.5).all(), "a plateau has no highest voxel"


def test_a_mask_is_followed_into_what_it_touches():
    mask, further = (np.zeros((12, 12, 3), bool) for _ in range(2))
    mask[2:5, 4, 1] = True
    further[5:8, 5, 1] = further[8, 6, 2] = True
    further[10, 2, 1] = further[2:4, 8, 1] = True
    found = pieces.followed(mask, further)
    expected = mask.copy()
    expected[5:8, 5, 1] = expected[8, 6, 2] = True
    assert np.array_equal(found, expected)
    assert not pieces.followed(np.zeros_like(mask), further).any()
