import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.prepare import brain, structures
from bids_epvs.prepare.resample import resample


def test_brain_mask_is_one_piece_without_holes():
    inside = np.zeros((20, 22, 8))
    inside[4:16, 4:18, :] = 0.9
    inside[8:10, 8:10, 3:5] = 0.1
    inside[0, 0, 0] = 0.9
    mask = brain.brain_mask(inside, (1, 1, 3))
    assert mask[9, 9, 3]
    assert not mask[0, 0, 0]
    assert mask.sum() == 12 * 14 * 8


def test_a_segmentation_replaces_the_atlas():
    labels = np.zeros((24, 26, 20), np.int32)
    labels[4:20, 4:22, 3:17] = 3
    labels[6:18, 6:20, 5:15] = 2
    labels[10:13, 10:13, 8:11] = 4
    t2w = nib.Nifti1Image(np.zeros(labels.shape, np.float32), np.diag([2, 2, 2, 1.0]))
    found = brain.from_segmentation(nib.Nifti1Image(labels, t2w.affine), t2w, None)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.brain[labels > 0].mean() > 0.97
    assert not found.brain[0, 0, 0]


def test_a_segmentation_elsewhere_is_refused():
    t2w = nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4))
    far = np.eye(4)
    far[:3, 3] = 500
    with pytest.raises(DataError, match="no white matter"):
        brain.from_segmentation(nib.Nifti1Image(np.full((9, 9, 9), 2, np.int32), far), t2w, None)


def test_the_deformed_atlas_limits_the_brain(tmp_path):
    from bids_epvs.models import parcellation
    from bids_epvs.prepare import ants, atlas

    frame = parcellation.grid()
    head = structures.skull(ants.identity(tmp_path), frame)
    known = np.asarray(resample(atlas.brain(), frame).dataobj)
    made = np.asarray(head.dataobj)
    assert made[known < 0.01].max() < 0.2
    assert (known > 0.98).sum() > 10_000
    assert np.allclose(made[known > 0.98], 1, atol=1e-5), "nothing changes inside"
    labels = (2, 41)
    white = np.full((*parcellation.SHAPE, len(labels)), 0.4, np.float32)  # everywhere, in the neck too
    parcels = structures.Parcels(nib.Nifti1Image(white, frame.affine), labels)
    scan = nib.Nifti1Image(np.ones(frame.shape, np.float32), frame.affine)
    outside = ndimage.distance_transform_edt(made == 0) > 4  # voxels of 2 mm; the mask's edge is smoothed
    assert outside.sum() > 10_000
    order = []

    def outline(images, prior):
        order.append("outline")
        return prior.copy()

    def within():
        order.append("within")
        return head

    for asked in (None, outline):
        found = brain.from_parcels([scan], parcels, np.eye(4), outline=asked, within=within)
        assert found.brain[known > 0.98].all()
        assert not found.brain[outside].any()
        assert not found.labels[outside].any()
    assert order == ["within", "outline", "within"], "what takes long comes first"


def test_what_lies_far_from_the_head_is_not_looked_at(monkeypatch):
    """The same anatomy with much air around the head and with little; only the part around it is worked on."""
    from bids_epvs.models import parcellation

    frame = parcellation.grid()
    data = np.zeros((*frame.shape, 2), np.float32)
    data[20:60, 30:70, 25:60, 0] = 1
    parcels = structures.Parcels(nib.Nifti1Image(data, frame.affine), (2, 12))
    looked = []
    real = structures.placed
    monkeypatch.setattr(structures, "placed", lambda p, m, g: looked.append(g.shape) or real(p, m, g))
    made = []
    for air in (0, 30):
        values = np.pad(np.where(data[..., 0] > 0, 1, 0).astype(np.float32), air)
        affine = frame.affine.copy()
        affine[:3, 3] -= 2.0 * air
        found = brain.from_parcels([nib.Nifti1Image(values, affine)], parcels, np.eye(4))
        assert found.labels.shape == found.brain.shape == values.shape
        made.append([a[tuple(slice(air, air + n) for n in frame.shape)] for a in (found.labels, found.brain)])
        assert found.brain.sum() == made[-1][1].sum() > 50_000, "all of it lies in the frame"
    assert looked[0] == looked[1]
    assert np.prod(looked[0]) < 0.4 * np.prod(frame.shape)
    assert np.array_equal(made[0][0], made[1][0]) and np.array_equal(made[0][1], made[1][1])
