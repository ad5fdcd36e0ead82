"""Scans whose slices are sagittal or coronal are treated as axial ones are, in their own plane."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from bids_epvs.models import frangi
from bids_epvs.prepare import intensity, planes, tidy
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.records import Finding, Prediction, Prepared
from bids_epvs.stages import methods

SPACING = (0.6, 0.8, 4.0)


def turned(array, axis):
    """What an axial volume would be, had its third axis been that one."""
    return np.ascontiguousarray(planes.unsliced(array, axis))


def sizes(axis):
    out = list(SPACING[:2])
    out.insert(axis, SPACING[2])
    return tuple(out)


@pytest.fixture
def scan(rng):
    """White matter with tubes across the slices, a ventricle and a sulcus."""
    labels = np.full((60, 50, 9), 2, np.int16)
    labels[:, :10] = 3
    labels[:, :5] = 24
    labels[25:40, 20:30, 3:6] = 4
    image = np.where(np.isin(labels, (4, 24)), 1100.0, np.where(labels == 3, 520.0, 400.0))
    for x, y in ((10, 30), (15, 40), (45, 40), (50, 25)):
        image[x : x + 2, y : y + 2, 2:7] = 1000
    image[20:23, 9:13, 4], labels[20:23, 9:13, 4] = 1100, 24  # a drop at the cortex
    image[50:52, 10:12, 5], labels[50:52, 10:12, 5] = 1000, 3
    return (image + rng.normal(0, 8, image.shape)).astype(np.float32), labels


@pytest.mark.parametrize("axis", [0, 1])
def test_fluid_lakes_and_bays_are_those_of_axial_slices(scan, axis):
    image, labels = scan
    found = intensity.Levels(400, 1100, 8)
    mine, own = (turned(a, axis) for a in scan)
    whole = intensity.large_fluid(image, labels, SPACING, found)
    assert 0 < whole.sum() < whole.size / 2
    assert np.array_equal(intensity.large_fluid(mine, own, sizes(axis), found), turned(whole, axis))
    lakes = tidy.without_lakes(labels, SPACING)
    assert (lakes != labels).any()
    assert np.array_equal(tidy.without_lakes(own, sizes(axis)), turned(lakes, axis))
    bays = tidy.without_bays(labels, image, SPACING)
    assert (bays != labels).any()
    assert np.array_equal(tidy.without_bays(own, mine, sizes(axis)), turned(bays, axis))


def prepared(scan, axis):
    image, labels = (turned(a, axis) for a in scan)
    regions = np.where(labels == 2, next(i for i, r in REGIONS.items() if r.name == "CentrumSemiovale"), 0)
    sides = np.ones(labels.shape, np.uint8)
    grid = nib.Nifti1Image(np.zeros(labels.shape, np.uint8), np.diag([*sizes(axis), 1.0]))
    fluid = np.isin(labels, (4, 24))
    return Prepared({"T2w": image}, labels > 0, regions.astype(np.uint8), fluid, sizes(axis), grid, {"top": 3}, sides)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_method_finds_the_same_in_any_plane(scan, axis):
    spec = frangi.SPEC
    axial, other = (methods._predicted(spec, prepared(scan, a), spec.parameters) for a in (2, axis))
    assert axial.mask.sum() >= 4 * 3
    assert np.array_equal(other.mask, turned(axial.mask, axis))
    assert np.allclose(other.probability, turned(axial.probability, axis), atol=1e-6)


def test_a_method_that_rates_axial_slices_says_nothing_of_others(scan):
    def predict(session, parameters):
        return Prediction("x", findings=(Finding("BasalGanglia", "left", rating=2),))

    spec = replace(frangi.SPEC, predict=predict, axial=True)
    made = [methods._predicted(spec, prepared(scan, axis), {}) for axis in range(3)]
    assert [len(m.findings) for m in made] == [0, 0, 1]
    assert "sagittal" in made[0].notes[0] and "coronal" in made[1].notes[0]


def test_axial_and_isotropic_scans_are_handed_on_as_they_are(scan):
    for spacing in (SPACING, (1.0, 0.9, 0.9), (1.8, 1.7, 1.7)):
        session = replace(prepared(scan, 2), spacing=spacing)
        seen = []
        planes.by_slices(session, lambda s, seen=seen: seen.append(s) or Prediction("x"))
        assert seen[0] is session
