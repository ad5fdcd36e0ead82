"""Warnings of the preparation."""

import numpy as np
import pytest

from bids_epvs.prepare import quality
from bids_epvs.prepare.intensity import Levels, levels


@pytest.mark.parametrize(("noise", "warned"), [(20.0, False), (120.0, True)])
def test_a_noisy_t2w_is_called_noisy(noise, warned, rng):
    image = np.full((30, 30, 30), 400.0)
    image[:5] = 1150.0
    fluid = image > 1000
    found = levels(image + rng.normal(0, noise, image.shape), ~fluid, fluid)
    notes = quality.noise_note(found)
    assert bool(notes) == warned
    if warned:
        assert "standard deviations" in notes[0]


def test_the_number_is_in_the_warning():
    assert "by 5.0 standard" in quality.noise_note(Levels(400.0, 1150.0, 150.0))[0]
    assert quality.noise_note(Levels(400.0, 1150.0, 0.0)) == ()
