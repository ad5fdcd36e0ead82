"""The aqueduct is no part of the midbrain; EPVS beside it are."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.prepare.aqueduct import COURSE, MIDDLE, aqueduct, distance
from bids_epvs.prepare.intensity import Levels
from bids_epvs.prepare.regions import indices

SHAPE, SPACING = (70, 60, 12), (0.8, 0.9, 3.0)
LEVEL = Levels(400.0, 1100.0, 12.0)


@pytest.fixture
def midbrain(rng):
    """A midbrain in fluid, turned in the scan: image, regions, voxels to ICBM152 millimetres, where each lies."""
    angle = np.deg2rad(8)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    to_template = np.eye(4)
    to_template[:3, :3] = turn @ np.diag(SPACING)
    to_template[:3, 3] = MIDDLE - to_template[:3, :3] @ (np.array(SHAPE) / 2)
    at = (
        np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) @ to_template[:3, :3].T
        + to_template[:3, 3]
    )
    inside = (np.abs(at[..., 0]) < 18) & (at[..., 1] > -38) & (at[..., 1] < -12)
    image = np.where(inside, 350.0, 1100.0)
    image = ndimage.gaussian_filter(image, (1.0, 1.0, 0)) + rng.normal(0, 12.0, SHAPE)
    regions = np.where(inside, np.where(at[..., 0] < 0, *indices("Midbrain")), 0).astype(np.uint8)
    return image, regions, to_template, at


def spot(image, where, at, radius=1.3, height=500.0):
    """Add a bright line along z through the slices, round in the plane."""
    for k in range(image.shape[2]):
        x, y = where(at[image.shape[0] // 2, image.shape[1] // 2, k, 2])
        image[..., k] += height * np.exp(
            -0.5 * ((at[..., k, 0] - x) ** 2 + (at[..., k, 1] - y) ** 2) / (radius / 2) ** 2
        )


def course(z):
    order = np.argsort(COURSE[:, 2])
    return 1.5, np.interp(z, COURSE[order, 2], COURSE[order, 1]) + 2.0


def test_the_bright_spot_near_its_course_is_the_aqueduct_and_an_epvs_is_not(midbrain):
    image, regions, to_template, at = midbrain
    spot(image, course, at)
    spot(image, lambda z: (9.0, -20.0), at, height=700.0)
    found = aqueduct(image, regions, to_template, SPACING, LEVEL)
    x, y = np.vectorize(course)(at[..., 2])
    away = np.hypot(at[..., 0] - x, at[..., 1] - y)
    height = at[..., 2]
    covered = (height < -5) & (height > -20) & (regions > 0)
    assert covered.any()
    assert found[covered & (away < 1.2)].mean() > 0.95
    assert not found[away > 4.5].any(), "neither the EPVS nor the rim"
    assert not found[regions == 0].any()
    assert image[found].max() > 700 > image[covered & ~found & (away < 4)].max()


def test_a_brighter_spot_further_away_is_not_taken_for_it(midbrain):
    image, regions, to_template, at = midbrain
    spot(image, course, at, height=400.0)
    spot(image, lambda z: (course(z)[0] - 7.5, course(z)[1]), at, height=700.0)
    found = aqueduct(image, regions, to_template, SPACING, LEVEL)
    x, _ = np.vectorize(course)(at[..., 2])
    assert found.any() and (at[..., 0] - x)[found].min() > -4.5


def test_without_a_spot_or_a_midbrain_there_is_none(midbrain):
    image, regions, to_template, _ = midbrain
    assert not aqueduct(image, regions, to_template, SPACING, LEVEL).any(), "noise, and the rim of the midbrain"
    assert not aqueduct(image, np.zeros_like(regions), to_template, SPACING, LEVEL).any()


def test_distance_from_a_bent_course(midbrain):
    _, _, to_template, at = midbrain
    whole = distance(SHAPE, to_template, tuple(slice(0, n) for n in SHAPE))
    steps = np.linspace(0, 1, 2001)[:, None]
    fine = np.concatenate([a + steps * (b - a) for a, b in pairwise(COURSE)])
    for index in ((3, 4, 0), (35, 30, 6), (60, 10, 11)):
        assert whole[index] == pytest.approx(np.linalg.norm(fine - at[index], axis=1).min(), abs=1e-3)
