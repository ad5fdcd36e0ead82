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


SPACING = (0.5, 0.5, 3.0)


def _grainy(rng, noise):
    """A T2w whose basal ganglia are two boxes with a gradient and EPVS, its regions and its fluid (a step of 750)."""
    regions = np.zeros((90, 70, 8), np.uint8)
    regions[15:40, 20:50, 2:6], regions[50:75, 20:50, 2:6] = 1, 2
    image = 430.0 + np.linspace(0, 60, 90)[:, None, None] + np.zeros(regions.shape)
    image[20:75:8, 22:50:7, :] = 900.0
    regions[80:, :40] = 3  # white matter
    image[80:, :40], image[80:, 40:] = 400.0, 1150.0
    csf = np.zeros(regions.shape, bool)
    csf[80:, 40:] = True
    grain = np.where(regions <= 2, rng.normal(0, noise, image.shape), 0) * ~csf
    return (image + grain).astype(np.float32), regions, csf


@pytest.mark.parametrize(("noise", "warned"), [(40.0, False), (60.0, True)])
def test_basal_ganglia_so_noisy_that_methods_count_noise_are_told(noise, warned, rng):
    image, regions, csf = _grainy(rng, noise)  # 5.3 and 8 %
    notes = quality.grain_note(image, regions, csf, SPACING)
    assert bool(notes) == warned
    if warned:
        told = float(notes[0].split(" %")[0].split()[-1])
        assert told == pytest.approx(100 * noise / 750, rel=0.1)
        assert "gpunet and cnn most" in notes[0]


def test_no_basal_ganglia_no_word_of_their_grain(rng):
    image, regions, csf = _grainy(rng, 300.0)
    assert quality.grain_note(image, np.zeros_like(regions), csf, SPACING) == ()


@pytest.mark.parametrize(
    ("spacing", "said"), [((4.0, 0.6, 0.6), "sagittal (4.0 mm)"), ((0.4, 2.0, 0.4), "coronal (2.0")]
)
def test_slices_that_are_not_axial_are_told(spacing, said):
    (note,) = quality.plane_note(spacing)
    assert said in note
    assert quality.plane_note(sorted(spacing)) == quality.plane_note((1.0, 0.9, 0.9)) == ()
