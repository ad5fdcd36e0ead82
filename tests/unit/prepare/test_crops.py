"""Regions cut out of a scan and results brought back to it."""

import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.prepare import crops


def blob(shape, centre, radius, spacing):
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    return np.linalg.norm(grid - np.array(centre) * spacing, axis=-1) <= radius


@pytest.mark.parametrize("spacing", [(0.45, 0.45, 5.0), (0.9, 0.8, 1.1), (0.5, 0.5, 0.8)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_region_keeps_its_volume_and_place(spacing, mirrored, rng):
    shape = tuple(round(60 / s) for s in spacing)
    region = blob(shape, np.array(shape) * [0.4, 0.6, 0.5], 13.0, spacing)
    image = (100 + 50 * region + rng.normal(0, 1, shape)).astype(np.float32)
    made = crops.crop(image, region, spacing, scale=(100, 50), mirrored=mirrored)
    assert made.mask.sum() * np.prod(crops.SPACING_MM) == pytest.approx(region.sum() * np.prod(spacing), rel=0.05)
    assert np.median(made.image[made.mask]) == pytest.approx(1, abs=0.05), "50 above 100 of 50"
    assert made.soft[made.mask].min() > 0.9
    outside = made.soft[~made.mask & (made.soft < 0.01)]
    assert outside.size > 0
    returned = crops.back(made.mask.astype(np.float32), made, shape)
    a, b = (np.argwhere(m).mean(axis=0) * spacing for m in (returned > 0.5, region))
    assert np.abs(a - b).max() < 0.3, "mm"
    overlap = 2 * ((returned > 0.5) & region).sum() / ((returned > 0.5).sum() + region.sum())
    assert overlap > 0.93


def test_mirroring_is_undone():
    shape, spacing = (40, 30, 12), (0.6, 0.6, 3.0)
    region = blob(shape, (14, 15, 6), 6.0, spacing)
    image = np.where(np.arange(40)[:, None, None] < 14, 1.0, 2.0) * np.ones(shape)
    made = {m: crops.crop(image.astype(np.float32), region, spacing, scale=(1, 1), mirrored=m) for m in (False, True)}
    assert np.array_equal(made[True].image[::-1], made[False].image)
    there, mirrored = (crops.back(c.image, c, shape) for c in made.values())
    assert np.allclose(there, mirrored)
    inner = tuple(slice(b.start + 2, b.stop - 2) for b in made[False].box)
    assert there[inner][-1].mean() > there[inner][0].mean() + 0.5


def test_points_fall_where_voxels_are():
    shape, spacing = (40, 30, 12), (0.6, 0.6, 3.0)
    region = blob(shape, (20, 15, 6), 7.0, spacing)
    image = np.ones(shape, np.float32)
    image[17:19, 12:14, 6] = 5.0
    point = np.array([[17.5 * 0.6, 12.5 * 0.6, 18.0]])  # mm from the centre of the first voxel
    for mirrored in (False, True):
        made = crops.crop(image, region, spacing, scale=(1, 8), mirrored=mirrored)
        (voxel,) = crops.voxel_of(point, made)
        assert made.image[tuple(voxel)] == made.image.max()


def test_a_region_that_is_not_there_has_no_crop():
    image, region = np.ones((5, 5, 5)), np.zeros((5, 5, 5), bool)
    assert crops.crop(image, region, (1.0, 1.0, 1.0), scale=(0, 1), mirrored=False) is None


def test_tissue_is_0_and_what_is_near_it_is_spread_out():
    image = np.array([0.1, 0.2, 0.3, 0.35, 1.0], np.float32)
    mask = np.array([True, True, True, False, False])
    tissue = crops.level(image, mask)
    assert tissue == pytest.approx(0.2)
    np.testing.assert_allclose(crops.stretched(image, tissue), [-0.6, 0, 0.6, 0.9, 2.0], atol=1e-6)
    assert crops.level(image, np.zeros(5, bool)) == 0


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.2])
def test_noise_is_the_spread_of_tissue_whatever_stands_out_of_it(sigma, rng):
    shape = (40, 40, 20)
    image, mask = rng.normal(0.1, sigma, shape).astype(np.float32), np.ones(shape, bool)
    image += np.linspace(0, 0.3, 40, dtype=np.float32)[:, None, None]  # parts of the tissue differ
    mask[:, :5] = False
    image[:, :3], image[20:22, 16:24] = 1.0, 0.9  # outside; EPVS inside
    assert crops.noise(image, mask) == pytest.approx(sigma, rel=0.12)
    kept = crops.from_bytes(crops.as_bytes(np.clip(image, *crops.RANGE)))
    assert crops.noise(kept, mask) == pytest.approx(crops.noise(image, mask), rel=0.08), "steps of bytes"
    assert crops.noise(image, np.zeros(shape, bool)) == 0
    thin = np.zeros(shape, bool)
    thin[10:13, 10:30] = True
    assert crops.noise(image, thin) == pytest.approx(sigma, rel=0.2)


@pytest.mark.parametrize("shape", [(30, 25, 20), (9, 1, 2), (3, 3, 3)])
@pytest.mark.parametrize("spacing, reach", [((0.5, 0.5, 0.8), 2.0), ((0.7, 0.45, 1.3), 3.3), ((5.0, 0.5, 5.0), 2.0)])
def test_dilation_reaches_as_far_as_the_distance_transform(shape, spacing, reach, rng):
    mask = rng.random(shape) < 0.02
    mask[0, 0, -1] = True
    far = ndimage.distance_transform_edt(~mask, sampling=spacing)
    assert np.array_equal(crops.dilated(mask, reach, spacing), far <= reach)
    assert not crops.dilated(np.zeros(shape, bool), reach, spacing).any()
