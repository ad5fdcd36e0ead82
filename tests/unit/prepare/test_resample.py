from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from bids_epvs.prepare import resample as rs

SHAPE = (11, 14, 9)
ORIENTATIONS = [
    np.column_stack([axes, flips]) for axes in permutations(range(3)) for flips in product((1, -1), repeat=3)
]


def turned(image, ornt):
    data = apply_orientation(np.asarray(image.dataobj), ornt)
    return nib.Nifti1Image(data, image.affine @ inv_ornt_aff(ornt, image.shape))


@pytest.fixture
def oblique(rng):
    angle = 0.2
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 0.8, 3.0])
    affine[:3, 3] = (-20, 5, 9)
    return nib.Nifti1Image(rng.random(SHAPE, dtype=np.float32), affine)


@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda o: "".join(f"{int(a)}{'+-'[int(f < 0)]}" for a, f in o))
def test_the_canonical_frame_does_not_depend_on_the_storage(oblique, ornt):
    stored = turned(oblique, ornt)
    frame, reference = rs.canonical(stored), rs.canonical(oblique)
    np.testing.assert_array_equal(frame.dataobj, reference.dataobj)
    np.testing.assert_allclose(frame.affine, reference.affine)
    np.testing.assert_array_equal(rs.to_native(np.asarray(frame.dataobj), stored), stored.dataobj)
    np.testing.assert_array_equal(rs.to_canonical(stored, stored), frame.dataobj)


def test_canonical_to_world_leads_to_the_scanner(oblique):
    matrix = rs.canonical_to_world(oblique) @ rs.canonical(oblique).affine
    np.testing.assert_allclose(matrix, oblique.affine, atol=1e-3)
    np.testing.assert_allclose(np.abs(np.linalg.det(rs.canonical_to_world(oblique)[:3, :3])), 1, atol=1e-3)


def test_resampling_keeps_world_positions(oblique):
    i, j, k = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    x = (np.stack([i, j, k], -1) @ oblique.affine[:3, :3].T + oblique.affine[:3, 3])[..., 0]
    ramp = nib.Nifti1Image(x.astype(np.float32), oblique.affine)
    grid = rs.coarse_grid(ramp, (1.4, 1.6, 3.0))
    out = np.asarray(rs.resample(ramp, grid, antialias=False).dataobj)
    expected = (np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1) @ grid.affine[:3, :3].T)[
        ..., 0
    ] + grid.affine[0, 3]
    np.testing.assert_allclose(out[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=1e-3)


def test_a_coarse_grid_covers_the_same_field_of_view(oblique):
    grid = rs.iso_grid(oblique, 2.0)
    for corner in ((-0.5, -0.5, -0.5),):
        np.testing.assert_allclose(grid.affine @ [*corner, 1], oblique.affine @ [*corner, 1], atol=1e-9)
    assert np.all(np.array(grid.shape) * 2.0 >= np.array(SHAPE) * (0.7, 0.8, 3.0) - 1e-6)


def test_labels_stay_labels(oblique, rng):
    labels = nib.Nifti1Image(rng.integers(0, 60, SHAPE).astype(np.int16), oblique.affine)
    out = np.asarray(rs.resample(labels, rs.iso_grid(labels, 0.9), order=0).dataobj)
    assert out.dtype == np.int16
    assert set(np.unique(out)) <= set(np.unique(labels.dataobj)) | {0}


def test_boxes_have_a_margin_and_stay_in_the_array():
    mask = np.zeros((9, 12, 7), bool)
    mask[3:5, 1, 4:7] = True
    assert rs.bounding_box(mask) == (slice(3, 5), slice(1, 2), slice(4, 7))
    assert rs.bounding_box(mask, 2) == (slice(1, 7), slice(0, 4), slice(2, 7))
    assert rs.bounding_box(mask, [0, 1, 9]) == (slice(3, 5), slice(0, 3), slice(0, 7))
    assert rs.bounding_box(np.zeros((2, 3, 4), bool), 5) == (slice(0, 2), slice(0, 3), slice(0, 4))
