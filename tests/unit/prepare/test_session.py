"""Places in a session."""

import nibabel as nib
import numpy as np
import pytest

from bids_epvs.prepare import regions, session


@pytest.mark.parametrize("covered", [True, False])
def test_planes_of_the_midbrain_follow_its_surroundings_or_else_the_pose(covered):
    """The scan lies 5 mm higher than the affine says; a slab of the vertex cannot tell."""
    coarse, base = np.diag([4.0, 4.0, 4.0, 1.0]), np.diag([2.0, 2.0, 4.0, 1.0])
    coarse[:3, 3] = base[:3, 3] = -76.0, -100.0, -70.0 if covered else 40.0
    at = np.stack(np.meshgrid(*map(np.arange, (38, 43, 36)), indexing="ij"), axis=-1) @ coarse[:3, :3].T + coarse[:3, 3]
    points = nib.Nifti1Image((at + np.array([0, 0, 5.0])).astype(np.float32), coarse)
    image = nib.Nifti1Image(np.zeros((76, 86, 36), np.float32), base)
    inside = session._covered(points, image, np.ones(image.shape, bool))
    for plane in regions.PLANES.values():
        near = session._near(points, inside, image, base, plane[0])
        found = regions.heights(image.shape, near, plane)
        expected = regions.heights(image.shape, base, plane)
        rise = 5.0 * plane[1][2] / np.linalg.norm(plane[1]) if covered else 0.0
        np.testing.assert_allclose(found, expected + rise, atol=1e-3)
