import numpy as np
import pandas as pd
import pytest

from bids_epvs.measure import lesions

SPACING = (0.5, 0.6, 1.2)


def tube(shape, start, end, diameter, spacing):
    """Occupancy of a straight cylinder, positions in mm (voxel centres are at index x spacing)."""
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    axis = np.subtract(end, start)
    length = np.linalg.norm(axis)
    along = (grid - start) @ (axis / length)
    radial = np.linalg.norm(grid - start - along[..., None] * axis / length, axis=-1)
    return (radial <= diameter / 2) & (along >= 0) & (along <= length)


def test_known_tube_is_measured():
    spacing = (0.5, 0.5, 0.5)
    mask = tube((60, 40, 40), (5, 10, 10), (17, 10, 10), 2.0, spacing)
    labels = lesions.instances(mask, 0.125, minimum=0.5, maximum=400)
    row = lesions.describe(
        labels,
        np.where(mask, 1, 0).astype(np.uint8),
        spacing,
        to_world=np.diag([*spacing, 1]),
        to_native_voxel=np.eye(4),
    ).iloc[0]
    assert row.length_mm == pytest.approx(12, abs=1.2)
    assert row.width_mean_mm == pytest.approx(2, abs=0.3)
    assert row.width_max_mm == pytest.approx(2, abs=0.5)
    assert row.volume_mm3 == pytest.approx(np.pi * 12, rel=0.15)
    assert abs(row.orientation_x) == pytest.approx(1, abs=0.01)
    assert row.linearity > 0.9
    assert (row.region, row.hemisphere) == ("BasalGanglia", "left")


def test_volume_limits_are_in_mm3(rng):
    mask = np.zeros((20, 21, 22), bool)
    mask[2, 2, 2] = mask[10:12, 10, 10] = mask[15, 15, 10:20] = True
    voxel = float(np.prod(SPACING))
    assert lesions.instances(mask, voxel, minimum=0, maximum=99).max() == 3
    assert lesions.instances(mask, voxel, minimum=2 * voxel, maximum=99).max() == 2
    assert lesions.instances(mask, voxel, minimum=0, maximum=2 * voxel).max() == 2


def test_diagonal_voxels_are_one_instance():
    mask = np.eye(3, dtype=bool)[:, :, None] & np.eye(3, dtype=bool)[:, None, :]
    assert mask.sum() == 3
    assert lesions.instances(mask, 1, minimum=0, maximum=9).max() == 1


def test_empty_mask_gives_nothing():
    labels = lesions.instances(np.zeros((9, 10, 11), bool), 1.0, minimum=0.5, maximum=10)
    frame = lesions.describe(labels, labels.astype(np.uint8), SPACING, to_world=np.eye(4), to_native_voxel=np.eye(4))
    assert labels.max() == 0
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 0


@pytest.mark.parametrize("n", [3, 4, 7])
def test_straight_line_has_the_length_of_its_voxels(n):
    mask = np.zeros((12, 5, 5), bool)
    mask[2 : 2 + n, 2, 2] = True
    assert lesions.skeleton_length(mask, SPACING) == pytest.approx(0.5 * n)
