import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.prepare import brain
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.resample import resample


def test_expectation_maximisation_recovers_overlapping_classes(rng):
    truth = rng.integers(0, 3, 6000)
    values = np.array([[1.0, 5.0], [2.0, 4.0], [4.0, 1.0]])[truth] + rng.normal(0, 0.3, (6000, 2))
    priors = np.full((6000, 3), 0.2)
    priors[np.arange(6000), np.where(rng.random(6000) < 0.3, rng.integers(0, 3, 6000), truth)] = 0.6
    posterior = brain.expectation_maximisation(values, priors)
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert (posterior.argmax(axis=1) == truth).mean() > 0.98


def test_cortex_beside_dark_fluid_is_not_taken_for_white_matter(rng):
    """As on FLAIR: fluid is dark, cortex brighter than white matter, and what holds both looks like white matter."""
    truth = rng.integers(0, 3, 20_000)
    values = np.array([0.15, 0.86, 0.72])[truth] + rng.normal(0, 0.05, len(truth))
    mixed = (truth == 1) & (rng.random(len(truth)) < 0.3)
    values[mixed] -= rng.random(mixed.sum()) * 0.7
    priors = np.full((len(truth), 3), 0.2)
    priors[np.arange(len(truth)), np.where(rng.random(len(truth)) < 0.4, rng.integers(0, 3, len(truth)), truth)] = 0.6
    wrong = {}
    for border in (0.0, brain.BORDER):
        found = brain.expectation_maximisation(values[:, None], priors, border=border)
        assert found.shape == priors.shape
        np.testing.assert_allclose(found.sum(axis=1), 1)
        wrong[border] = ((found.argmax(axis=1) != truth) & (truth > 0)).mean()
    assert wrong[brain.BORDER] < 0.8 * wrong[0.0], wrong


def test_brain_mask_is_one_piece_without_holes():
    inside = np.zeros((20, 22, 8))
    inside[4:16, 4:18, :] = 0.9
    inside[8:10, 8:10, 3:5] = 0.1
    inside[0, 0, 0] = 0.9
    mask = brain.brain_mask(inside, (1, 1, 3))
    assert mask[9, 9, 3]
    assert not mask[0, 0, 0]
    assert mask.sum() == 12 * 14 * 8


def test_upsampled_labels_keep_volume_and_place():
    labels = np.zeros((12, 14, 10), np.int16)
    labels[3:9, 4:10, 2:8] = 41
    labels[4:8, 5:9, 3:7] = 4
    grid = nib.Nifti1Image(labels, np.diag([2, 2, 4, 1.0]))
    affine = np.diag([0.5, 0.5, 1, 1.0])
    affine[:3, 3] = (-0.75, -0.75, -1.5)
    target = nib.Nifti1Image(np.zeros((48, 56, 40), np.uint8), affine)
    fine = brain.upsample_labels(labels, grid, target)
    assert set(np.unique(fine)) == {0, 4, 41}
    for value in (4, 41):
        assert (fine == value).sum() / 64 == pytest.approx((labels == value).sum(), rel=0.2)
        centre = np.argwhere(fine == value).mean(axis=0) * (0.5, 0.5, 1) - (0.75, 0.75, 1.5)
        np.testing.assert_allclose(centre, np.argwhere(labels == value).mean(axis=0) * (2, 2, 4), atol=0.3)
    np.testing.assert_array_equal(brain.upsample_labels(labels, grid, grid), labels)


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
    stepped = brain.upsample_labels(drawn(coarse_at), grid, target)
    smooth = brain.upsample_labels(drawn(coarse_at), grid, target, smooth=brain.STEPS)
    wrong = [np.count_nonzero(made != truth) for made in (stepped, smooth)]
    assert wrong[1] < 0.8 * wrong[0], wrong
    np.testing.assert_array_equal(smooth.any(axis=(0, 1)), truth.any(axis=(0, 1)))


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


def test_intensities_do_not_decide_about_mixed_labels():
    known = list(ATLAS_LABELS)
    prior = np.zeros((6, 6, 6, len(known)), np.float32)
    prior[..., known.index(16)], prior[..., known.index(10)] = 0.9, 0.1
    prior[3:, ..., known.index(16)], prior[3:, ..., known.index(2)] = 0, 0.9
    mask = np.ones((6, 6, 6), bool)
    posterior = {name: np.zeros(mask.shape, np.float32) for name in ("CSF", "GM", "WM", "DGM")}
    posterior["DGM"][:] = 1  # all looks like deep grey matter
    labels = brain.label_map(prior, posterior, mask, (4.0, 4.0, 4.0))
    assert (labels[:3] == 16).all(), "the brainstem keeps its place"
    assert (labels[3:] == 10).all(), "white matter does not"


def test_intensities_do_not_decide_about_what_a_network_has_seen():
    known = list(ATLAS_LABELS)
    prior = np.zeros((6, 6, 6, len(known)), np.float32)
    prior[..., known.index(13)], prior[..., known.index(2)] = 0.7, 0.3
    mask = np.ones((6, 6, 6), bool)
    posterior = {name: np.zeros(mask.shape, np.float32) for name in ("CSF", "GM", "WM", "DGM")}
    posterior["WM"][:] = 1  # the pallidum is as dark as white matter on T2w
    labels = brain.label_map(prior, posterior, mask, (4.0, 4.0, 4.0), kept=brain.KEPT)
    assert (labels == 13).all()
    assert (brain.label_map(prior, posterior, mask, (4.0, 4.0, 4.0)) == 2).all(), "an atlas has not seen them"


def test_where_there_is_a_finer_grid_it_counts():
    labels, affine = (2, 12), np.diag([2.0, 2.0, 2.0, 1.0])
    coarse = np.zeros((12, 12, 12, 2), np.float32)
    coarse[..., 0] = 0.9
    small = np.diag([1.0, 1.0, 1.0, 1.0])
    small[:3, 3] = 7.5  # eight voxels of 1 mm that fill coarse voxels 4 to 7
    fine = np.zeros((8, 8, 8, 2), np.float32)
    fine[:4, ..., 0], fine[4:, ..., 1] = 1.0, 0.8
    scan = nib.Nifti1Image(np.zeros((24, 24, 24), np.float32), np.eye(4))
    columns = [list(ATLAS_LABELS).index(i) for i in labels]
    parcels = brain.Parcels(nib.Nifti1Image(coarse, affine), labels)
    prior, inside = brain.placed(parcels, np.eye(4), scan)
    prior = prior[..., columns]
    assert np.allclose(prior[1:22, 1:22, 1:22], (0.9, 0), atol=1e-6) and np.allclose(inside[8:16, 8:16, 8:16], 0.9)
    both = brain.Parcels(parcels.probability, labels, fine=nib.Nifti1Image(fine, small))
    with_it, whole = brain.placed(both, np.eye(4), scan)
    with_it = with_it[..., columns]
    part = (slice(8, 15),) * 3
    assert np.allclose(with_it[8:11, 8:15, 8:15], (1, 0), atol=1e-6)
    assert np.allclose(with_it[11, 8:15, 8:15], (0.5, 0.4), atol=1e-6), "half of each of two voxels"
    assert np.allclose(with_it[12:15, 8:15, 8:15], (0, 0.8), atol=1e-6)
    assert np.allclose(whole[part], with_it[part].sum(axis=-1))
    rest = np.ones(scan.shape, bool)
    rest[part] = False
    assert np.array_equal(with_it[rest], prior[rest]) and np.array_equal(whole[rest], inside[rest])


def test_the_deformed_atlas_limits_the_brain(tmp_path):
    from bids_epvs.models import parcellation
    from bids_epvs.prepare import ants, atlas

    frame = parcellation.grid()
    head = brain.skull(ants.identity(tmp_path), frame)
    known = np.asarray(resample(atlas.brain(), frame).dataobj)
    made = np.asarray(head.dataobj)
    assert made[known < 0.01].max() < 0.2
    assert (known > 0.98).sum() > 10_000
    assert np.allclose(made[known > 0.98], 1, atol=1e-5), "nothing changes inside"
    labels = (2, 41)
    white = np.full((*parcellation.SHAPE, len(labels)), 0.4, np.float32)  # everywhere, in the neck too
    parcels = brain.Parcels(nib.Nifti1Image(white, frame.affine), labels)
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


def test_a_sequence_that_ends_before_the_other_does_not_sharpen_and_one_without_fluid_does():
    prior = np.zeros((10, 10, 10, len(ATLAS_LABELS)), np.float32)
    labels = list(ATLAS_LABELS)
    prior[1:9, 1:9, 1:9, labels.index(2)] = 1
    prior[4:6, 4:6, 4:6] = 0
    prior[4:6, 4:6, 4:6, labels.index(4)] = 1
    t2w, cut, dark = np.ones((3, 10, 10, 10), np.float32)
    cut[:, :, 6:] = 0
    dark[4:6, 4:6, 4:6] = 0
    images = [nib.Nifti1Image(a, np.eye(4)) for a in (t2w, cut, dark)]
    assert brain.covering(images, prior) == [images[0], images[2]]
    assert brain.covering(images[1:2], prior) == images[1:2]
    assert brain.covering([images[1], images[0]], prior) == [images[1], images[0]]
    assert len(brain.covering(images, prior * 0)) == 3


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
    made = brain.without_lakes(labels, (1, 1, 3))
    assert (made[30:34, 25:28, 3:6] == 2).all()
    assert (made[10:12, 30:33, 5] == 2).all()
    assert (made[28:30, 33:35, 2:4] == 12).all()
    kept = np.isin(labels, (4,)) | (np.arange(40) < 12)[None, :, None]
    assert np.array_equal(made[kept], labels[kept]), "ventricle, sulcus and cortex stay"
    assert (made[30:34, 12:28, 2] == 24).all(), "what reaches the cistern in its own slice stays"
    assert brain.without_lakes(labels, (10, 10, 10))[31, 26, 4] == 24, "nothing that large is an EPVS"


def test_what_is_surely_white_matter_stays_white_matter():
    order = list(ATLAS_LABELS)
    prior = np.zeros((4, 1, 1, len(order)), np.float32)
    prior[:, 0, 0, order.index(2)] = [0.9, 0.5, 0.2, 0.9]
    prior[:, 0, 0, order.index(12)] = [0.0, 0.3, 0.1, 0.0]
    labels = np.full((4, 1, 1), 24, np.int16)
    mask = np.array([True, True, True, False])[:, None, None]
    assert brain.kept_solid(labels, prior, mask, 0.7).ravel().tolist() == [2, 2, 24, 24]
    assert brain.kept_solid(labels, prior, mask, np.inf).ravel().tolist() == [24] * 4


def test_a_small_piece_far_from_its_structure_takes_the_label_around_it():
    labels = np.full((30, 30, 10), 2, np.int16)
    labels[5:15, 5:15, 2:8] = 12
    labels[22:24, 22:24, 4] = 12
    labels[24:, :, :] = 3
    labels[20:26, 2:4, 2:8] = 13
    out = brain.without_strays(labels, (1, 1, 4))
    assert (out[22:24, 22:24, 4] == 3).sum() + (out[22:24, 22:24, 4] == 2).sum() == 4
    assert np.array_equal(out == 13, labels == 13)
    same = np.ones(labels.shape, bool)
    same[22:24, 22:24, 4] = False
    assert np.array_equal(out[same], labels[same])


def test_what_lies_far_from_the_head_is_not_looked_at(monkeypatch):
    """The same anatomy with much air around the head and with little; only the part around it is worked on."""
    from bids_epvs.models import parcellation

    frame = parcellation.grid()
    data = np.zeros((*frame.shape, 2), np.float32)
    data[20:60, 30:70, 25:60, 0] = 1
    parcels = brain.Parcels(nib.Nifti1Image(data, frame.affine), (2, 12))
    looked = []
    real = brain.placed
    monkeypatch.setattr(brain, "placed", lambda p, m, g: looked.append(g.shape) or real(p, m, g))
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


def test_tissues_are_sums_of_labels_and_brainstem_is_none():
    shown = (2, 41, 3, 4, 11, 51, 16, 17)  # white matter, cortex, ventricle, nuclei, brainstem, hippocampus
    probability = np.eye(len(shown), dtype=np.float32).reshape(2, 2, 2, -1)
    found = brain.tissues(brain.Parcels(nib.Nifti1Image(probability, np.eye(4)), shown)).get_fdata().reshape(8, -1)
    fluid, white, cortex, nuclei = np.eye(4)
    nothing = np.zeros(4)
    np.testing.assert_array_equal(found, [white, white, cortex, fluid, nuclei, nuclei, nothing, nothing])


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
    np.testing.assert_allclose(brain.affine_near(exact, inside, place), pose, atol=1e-6)
    away = np.linalg.norm(reached - place, axis=-1)
    slid = np.where((away < 8)[..., None], reached + np.array([0, 0, 4.0]), reached)
    slid[away > 100] = np.nan
    found = brain.affine_near(nib.Nifti1Image(slid, exact.affine), inside, place)
    step = (found @ np.linalg.inv(pose) @ np.r_[place, 1])[:3] - place
    assert np.linalg.norm(step) < 0.5, step


def test_far_from_the_brain_nothing_is_known(pose):
    points = template_points(pose)
    reached = np.asarray(points.dataobj)
    far = np.linalg.norm(reached - (0.0, -18.0, 70.0), axis=-1) < 20
    assert brain.affine_near(points, far, np.array([0.0, -24.0, -19.0])) is None
