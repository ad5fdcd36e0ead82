import numpy as np
import pytest

from bids_epvs.prepare import fields, regions

SPACING = (2.0, 2.0, 4.0)


@pytest.fixture
def phantom():
    """Labels of a block of white matter with ventricles, nuclei and brainstem; x < 20 is left."""
    labels = np.zeros((40, 44, 30), np.int16)
    labels[2:20, 2:42, 2:28], labels[20:38, 2:42, 2:28] = 2, 41
    labels[16:20, 10:34, 12:18], labels[20:24, 10:34, 12:18] = 4, 43
    labels[8:12, 18:30, 8:14], labels[28:32, 18:30, 8:14] = 12, 51
    labels[13:15, 18:24, 8:14], labels[25:27, 18:24, 8:14] = 10, 49
    labels[6:8, 10:14, 4:7], labels[32:34, 10:14, 4:7] = 17, 53
    labels[18:22, 14:20, 2:10] = 16
    return labels


@pytest.fixture
def to_template():
    """Voxel (19.5, 22, 12) is the origin of the template."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -np.array([19.5, 22, 12]) * SPACING
    return affine


def test_every_region_in_both_hemispheres(phantom, to_template):
    found = regions.from_labels(phantom, SPACING, to_template)
    for index, region in regions.REGIONS.items():
        mask = found == index
        assert mask.any(), region.full_name
        assert (np.argwhere(mask)[:, 0] < 20).all() == (region.side == "Left")


def test_a_mirrored_head_gives_mirrored_regions(phantom, to_template):
    found = regions.from_labels(phantom, SPACING, to_template)
    swap = np.zeros(60, np.int16)
    for left, right in ((2, 41), (4, 43), (12, 51), (10, 49), (17, 53)):
        swap[left], swap[right] = right, left
    swap[16] = 16
    mirrored = regions.from_labels(swap[phantom[::-1]], SPACING, to_template)
    other = np.array([0, *(i + 1 if i % 2 else i - 1 for i in range(1, 13))], np.uint8)
    np.testing.assert_array_equal(other[found[::-1]], mirrored)


def test_centrum_semiovale_begins_above_the_ventricles(phantom, to_template):
    found = regions.from_labels(phantom, SPACING, to_template)
    high = [i for i, r in regions.REGIONS.items() if r.name == "CentrumSemiovale"]
    assert np.argwhere(np.isin(found, high))[:, 2].min() == 18
    assert regions.ventricle_top(phantom, SPACING) == 17
    assert regions.ventricle_top(np.zeros_like(phantom), SPACING) is None


def test_basal_ganglia_hold_the_capsule_and_the_subinsular_white_matter(phantom, to_template):
    mask = regions.basal_ganglia(phantom, SPACING, to_template)
    assert mask[12, 20, 10], "between putamen and thalamus"
    assert mask[7, 24, 10], "lateral of the left putamen"
    assert mask[32, 24, 10], "lateral of the right putamen"
    assert not mask[3, 24, 10]
    assert not regions.basal_ganglia(
        np.where(phantom == 12, 2, np.where(phantom == 51, 41, 0)), SPACING, to_template
    ).any()


def test_pieces_that_are_large_or_touch_stay():
    added, core = np.zeros((2, 9, 9, 1), bool)
    core[0, 0], added[1, 0] = True, True
    added[4:6, 4:6], added[8, 8] = True, True
    kept = regions._touching(added, core, 4)
    assert kept[1, 0, 0]
    assert kept[4:6, 4:6].all()
    assert not kept[8, 8, 0]
    assert not kept[0, 0, 0]
    assert kept.sum() == 5


def test_midbrain_is_above_the_plane(phantom, to_template):
    height = {"pons": np.full(phantom.shape, 1.0), "diencephalon": np.full(phantom.shape, 1.0)}
    height["pons"][:, :, :6] = -1.0
    found = regions.from_labels(phantom, SPACING, to_template, above=height)
    midbrain = [i for i, r in regions.REGIONS.items() if r.name == "Midbrain"]
    assert np.isin(found, midbrain).sum() == (phantom[:, :, 6:] == 16).sum()


def test_slices_of_the_scales(phantom):
    assert regions.rating_slices(phantom, SPACING, 9.6) == {
        "anterior_commissure": 10,
        "ventricle_top": 17,
        "adams_cso": 19,
    }
    cut = phantom[:, :, :18]
    assert regions.rating_slices(cut, SPACING, -1.0) == {"ventricle_top": 17}


def test_indices_of_other_programs():
    given = np.array([[0, 2, 77, 1001, 2035, 3005, 4010, 5001, 5002, 85, 99]])
    assert regions.simplify(given).tolist() == [[0, 2, 2, 3, 42, 2, 41, 2, 41, 24, 0]]


@pytest.mark.parametrize("degrees", [0, 5, 25])
def test_tilted_coronal_slices_are_divided_upright_and_others_as_they_lie(degrees):
    """White matter with a flat ventricle, upright in the template; the scan is tilted about the left-right axis."""
    spacing = (1.0, 2.0, 0.5)
    tilt = np.eye(4)
    tilt[:3, :3] = fields.rotation(0, np.deg2rad(degrees))
    shape = (20, 40, 160)
    to_template = tilt @ np.diag([*spacing, 1.0])
    to_template[:3, 3] = -to_template[:3, :3] @ (np.array(shape) / 2)
    up = regions.heights(shape, to_template, (np.zeros(3), np.array([0.0, 0.0, 1.0])))
    front = regions.heights(shape, to_template, (np.zeros(3), np.array([0.0, 1.0, 0.0])))
    labels = np.where((np.abs(up) < 4) & (np.abs(front) < 25), 4, 2).astype(np.int16)
    over = regions.over_ventricles(labels, spacing, to_template) & (labels == 2)
    top = regions.ventricle_top(labels, spacing)
    assert np.array_equal(over[:, :, top + 1 :], labels[:, :, top + 1 :] == 2) == (degrees < 15)
    if degrees >= 15:
        assert up[over].min() == pytest.approx(4, abs=1.2)
        assert over[up > 6].all()
        axial = regions.over_ventricles(labels, (1.0, 1.0, 3.0), to_template)
        assert axial[:, :, top + 1 :].all() and not axial[:, :, : top + 1].any()


def test_fluid_far_above_is_not_the_top_of_the_ventricles():
    labels = np.full((30, 30, 20), 2, np.int16)
    labels[10:20, 10:20, 4:9] = 4
    labels[12:18, 12:18, 15] = 43  # sulcal fluid with the wrong label
    assert regions.ventricle_top(labels, (1.0, 1.0, 3.0)) == 8
    labels[12:18, 12:18, 9:15] = 4
    assert regions.ventricle_top(labels, (1.0, 1.0, 3.0)) == 15
    assert regions.ventricle_top(labels[..., 4:9], (1.0, 1.0, 3.0)) == 4, "the scan ends inside them"
    assert regions.ventricle_top(np.full((5, 5, 5), 2), (1.0, 1.0, 1.0)) is None


def test_nothing_thin_stands_out_from_the_basal_ganglia(monkeypatch):
    """The nearest voxel of an oblique, uneven putamen jumps from row to row."""
    spacing = (0.6, 0.6, 3.0)
    x, y = (np.arange(n)[:, None, None] * 0.6 for n in (100, 120))
    y = y.reshape(1, -1, 1) * np.ones((1, 1, 5))
    u, v = (x - 20) * 0.9 + (y - 36) * 0.4, (y - 36) * 0.9 - (x - 20) * 0.4
    putamen = (u / 5) ** 2 + (v / (14 + np.sin(2.5 * x))) ** 2 < 1
    labels = np.where(putamen, 12, 2).astype(np.int16)
    to_template = np.diag([0.6, 0.6, 3.0, 1.0])
    to_template[0, 3] = -50.0

    def thin(mask):
        return (mask & ~putamen & ~regions.opened_in_slices(mask, spacing, regions.THIN_MM)).sum()

    made = regions.basal_ganglia(labels, spacing, to_template)
    assert (made & ~putamen).sum() > 500, "the subinsular white matter"
    assert thin(made) == 0
    monkeypatch.setattr(regions, "THIN_MM", 0.0)
    rough = regions.basal_ganglia(labels, spacing, to_template)
    monkeypatch.undo()
    assert thin(rough) > 20 and made.sum() > 0.9 * rough.sum()


def test_what_lies_beyond_the_border_of_white_matter_and_basal_ganglia():
    found = np.zeros((30, 40, 5), np.uint8)
    found[10:15, 10:30, 2] = regions.indices("CentrumSemiovale")[0]
    found[10:15, 30:34, 2] = regions.indices("Hippocampus")[0]
    found[20:22, 10:20, 3] = regions.indices("BasalGanglia")[1]
    brain = np.ones(found.shape, bool)
    brain[:8] = False
    spacing = (1.0, 0.5, 1.0)
    near = regions.beyond(found, brain, spacing, 2.5)
    assert not near[..., [0, 1, 4]].any(), "in the plane of the slices only"
    assert np.flatnonzero(near[:, 20, 2]).tolist() == [8, 9, 15, 16], "inside the brain, in no region"
    assert np.flatnonzero(near[12, :, 2]).tolist() == [5, 6, 7, 8, 9, 34], "5 voxels of 0.5 mm"
    assert np.flatnonzero(near[:, 15, 3]).tolist() == [18, 19, 22, 23]
    assert not regions.beyond(found, brain, spacing, 0.0).any()
    assert not regions.beyond(np.zeros_like(found), brain, spacing, 2.5).any()
