"""Images, network and rules of the five-point rating."""

import numpy as np
import pytest

from bids_epvs.models import rating2d
from bids_epvs.prepare.regions import REGIONS

LEFT, RIGHT = rating2d.SIDES
SPACING = (0.5, 0.5, 5.0)


def head():
    """A symmetric brain with basal ganglia in slices 3 to 8 and one bright spot on the outside of each."""
    shape = (240, 220, 12)
    image, regions = np.full(shape, 100.0, np.float32), np.zeros(shape, np.uint8)
    regions[50:90, 80:150, 3:9], regions[150:190, 80:150, 3:9] = LEFT, RIGHT
    image[55:59, 100:104], image[181:185, 100:104] = 400, 400
    image[118:122] = 1000
    return image, np.ones(shape, bool), regions


def test_six_images_that_look_alike_on_both_sides():
    image, brain, regions = head()
    found = rating2d.views(image, brain, regions, SPACING, 4)
    assert [(v.slice, v.side) for v in found] == [(k, s) for k in (4, 5, 6) for s in (LEFT, RIGHT)]
    for left, right in zip(found[::2], found[1::2], strict=True):
        assert left.plain.shape == left.sharp.shape == left.inside.shape == rating2d.SIZE
        np.testing.assert_allclose(left.plain, right.plain, atol=1e-5)
        np.testing.assert_array_equal(left.inside, right.inside)
    first = found[0]
    y, x = np.argwhere(first.inside > 0.5).mean(axis=0)
    assert (y, x) == pytest.approx(((rating2d.SIZE[0] - 1) / 2, (rating2d.SIZE[1] - 1) / 2), abs=1)
    assert first.plain.max() == pytest.approx(1.0, abs=0.35)
    spot = np.where(first.inside > 0.5, first.plain, 0)
    assert spot.max() == pytest.approx(0.4, abs=0.02)
    assert np.argwhere(spot > 0.35)[:, 1].max() < x, "the outside lies at low columns on both sides"


def test_the_area_of_a_region_is_kept():
    image, brain, regions = head()
    view = rating2d.views(image, brain, regions, SPACING, 4, with_haar=False)[0]
    area = view.inside.sum() * rating2d.PIXEL_MM**2
    assert area == pytest.approx(40 * 70 * 0.25, rel=0.02)
    np.testing.assert_array_equal(view.plain, view.sharp)


def test_slices_stay_in_the_basal_ganglia():
    _, _, regions = head()
    assert rating2d.chosen_slices(regions, SPACING, 4) == (4, 5, 6)
    assert rating2d.chosen_slices(regions, SPACING, 8) == (8,)
    assert rating2d.chosen_slices(regions, SPACING, None) == (4, 5, 6)
    assert rating2d.chosen_slices(regions, (0.5, 0.5, 1.0), 3) == (3, 8)
    assert rating2d.chosen_slices(np.zeros_like(regions), SPACING, 4) == ()


def test_the_scan_may_end_beside_the_basal_ganglia():
    image, brain, regions = head()
    cut = slice(45, None)
    found = rating2d.views(image[cut], brain[cut], regions[cut], SPACING, 4)
    assert len(found) == 6
    assert found[0].plain[:, 0].max() == 0, "beyond the scan there is nothing"


def test_rules():
    chances = np.eye(rating2d.GRADES)[[1, 1, 3, 1, 2, 2]]
    assert rating2d.subject_grade(chances, "highest") == 3
    assert rating2d.subject_grade(chances, "majority") == 1
    assert rating2d.subject_grade(chances[[0, 2]], "majority") == 3
    with pytest.raises(ValueError, match="highest or majority"):
        rating2d.subject_grade(chances, "mean")


def test_the_highest_of_unsure_images_is_not_too_high():
    """Six images of grade 1, each of which says 2 with a probability of 0.3, or once of 0.51."""
    chances = np.tile([0, 0.7, 0.3, 0, 0], (6, 1))
    assert rating2d.subject_grade(chances, "highest", 0.3) == 1
    assert rating2d.subject_grade(chances, "highest", 1.0) == 2, "independent images: one of them is, with 0.88"
    chances[0] = [0, 0.49, 0.51, 0, 0]
    assert chances.argmax(axis=1).max() == 2 and rating2d.subject_grade(chances, "highest", 0.2) == 1


def test_probabilities_of_the_highest():
    chances = np.array([[0.5, 0.5, 0, 0, 0], [0.4, 0.0, 0.6, 0, 0]])
    np.testing.assert_allclose(rating2d.subject_chances(chances), [0.2, 0.2, 0.6, 0, 0])
    np.testing.assert_allclose(rating2d.subject_chances(chances, 0.5).sum(), 1)
    np.testing.assert_allclose(rating2d.cooled(chances, 1.0), chances, atol=1e-6)
    assert rating2d.cooled(chances, 3.0).max() < chances.max()


def test_the_network_is_that_of_the_paper():
    model = rating2d.build()
    kinds = [layer.__class__.__name__ for layer in model.layers]
    assert kinds.count("Conv2D") == 5 and kinds.count("Dense") == 2
    assert model.output_shape == (None, 5)
    given = rating2d.stacked(np.zeros((2, *rating2d.SIZE)), np.ones((2, *rating2d.SIZE)))
    np.testing.assert_allclose(np.asarray(model.predict_on_batch(given)).sum(axis=1), 1, atol=1e-5)


def test_sides_are_those_of_the_basal_ganglia():
    assert {REGIONS[s].full_name for s in rating2d.SIDES} == {"LeftBasalGanglia", "RightBasalGanglia"}
