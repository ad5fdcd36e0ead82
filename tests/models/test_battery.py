"""The same checks for every method of MODELS, and what vesselness must find."""

from dataclasses import replace

import numpy as np
import pytest

from bids_epvs import explain
from bids_epvs.errors import UsageError
from bids_epvs.measure import lesions
from bids_epvs.models import MODELS, frangi, load
from bids_epvs.prepare.regions import NAMES
from bids_epvs.records import Prepared

THICK, ISO = (0.5, 0.5, 3.0), (0.7, 0.7, 0.7)


def phantom(spacing, rng, tubes=(), noise=12.0, first=3):
    """One region (left `first`, right the next) around a ventricle; tubes are centre, direction, diameter, length."""
    shape = tuple(round(48 / s) for s in spacing)
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    image = np.full(shape, 400.0)
    csf = (np.abs(grid[..., 0] - 24) < 4) & (np.abs(grid[..., 1] - 24) < 10) & (np.abs(grid[..., 2] - 24) < 10)
    image[csf] = 1150
    sub = np.stack(np.meshgrid(*[(np.arange(5) - 2) / 5 * s for s in spacing], indexing="ij"), -1).reshape(-1, 3)
    fraction = np.zeros(shape)
    for centre, direction, diameter, length in tubes:
        axis = np.asarray(direction, float) / np.linalg.norm(direction)
        near = np.linalg.norm(grid - centre, axis=-1) < length / 2 + diameter + max(spacing)
        points = grid[near][:, None] + sub - centre
        along = points @ axis
        inside = (np.linalg.norm(points - along[..., None] * axis, axis=-1) <= diameter / 2) & (
            np.abs(along) <= length / 2
        )
        fraction[near] = np.maximum(fraction[near], inside.mean(axis=1))
    image += fraction * 0.85 * 750
    image += rng.normal(0, noise, shape)
    side = np.where(grid[..., 0] < 24, first, first + 1).astype(np.uint8)
    return Prepared(
        images={"T2w": image.astype(np.float32)},
        brain=np.ones(shape, bool),
        regions=np.where(csf, 0, side).astype(np.uint8),
        csf=csf,
        spacing=spacing,
        native=None,
        slices={},
        hemisphere=np.where(side == first, 1, 2).astype(np.uint8),
    ), fraction


@pytest.mark.parametrize("name", MODELS)
def test_declarations(name):
    spec = load(name)
    assert spec.name == name
    assert name.isalnum(), "it becomes a BIDS label"
    assert spec.doi.startswith("10.")
    assert spec.citation and spec.title and spec.deviations
    assert set(spec.regions) <= set(NAMES)
    assert spec.suffixes[0] == "T2w"
    assert spec.needs_t2w == (spec.suffixes == ("T2w",))
    assert spec.task in ("segmentation", "count", "rating", "severity")


@pytest.mark.parametrize("spacing", [THICK, ISO])
@pytest.mark.parametrize("name", MODELS)
def test_output_shape_range_and_determinism(name, spacing, rng):
    spec = load(name)
    first = 1 if spec.regions == ("BasalGanglia",) else 3
    prepared, _ = phantom(spacing, rng, [((12, 24, 24), (0, 0, 1), 2.0, 12)], first=first)
    before = prepared.images["T2w"].copy()
    found, again = (
        explain.added(spec, prepared, spec.predict(prepared, spec.parameters), spec.parameters) for _ in "ab"
    )
    np.testing.assert_array_equal(prepared.images["T2w"], before)
    for kind in ("probability", "mask", "saliency"):
        made = getattr(found, kind)
        assert (made is not None) == (kind in spec.outputs)
        if made is not None:
            assert made.shape == before.shape
            assert made.dtype == (bool if kind == "mask" else np.float32)
            assert made.min() >= 0 and np.isfinite(made).all()
            np.testing.assert_array_equal(made, getattr(again, kind))
    if found.probability is not None:
        assert found.probability.max() <= 1
    if found.mask is not None:
        assert not (found.mask & prepared.csf).any()
    assert found.findings == again.findings
    assert bool(found.findings) == ("findings" in spec.outputs)
    for told in found.findings:
        assert told.region in spec.regions and told.hemisphere in ("left", "right", "both")
        assert (told.count is not None) == (spec.task == "count")
        assert not told.chances or sum(told.chances) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "frangi"])
def test_a_scan_without_the_regions_is_no_failure(name, rng):
    spec = load(name)
    prepared, _ = phantom(THICK, rng)
    empty = replace(prepared, regions=np.zeros_like(prepared.regions))
    found = explain.added(spec, empty, spec.predict(empty, spec.parameters), spec.parameters)
    assert found.findings == () and found.notes
    assert found.mask is None or not found.mask.any()


def test_unknown_models_are_refused():
    with pytest.raises(UsageError, match="Choose from: unet, gpunet"):
        load("none")


TUBES = [((9, y, z), d, 1.8, 11) for y, z, d in ((10, 10, (0, 0.2, 1)), (24, 24, (0, 0, 1)), (38, 38, (0.2, 0, 1)))]
TUBES += [((39, y, z), (0, 1, 0.1), 1.8, 5) for y, z in ((10, 12), (24, 24), (38, 36))]


@pytest.mark.parametrize("spacing", [THICK, ISO])
def test_vesselness_finds_known_tubes_and_no_others(spacing, rng):
    prepared, fraction = phantom(spacing, rng, TUBES)
    found = frangi.predict(prepared, frangi.PARAMETERS)
    labels = lesions.instances(found.mask, prepared.voxel_mm3, minimum=0.5, maximum=400)
    hit = [np.any(labels[_near(labels.shape, spacing, t)] > 0) for t in TUBES]
    assert sum(hit) >= 5
    true = np.bincount(labels[fraction > 0.05], minlength=labels.max() + 1)[1:] > 0
    assert (~true).sum() <= 1


def _near(shape, spacing, tube):
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    return np.linalg.norm(grid - tube[0], axis=-1) < max(2.0, spacing[2])


@pytest.mark.parametrize("spacing", [THICK, ISO])
def test_vesselness_finds_nothing_in_plain_tissue(spacing, rng):
    prepared, _ = phantom(spacing, rng)
    found = frangi.predict(prepared, frangi.PARAMETERS)
    labels = lesions.instances(found.mask, prepared.voxel_mm3, minimum=0.5, maximum=400)
    assert labels.max() <= 1


def test_closed_form_eigenvalues(rng):
    m = rng.normal(size=(200, 3, 3))
    m = m + m.transpose(0, 2, 1)
    parts = {"xx": m[:, 0, 0], "yy": m[:, 1, 1], "zz": m[:, 2, 2], "xy": m[:, 0, 1], "xz": m[:, 0, 2], "yz": m[:, 1, 2]}
    expected = np.linalg.eigvalsh(m)
    expected = np.take_along_axis(expected, np.argsort(np.abs(expected), axis=1), axis=1)
    np.testing.assert_allclose(np.stack(frangi.eigenvalues_3d(parts), 1), expected, atol=1e-9)
    two = m[:, :2, :2]
    expected = np.linalg.eigvalsh(two)
    expected = np.take_along_axis(expected, np.argsort(np.abs(expected), axis=1), axis=1)
    found = frangi.eigenvalues_2d(two[:, 0, 0], two[:, 1, 1], two[:, 0, 1])
    np.testing.assert_allclose(np.stack(found, 1), expected, atol=1e-12)


def test_slice_rules_drop_by_area_in_mm2():
    prepared, _ = phantom(THICK, np.random.default_rng(0))
    mask = np.zeros(prepared.csf.shape, bool)
    mask[10:12, 10:12, 3] = True  # 1 mm2
    mask[30, 30, 3] = True  # 0.25 mm2
    mask[10:20, 60:70, 3] = True  # 25 mm2
    kept = frangi.slice_rules(mask, prepared, frangi.PARAMETERS)
    assert kept[10:12, 10:12, 3].all()
    assert kept.sum() == 4
