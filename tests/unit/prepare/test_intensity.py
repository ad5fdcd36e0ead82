import numpy as np
import pytest

from bids_epvs.prepare import intensity

SPACING = (0.5, 0.5, 3.0)


def test_levels_are_robust(rng):
    image = rng.normal(400, 20, (30, 30, 10))
    image[:8] = rng.normal(1100, 20, (8, 30, 10))
    image[20, 20, 5] = 90000
    white, fluid = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    white[10:], fluid[:8] = True, True
    found = intensity.levels(image, white, fluid)
    assert found.white == pytest.approx(400, abs=3)
    assert found.noise == pytest.approx(20, abs=2)
    assert found.fluid == pytest.approx(1113, abs=5)


def test_without_masks_levels_stay_ordered():
    none = np.zeros((4, 4, 4), bool)
    found = intensity.levels(np.ones((4, 4, 4)), none, none)
    assert found.fluid > found.white


def test_dark_fluid_becomes_bright(rng):
    labels = np.full((60, 60, 9), 2, np.int16)
    labels[20:40, 20:40, 2:7] = 4
    t1w = np.where(labels == 4, 230.0, 900.0) + rng.normal(0, 15, labels.shape)
    white = labels == 2
    turned = intensity.inverted(t1w, white)
    level = intensity.levels(turned, white, labels == 4)
    assert level.white == pytest.approx(900, abs=5)
    assert level.fluid > 1500
    mask = intensity.large_fluid(turned, labels, SPACING, level)
    assert mask[30, 30, 4] and not mask[5, 5, 4]
    assert intensity.inverted(t1w, np.zeros_like(white)).shape == t1w.shape


def test_large_fluid_takes_ventricles_and_leaves_tubes():
    image = np.full((60, 60, 9), 400.0)
    labels = np.full(image.shape, 2, np.int16)
    labels[20:40, 20:40, 2:7] = 4
    image[labels == 4] = 1100
    image[50:52, 50:52, 4] = 1000
    image[5:17, 5:17, 4] = 1050
    mask = intensity.large_fluid(image, labels, SPACING, intensity.Levels(400, 1100, 10))
    assert mask[30, 30, 4], "ventricle"
    assert mask[10, 10, 4], "a lake of 6 mm in white matter"
    assert not mask[50, 50, 4], "a tube of 1 mm"
    assert not mask[45, 10, 4]


@pytest.mark.parametrize("side", [0.4, 0.8, 1.0])
def test_an_epvs_of_3_mm_is_no_large_fluid_whatever_the_voxels(side):
    n = round(30 / side)
    labels = np.full((n, n, 5), 2, np.int16)
    x, y = np.mgrid[:n, :n] * side
    wide = {10.0: 3.0, 20.0: 4.5}
    image = np.full(labels.shape, 400.0)
    for centre, diameter in wide.items():
        image[np.hypot(x - centre, y - 15) <= diameter / 2, 1:4] = 1100
    mask = intensity.large_fluid(image, labels, (side, side, 3.0), intensity.Levels(400, 1100, 10))
    at = {centre: mask[round(centre / side), round(15 / side), 2] for centre in wide}
    assert at == {10.0: False, 20.0: True}, "an EPVS; a lacune"


@pytest.mark.parametrize("dark", [False, True])
def test_the_step_to_fluid_is_that_of_its_brightest_or_darkest_part(dark, rng):
    image, shape = np.full((20, 20, 10), 400.0), (20, 20, 10)
    tissue, fluid, none = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    tissue[:10], fluid[12:] = True, True
    far = -300 if dark else 700
    image[fluid] += far * rng.choice([0.5, 1.0], fluid.sum(), p=[0.4, 0.6])  # the rest is partial volume
    assert intensity.fluid_step(image, tissue, fluid, dark=dark) == (400, abs(far))
    assert intensity.fluid_step(image, tissue, none, dark=dark) == (400, pytest.approx(160))
    assert intensity.fluid_step(image, tissue, none, else_step=1.9) == (400, pytest.approx(760))
    assert intensity.fluid_step(image, tissue, tissue) == (400, pytest.approx(160)), "as bright as tissue: no fluid"
    assert intensity.fluid_step(np.zeros(shape), none, none)[1] > 0


@pytest.mark.parametrize("through", [0, 2])
def test_grain_is_noise_without_gradients_and_epvs_whatever_the_direction_of_slices(through, rng):
    shape, spacing = (60, 50, 10), (0.5, 0.6, 4.0)
    clean = 400.0 + np.linspace(0, 200, 60)[:, None, None] + np.zeros(shape)
    clean[10:50:9, 8:45:8] += 500.0
    clean += 80.0 * np.arange(10)  # slices differ
    mask = np.zeros(shape, bool)
    mask[5:55, 5:45, 2:8] = True
    image = clean + rng.normal(0, 30.0, shape)
    turned = [np.moveaxis(a, 2, through) for a in (image, mask)]
    found = intensity.grain(*turned, (4.0, 0.5, 0.6) if through == 0 else spacing)
    assert found == pytest.approx(30.0, rel=0.1)
    assert intensity.grain(clean, mask, spacing) < 5


def test_grain_of_a_region_too_thin_is_nothing(rng):
    image = rng.normal(400.0, 30.0, (20, 20, 5))
    mask = np.zeros(image.shape, bool)
    mask[8:12] = True
    assert intensity.grain(image, mask, (0.5, 0.5, 3.0)) == 0.0
    assert intensity.grain(image, np.zeros_like(mask), (0.5, 0.5, 3.0)) == 0.0
