"""The pose of a head by the structures that a network found in it."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from bids_epvs.models import looks, parcellation
from bids_epvs.prepare import ants, brain, sequences, session, structures
from bids_epvs.prepare.register import Alignment
from bids_epvs.records import REFERENCES

EVERYWHERE = np.ones(parcellation.SHAPE, bool)


@pytest.fixture(scope="module")
def atlas():
    return parcellation.merged(parcellation.priors(), parcellation.priors())


def shift(mm):
    out = np.eye(4)
    out[:3, 3] = mm
    return out


def moved(whole, mm):
    """Structures where they appear in a pose that is wrong by as much."""
    return np.roll(whole, [int(v / parcellation.SPACING_MM) for v in mm], axis=(0, 1, 2))


def test_a_shift_of_all_structures_is_taken_back(atlas):
    found = looks.pose_from(moved(atlas, (2, -8, 6)), EVERYWHERE, shift((1, 2, 3)))
    assert np.allclose(found, shift((-1, 10, -3)), atol=0.05)


def test_a_stretch_is_taken_back(atlas):
    flat = ndimage.zoom(atlas, (1, 1, 0.8, 1), order=1, grid_mode=True, mode="nearest")
    step = looks.pose_from(np.pad(flat, ((0, 0), (0, 0), (8, 8), (0, 0))), EVERYWHERE, np.eye(4))
    assert np.allclose(step[:3, :3], np.diag([1, 1, 1.25]), atol=0.01)


def test_structures_beyond_the_field_of_view_do_not_pull(atlas):
    seen = EVERYWHERE.copy()
    seen[:, :, :22] = False
    assert np.allclose(looks.pose_from(atlas * seen[..., None], seen, np.eye(4)), np.eye(4), atol=1e-3)


def test_too_few_structures_leave_the_pose_as_it_is(atlas):
    pose = shift((1, 2, 3))
    few = atlas.copy()
    few[..., 6:] = 0
    assert looks.pose_from(moved(few, (0, -8, 6)), EVERYWHERE, pose) is pose
    assert looks.pose_from(np.zeros_like(atlas), EVERYWHERE, pose) is pose


def test_the_distance_of_two_poses_is_in_millimetres_of_the_template():
    assert looks.apart(shift((3, 4, 0)), np.eye(4)) == pytest.approx(5, abs=1e-4)
    assert looks.apart(shift((3, 4, 0)), shift((3, 4, 0))) == 0


def test_a_brain_that_would_leave_the_grid_is_not_stretched_along_that_axis(atlas):
    """Flattened to two thirds: stretched back by 1.5 the vertex, which is 16 mm higher here, would be cut off."""
    grid = parcellation.grid()
    low, wide = ndimage.zoom(atlas, (1, 1, 2 / 3, 1), order=1, grid_mode=True, mode="nearest"), grid.shape[2]
    low = np.pad(low, ((0, 0), (0, 0), (0, wide - low.shape[2]), (0, 0)))
    high = low.copy()
    cortex = [parcellation.outputs().index(i) for i in (3, 42)]
    for up in range(1, 9):
        high[:, :, up:, cortex] = np.maximum(high[:, :, up:, cortex], low[:, :, :-up, cortex])

    def vertex(whole, step):
        brain = whole[..., [parcellation.outputs().index(i) for i in (2, 41, 3, 42)]].sum(axis=-1) > 0.5
        return apply_affine(step, apply_affine(grid.affine, np.argwhere(brain)))[:, 2].max()

    end = apply_affine(grid.affine, np.array(grid.shape[:3]) - 0.5)[2]
    stretched, limited = (looks.pose_from(v, EVERYWHERE, np.eye(4)) for v in (low, high))
    assert stretched[2, 2] == pytest.approx(1.5, abs=0.02)
    assert vertex(high, stretched) > end
    assert end - 6 < vertex(high, limited) < end
    assert np.allclose(limited[:2, :2], stretched[:2, :2], atol=0.05), "along the other axes as before"


@pytest.mark.parametrize(("off", "surer", "expected"), [(8, True, 8), (8, False, 0), (2, True, 2), (0, True, 0)])
def test_it_looks_again_only_where_structures_lie_elsewhere_and_as_long_as_it_gets_surer(
    atlas, monkeypatch, off, surer, expected
):
    poses = []

    def looked(image, pose, model):
        poses.append(pose[1, 3])
        return looks.Look(pose, "fit", None, moved(atlas, (0, pose[1, 3] - off, 0)), EVERYWHERE)

    monkeypatch.setattr(looks, "look", looked)
    monkeypatch.setattr(looks, "_sure", lambda whole: (1 if surer else -1) * np.array_equal(whole, atlas))
    found = looks.look_for_pose(None, np.eye(4), None)
    assert found.to_template[1, 3] == pytest.approx(expected, abs=0.1)
    assert np.array_equal(found.whole, moved(atlas, (0, int(expected / 2) * 2 - off, 0)))
    assert len(poses) == (2 if off else 1)


def found_in(whole, seen=EVERYWHERE):
    return looks.Look(np.eye(4), None, None, whole, seen)


def test_an_image_whose_structures_lie_elsewhere_is_not_used(atlas, monkeypatch):
    there, near, far = found_in(atlas), found_in(moved(atlas, (0, 2, 0))), found_in(moved(atlas, (0, 8, 0)))
    agreed, used = looks.agreeing([there, far, near, there])
    assert used == [0, 2, 3]
    assert agreed[0] == 1
    assert agreed[3] == pytest.approx(1, abs=1e-5)
    assert agreed[1] < structures.AGREED < agreed[2]
    monkeypatch.setattr(looks, "each", lambda images, pose, model: [(None, there), (None, far)])
    parcels = looks.predict([None, None], np.eye(4), model="a network")
    assert np.array_equal(parcels.probability.dataobj, parcellation.without_islands(atlas, parcellation.outputs()))
    assert parcels.agreement == agreed[:2]


def test_images_are_compared_where_both_show_something(atlas):
    upper = EVERYWHERE.copy()
    upper[:, :, :40] = False
    part = found_in(atlas * upper[..., None], upper)
    assert looks.agreement(found_in(atlas), part) == pytest.approx(1, abs=1e-5)
    assert looks.agreement(found_in(atlas, ~upper), part) == 0


def test_a_sequence_that_lies_elsewhere_stays_out_of_the_anatomy_and_is_warned_of(atlas, tmp_path, monkeypatch):
    parcels = structures.Parcels(
        nib.Nifti1Image(atlas, parcellation.grid().affine), parcellation.outputs(), agreement=(1.0, 0.41)
    )
    images = {n: nib.Nifti1Image(np.ones((20, 20, 20), np.float32), np.diag([9, 9, 9, 1])) for n in REFERENCES}
    monkeypatch.setattr(sequences, "_correct", lambda path: 1.0)
    monkeypatch.setattr(sequences.register, "onto", lambda _, image, work_dir: (image, ants.identity(work_dir)))
    monkeypatch.setattr(sequences.bias, "even", lambda image, **_: image)
    given = sequences.Sequences(images, tmp_path, None)
    given.first()
    seen = []
    monkeypatch.setattr(brain, "from_parcels", lambda images, *_, **__: seen.extend(images))
    pose = Alignment(None, np.eye(4), stripped=False, similarity=0.1, margin=2)
    session._by_network(given, pose, lambda images, _: parcels, None, deformable=False)
    assert [i is given.aligned[n] for i, n in zip(seen, ("T2w",), strict=True)] == [True]
    assert given.astray == {"T1w": 0.41}
    given.arrive()
    assert set(given.aligned) == set(REFERENCES), "the methods have it still"
    assert "the T1w lie elsewhere than in the T2w (mean Dice 0.41)" in session.ASTRAY.format("T1w", "T2w", 0.412)


def test_the_corrected_pose_is_that_of_the_session(atlas, tmp_path, monkeypatch):
    better = shift((0, 5, 0))
    parcels = structures.Parcels(nib.Nifti1Image(atlas, parcellation.grid().affine), parcellation.outputs())
    image = nib.Nifti1Image(np.ones((60, 60, 60), np.float32), np.diag([3, 3, 3, 1]))
    monkeypatch.setattr(sequences, "_correct", lambda path: 1.0)
    given = sequences.Sequences({"T2w": image}, tmp_path, None)
    given.first()
    seen = []
    monkeypatch.setattr(sequences.bias, "even", lambda i, tissues, to_template, degree: seen.append(to_template) or i)
    monkeypatch.setattr(brain, "from_parcels", lambda images, found, pose, **_: seen.append(pose))
    wrong = Alignment(None, np.eye(4), stripped=True, similarity=0.1, margin=0.5)

    def parcellate(images, pose):
        return structures.Parcels(parcels.probability, parcels.labels, to_template=better)

    _, alignment, _ = session._by_network(given, wrong, parcellate, None, deformable=False)
    assert all(np.array_equal(pose, better) for pose in (*seen, alignment.to_template))
    assert len(seen) == 2
    assert alignment.stripped
    assert alignment.margin != 0.5
    assert np.allclose(ants.linear_matrix(alignment.transform), better, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "thickness", "used"),
    [("T1w", 9, True), ("T1w", 18, True), ("T1w", 27, False), ("FLAIR", 9, False)],
)
def test_a_sequence_of_much_larger_voxels_stays_out_of_the_anatomy(name, thickness, used, tmp_path, monkeypatch):
    sizes = {"T2w": 9, name: thickness}
    images = {n: nib.Nifti1Image(np.ones((9, 9, 9), np.float32), np.diag([9, 9, z, 1])) for n, z in sizes.items()}
    monkeypatch.setattr(sequences, "_correct", lambda path: 1.0)
    monkeypatch.setattr(sequences.register, "onto", lambda _, image, work_dir: (image, ants.identity(work_dir)))
    given = sequences.Sequences(images, tmp_path, None)
    assert given.looked_at() == (["T2w", name] if used else ["T2w"])
    given.first()
    assert len(given.contrasts()) == len(list(given.native())) == 1 + used
    given.arrive()
    assert set(given.aligned) == {"T2w", name}, "the methods have it still"
