import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.prepare import brain, tidy
from bids_epvs.prepare.labels import ATLAS_LABELS


def test_upsampled_labels_keep_volume_and_place():
    labels = np.zeros((12, 14, 10), np.int16)
    labels[3:9, 4:10, 2:8] = 41
    labels[4:8, 5:9, 3:7] = 4
    grid = nib.Nifti1Image(labels, np.diag([2, 2, 4, 1.0]))
    affine = np.diag([0.5, 0.5, 1, 1.0])
    affine[:3, 3] = (-0.75, -0.75, -1.5)
    target = nib.Nifti1Image(np.zeros((48, 56, 40), np.uint8), affine)
    fine = tidy.upsample_labels(labels, grid, target)
    assert set(np.unique(fine)) == {0, 4, 41}
    for value in (4, 41):
        assert (fine == value).sum() / 64 == pytest.approx((labels == value).sum(), rel=0.2)
        centre = np.argwhere(fine == value).mean(axis=0) * (0.5, 0.5, 1) - (0.75, 0.75, 1.5)
        np.testing.assert_allclose(centre, np.argwhere(labels == value).mean(axis=0) * (2, 2, 4), atol=0.3)
    np.testing.assert_array_equal(tidy.upsample_labels(labels, grid, grid), labels)


def test_smooth_borders_are_nearer_to_round_ones_and_stay_in_their_slices():
    fine_at, coarse_at = (np.arange(n) * s + (s - 1) / 2 for n, s in ((48, 0.5), (24, 1.0)))
    z = np.arange(6)

    def rod(at, radius):
        round_ = (at[:, None, None] - 11.3) ** 2 + (at[None, :, None] - 12.1) ** 2 < radius**2
        return round_ & (z >= 2) & (z <= 3)

    def drawn(at):
        return np.where(rod(at, 3.2), 13, np.where(rod(at, 7.7), 2, 0)).astype(np.int16)

    grid = nib.Nifti1Image(drawn(coarse_at), np.diag([1, 1, 5, 1.0]))
    affine = np.diag([0.5, 0.5, 5, 1.0])
    affine[:2, 3] = -0.25
    target = nib.Nifti1Image(np.zeros((48, 48, 6), np.uint8), affine)
    truth = drawn(fine_at)
    stepped = tidy.upsample_labels(drawn(coarse_at), grid, target)
    smooth = tidy.upsample_labels(drawn(coarse_at), grid, target, smooth=brain.STEPS)
    wrong = [np.count_nonzero(made != truth) for made in (stepped, smooth)]
    assert wrong[1] < 0.8 * wrong[0], wrong
    np.testing.assert_array_equal(smooth.any(axis=(0, 1)), truth.any(axis=(0, 1)))


def test_fluid_in_the_midst_of_white_matter_becomes_white_matter():
    labels = np.full((40, 40, 9), 2, np.int16)
    labels[:, :12] = 3
    labels[:, :6] = 24
    labels[20:23, 6:12, 4] = 24  # a sulcus
    labels[30:34, 25:28, 3:6] = 24  # a large EPVS
    labels[30:34, 2:28, 2] = 24  # that opens into a cistern in the slice below
    labels[10:12, 30:33, 5] = 3  # a lesion taken for cortex
    labels[24:36, 30:38] = 12
    labels[28:30, 33:35, 2:4] = 24  # in the putamen
    labels[0:10, 16:40] = 4
    labels[14:19, 30:35, 6], labels[16, 32, 6] = 3, 24  # an EPVS whose rim was taken for cortex
    made = tidy.without_lakes(labels, (1, 1, 3))
    assert (made[14:19, 30:35, 6] == 2).all()
    assert (made[30:34, 25:28, 3:6] == 2).all()
    assert (made[10:12, 30:33, 5] == 2).all()
    assert (made[28:30, 33:35, 2:4] == 12).all()
    kept = np.isin(labels, (4,)) | (np.arange(40) < 12)[None, :, None]
    assert np.array_equal(made[kept], labels[kept]), "ventricle, sulcus and cortex stay"
    assert (made[30:34, 12:28, 2] == 24).all(), "what reaches the cistern in its own slice stays"
    assert tidy.without_lakes(labels, (10, 10, 10))[31, 26, 4] == 24, "nothing that large is an EPVS"


def test_a_drop_of_fluid_at_the_cortex_is_an_epvs_and_the_tip_of_a_sulcus_is_none():
    labels = np.full((60, 40, 8), 2, np.int16)
    labels[:, :14] = 3
    labels[:, :4] = 24
    drops = np.zeros(labels.shape, bool)
    drops[10:13, 13:16, 3:5] = drops[20:22, 14:16, 5] = True  # half a rim of cortex, half of white matter
    deep = np.zeros_like(drops)
    deep[30:33, 6:9, 2] = True  # in the midst of the cortex
    tip = np.zeros_like(drops)
    tip[40:43, 13:16, 3], tip[40:43, 3:15, 4] = True, True  # the slice above shows the sulcus
    large = np.zeros_like(drops)
    large[50:55, 12:17, 5] = True
    brainstem = np.zeros_like(drops)
    brainstem[2:5, 13:16, 1] = True
    labels[ndimage.binary_dilation(drops, np.ones((3, 3, 1))) & (labels == 2)] = 3
    labels[0:8, 15:, :3] = 28  # a cistern beside the ventral diencephalon is as narrow
    for part in (drops, deep, tip, large, brainstem):
        labels[part] = 24
    made = tidy.without_lakes(labels, (1, 1, 4))
    assert (made[drops] == 2).all()
    rim = ndimage.binary_dilation(drops, np.ones((3, 3, 1))) & ~drops
    assert (made[rim] == 2).all(), "with the cortex at their rims"
    changed = made != labels
    assert not (changed & ~drops & ~rim).any()
    for part in (deep, tip, large, brainstem):
        assert (made[part] == 24).all()


def test_bright_spots_in_narrow_bays_become_white_matter():
    """EPVS beside the cortex, which were taken for a part of it; cortex, sulci and folds keep their shape."""
    labels = np.full((60, 50, 3), 2, np.int16)
    labels[:, :14] = 3
    labels[:, :8] = 24
    labels[10:19, 14:30], labels[13:16, 8:30] = 3, 24  # a sulcus: two walls of 3 mm and fluid of 3 mm
    labels[27:33, 14:24] = 3  # a fold without visible fluid
    labels[5:8, 40:43] = 4
    labels[20:23, 40:43] = 3  # an islet of cortex
    image = np.choose(np.searchsorted((2, 3, 4, 24), labels), (1.0, 1.15, 2.0, 2.0))
    before, look = labels.copy(), image.copy()
    epvs = np.zeros(labels.shape, bool)
    epvs[41:43, 15:17, 1] = epvs[40:42, 19:21, 1] = epvs[51, 15:19, 1] = True
    image[epvs] = 1.6
    rim = ndimage.binary_dilation(epvs, np.ones((3, 3, 1))) & (labels == 2)
    labels[rim | epvs] = 3
    labels[41, 16, 1] = 24
    made = tidy.without_bays(labels, image, (1, 1, 4))
    assert (made[epvs] == 2).all(), "the EPVS are white matter"
    assert (made[rim] == 2).mean() > 0.8, "with their rims"
    changed = made != before
    changed[rim] = False
    walls = np.isin(before, (3, 24)) & (np.arange(50) >= 14)[None, :, None]
    assert not changed[~walls].any() and changed[walls].sum() <= 0.02 * walls.sum()
    assert (made[20:23, 40:43] == 3).all(), "narrow, but no brighter than cortex"
    assert np.array_equal(tidy.without_bays(before, look, (1, 1, 4)), before)
    assert np.array_equal(tidy.without_bays(labels, 2 - image, (1, 1, 4)), labels), "fluid is dark"
    assert np.array_equal(tidy.without_bays(labels, image, (3, 3, 4)), labels), "large voxels: nothing is that narrow"
    for value in (2, 24):
        labels[:] = value
        assert np.array_equal(tidy.without_bays(labels, image, (1, 1, 4)), labels)


def test_what_is_surely_white_matter_stays_white_matter():
    order = list(ATLAS_LABELS)
    prior = np.zeros((4, 1, 1, len(order)), np.float32)
    prior[:, 0, 0, order.index(2)] = [0.9, 0.5, 0.2, 0.9]
    prior[:, 0, 0, order.index(12)] = [0.0, 0.3, 0.1, 0.0]
    labels = np.full((4, 1, 1), 24, np.int16)
    mask = np.array([True, True, True, False])[:, None, None]
    assert tidy.kept_solid(labels, prior, mask, 0.7).ravel().tolist() == [2, 2, 24, 24]
    assert tidy.kept_solid(labels, prior, mask, np.inf).ravel().tolist() == [24] * 4


def test_a_small_piece_far_from_its_structure_takes_the_label_around_it():
    labels = np.full((30, 30, 10), 2, np.int16)
    labels[5:15, 5:15, 2:8] = 12
    labels[22:24, 22:24, 4] = 12
    labels[24:, :, :] = 3
    labels[20:26, 2:4, 2:8] = 13
    out = tidy.without_strays(labels, (1, 1, 4))
    assert (out[22:24, 22:24, 4] == 3).sum() + (out[22:24, 22:24, 4] == 2).sum() == 4
    assert np.array_equal(out == 13, labels == 13)
    same = np.ones(labels.shape, bool)
    same[22:24, 22:24, 4] = False
    assert np.array_equal(out[same], labels[same])
