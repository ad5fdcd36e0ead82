import nibabel as nib
import numpy as np
import pytest

from bids_epvs.prepare import places


@pytest.fixture
def pose():
    """Millimetres of a scan to those of the template: turned, scaled and shifted."""
    turn, scale = np.deg2rad(8.0), 1.08
    out = np.eye(4)
    out[1:3, 1:3] = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    out[:3, 3] = 3.0, -30.0, -12.0
    return out


def template_points(pose):
    """Where the voxels of a coarse grid lie in the template."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -76.0, -80.0, -60.0
    at = np.stack(np.meshgrid(*map(np.arange, (39, 43, 36)), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return nib.Nifti1Image(at @ pose[:3, :3].T + pose[:3, 3], affine)


def test_a_place_lies_where_what_surrounds_it_says(pose):
    """A deformation that slides by 4 mm within 8 mm of the place moves it by less than one."""
    place, exact = np.array([0.0, -24.0, -19.0]), template_points(pose)
    reached = np.asarray(exact.dataobj)
    inside = np.linalg.norm(reached - (0.0, -18.0, 8.0), axis=-1) < 70
    np.testing.assert_allclose(places.affine_near(exact, inside, place), pose, atol=1e-6)
    away = np.linalg.norm(reached - place, axis=-1)
    slid = np.where((away < 8)[..., None], reached + np.array([0, 0, 4.0]), reached)
    slid[away > 100] = np.nan
    found = places.affine_near(nib.Nifti1Image(slid, exact.affine), inside, place)
    step = (found @ np.linalg.inv(pose) @ np.r_[place, 1])[:3] - place
    assert np.linalg.norm(step) < 0.5, step


def test_far_from_the_brain_nothing_is_known(pose):
    points = template_points(pose)
    reached = np.asarray(points.dataobj)
    far = np.linalg.norm(reached - (0.0, -18.0, 70.0), axis=-1) < 20
    assert places.affine_near(points, far, np.array([0.0, -24.0, -19.0])) is None
