"""What is made on a device against what `synth` and `models` make of numpy arrays."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.models import nuclei, parcellation, slices, weights
from bids_epvs.prepare import structures
from bids_epvs.prepare.fields import smooth_field
from bids_epvs.prepare.resample import resample
from bids_epvs.prepare.structures import Parcels
from bids_epvs.synth import anatomy, contrast, paintings, parcels

weights.configure()
from keras import ops  # noqa: E402

from bids_epvs.synth import device, stream  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("paintings")
    head = parcels.near_brain(anatomy.average(), 45.0)
    np.savez(out / "example-00000.npz", **paintings.example(np.random.default_rng(5), head))
    return out


@pytest.fixture(scope="module")
def posed(folder):
    return stream.pose(np.random.default_rng(2), stream.read(folder / "example-00000.npz"))


@pytest.fixture(scope="module")
def drawn(posed):
    rng = np.random.default_rng(3)
    out = []
    for name in ("T2w", "T1w"):
        image, affine = stream.imaged(rng, posed, parcels.draw_look(rng, name), stream.planes.draw_protocol)
        out.append((posed, image, affine))
    return out


def as_image(one):
    _, image, affine = one
    return nib.Nifti1Image(ops.convert_to_numpy(image), affine)


def test_no_heads_are_named(tmp_path):
    with pytest.raises(DataError, match="no heads"):
        stream.Stream(tmp_path)


def test_a_painted_head_keeps_its_labels_and_gains_lesions_and_epvs():
    head = parcels.near_brain(anatomy.refined(anatomy.average(), 1.0))
    made = paintings.example(np.random.default_rng(6), head)
    labels = paintings.LABELS[made["numbers"]]
    shift = np.rint((made["affine"] - head.affine)[:3, 3]).astype(int)
    x, y, z = (slice(s, s + n) for s, n in zip(shift, labels.shape, strict=True))
    assert (anatomy.plain(labels) == anatomy.plain(head.labels)[x, y, z]).mean() > 0.97
    assert (made["filled"] > 127).sum() > 20
    assert np.isin(labels, anatomy.ADDED).any()


def test_smooth_fields_and_dilations_are_those_of_numpy():
    rng = np.random.default_rng(0)
    knots = rng.normal(size=(4, 5, 6))
    np.testing.assert_allclose(device.smooth_field(knots, (31, 40, 22)), smooth_field(knots, (31, 40, 22)), atol=1e-5)
    mask = rng.random((12, 9, 14)) > 0.7
    grown = ops.convert_to_numpy(device.grown(device.tensor(mask)))
    np.testing.assert_array_equal(grown > 0, ndimage.binary_dilation(mask))
    thick = ndimage.binary_dilation(mask, iterations=2)
    eroded = ops.convert_to_numpy(device.eroded(device.tensor(thick[None])))[0]
    np.testing.assert_array_equal(eroded > 0, ndimage.binary_erosion(thick, np.ones((3, 3, 3))))


@pytest.mark.parametrize("scale", [0.6, 2.1])
def test_resampling_is_that_of_numpy(scale):
    rng = np.random.default_rng(1)
    volume = ndimage.gaussian_filter(rng.normal(size=(20, 24, 18)), 1).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * parcels.fields.turned(np.eye(3), [0.1, -0.2, 0.05])
    matrix[:3, 3] = [1.3, -0.4, 2.2]
    shape = (14, 9, 11)
    expected = resample(nib.Nifti1Image(volume, np.eye(4)), nib.Nifti1Image(np.zeros(shape, np.uint8), matrix))
    found = device.resampled(device.tensor(volume), matrix, shape)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected.dataobj, atol=0.01)


def test_quantiles_look_at_what_is_seen():
    rng = np.random.default_rng(2)
    values, seen = rng.normal(size=(2, 501)), rng.random((2, 501)) > 0.4
    found = ops.convert_to_numpy(device.quantile(device.tensor(values), device.tensor(seen), 0.99))[:, 0]
    np.testing.assert_allclose(found, [np.quantile(v[s], 0.99) for v, s in zip(values, seen, strict=True)], rtol=1e-4)


def test_a_deformed_head_is_where_its_pose_says(posed):
    numbers = ops.convert_to_numpy(posed.numbers)
    np.testing.assert_allclose(posed.affine[:3, :3], parcels.SPACING_MM * np.eye(3))
    own = anatomy.centroids(anatomy.plain(paintings.LABELS[numbers]), posed.affine)
    there = anatomy.centroids(anatomy.average().labels, anatomy.average().affine)
    away = [np.linalg.norm((posed.to_template @ [*own[i], 1])[:3] - there[i]) for i in (11, 50, 12, 51, 10, 49)]
    assert np.mean(away) < 10


def test_an_image_shows_the_head_where_it_is(drawn):
    """White matter is darker than fluid on T2w, and its own labels find it."""
    made, image, _ = drawn[0]
    grid = as_image(drawn[0])
    head = nib.Nifti1Image(paintings.LABELS[ops.convert_to_numpy(made.numbers)], made.affine)
    labels = np.asarray(resample(head, grid, order=0).dataobj)
    values = ops.convert_to_numpy(image)
    inside = ndimage.binary_erosion(np.isin(labels, (2, 41)))
    fluid = ndimage.binary_erosion(np.isin(labels, (4, 43)))
    assert inside.sum() > 500 and fluid.sum() > 20
    assert np.median(values[fluid]) > 1.5 * np.median(values[inside])


def test_evidence_is_what_the_app_sees(drawn):
    found = stream.seen(stream.Stream.on_grid(None, drawn, parcellation.grid())).evidence
    for one, made in zip(drawn, ops.convert_to_numpy(found), strict=True):
        expected = parcellation.evidence(as_image(one), one[0].to_template)
        assert np.abs(made - expected).mean() < 0.003


def test_targets_are_those_of_numpy(posed):
    labels = anatomy.taught(paintings.LABELS[ops.convert_to_numpy(posed.numbers)])
    stored = parcels.codes(nib.Nifti1Image(labels, posed.affine), posed.to_template)
    expected = parcellation.half_codes(stored)
    found = ops.convert_to_numpy(stream.Stream.targets(posed))
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    for side in range(2):
        for k in (0, 1, 9, parcellation.OTHER_SIDE):
            share = (expected[side] == k).reshape(48, 2, 96, 2, 80, 2).mean(axis=(1, 3, 5))
            assert np.abs(found[side, ..., k] - share).mean() < 2e-4
    fine = tuple(slice(nuclei.FINE * s.start, nuclei.FINE * s.stop) for s in nuclei.BOX)
    boxes = ops.convert_to_numpy(stream.Boxes.targets(posed)).argmax(axis=-1)
    assert (boxes == expected[(slice(None), *fine)]).mean() > 0.999


def sides(drawn):
    """What a network could have said of both halves: the truth, smoothed."""
    truth = ops.convert_to_numpy(stream.Stream.targets(drawn[0][0]))
    out = ndimage.gaussian_filter(truth, (0, 0.7, 0.7, 0.7, 0)) + 1e-4
    return (out / out.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_likelihoods_of_nuclei_are_those_of_numpy(drawn):
    known = sides(drawn)[(slice(None), *nuclei.BOX)]
    image, pose = as_image(drawn[0]), drawn[0][0].to_template
    values = nuclei.halves(parcellation.on_grid(image, pose, nuclei.grid()))
    fit = parcellation.fitted(parcellation.on_grid(image, pose, parcellation.grid()))
    expected = np.stack([nuclei.evidence(v, fit, k) for v, k in zip(values, known, strict=True)])
    looked = stream.Boxes.__new__(stream.Boxes)
    looked.first = lambda *_: device.tensor(sides(drawn))
    given, told, _ = looked.looked(drawn[:1])
    np.testing.assert_allclose(ops.convert_to_numpy(told), known, atol=1e-5)
    off = np.abs(ops.convert_to_numpy(given) - expected).mean(axis=(0, 1, 2, 3))
    assert off[: parcellation.CHANNELS].max() < 0.005
    assert off[parcellation.CHANNELS :].max() < 0.02
    assert (np.abs(expected[..., parcellation.CHANNELS :] - 1) > 0.2).mean() > 0.1


def test_what_is_known_of_slices_is_what_the_app_places(drawn):
    made, image, affine = drawn[0]
    found = sides(drawn)
    box = np.repeat(np.repeat(np.repeat(found[(slice(None), *nuclei.BOX)], 2, 1), 2, 2), 2, 3)
    whole = parcellation.merged(*found)
    near = parcellation.merged(*box, nuclei.grid().shape[0])
    parts = Parcels(
        nib.Nifti1Image(whole, parcellation.grid().affine),
        parcellation.outputs(),
        fine=nib.Nifti1Image(near, nuclei.grid().affine),
    )
    prior, _ = structures.placed(parts, made.to_template, as_image(drawn[0]))
    expected = slices.known_classes(prior)
    known = stream._known(made.to_template @ affine, image.shape, device.tensor(found), device.tensor(box))
    assert np.abs(ops.convert_to_numpy(known) - expected).mean() < 5e-4


def test_slices_are_what_the_app_sees_of_them(folder, drawn, monkeypatch):
    affine = drawn[0][2]
    found = device.tensor(sides(drawn))
    box = found[(slice(None), *nuclei.BOX)]
    for axis in (1, 2, 3):
        box = ops.repeat(box, 2, axis=axis)
    monkeypatch.setattr(stream.Planes, "varied", staticmethod(lambda rng, evidence: evidence))
    planes = stream.Planes.__new__(stream.Planes)
    (given, known), target = planes._planes(np.random.default_rng(4), drawn[0], found, box)
    given, known, target = (ops.convert_to_numpy(v) for v in (given, known, target))
    assert given.shape[-1] == slices.CHANNELS
    assert given.shape[1] % 32 == given.shape[2] % 32 == 0
    there = known.sum(axis=-1) > 0
    assert there.mean() > 0.5
    np.testing.assert_allclose(target[there].sum(axis=-1), 1, atol=1e-5)
    same = (known.argmax(axis=-1) == target.argmax(axis=-1))[there]
    assert same.mean() > 0.85  # the truth of the head, smoothed, is the truth of its slices
    axis = slices.across(as_image(drawn[0]))
    distance = np.linalg.norm(affine[:3, axis])
    np.testing.assert_allclose(given[..., -1][there], distance / 8, rtol=1e-4)


def test_a_batch_of_each_kind(folder):
    class Truth:
        """A network that knows nothing but the atlas."""

        def __init__(self, fine):
            self.fine = fine

        def __call__(self, seen, known):
            for axis in (1, 2, 3):
                known = ops.repeat(known, 2, axis=axis) if self.fine else known
            return known

    for kind in (stream.Stream, stream.Boxes, stream.Planes):
        made = kind(folder, heads=1, images=1, first=Truth(fine=False), second=Truth(fine=True))
        for (seen, known), target in made(np.random.default_rng(7)):
            assert seen.shape[:-1] == target.shape[:-1]
            assert np.isfinite(ops.convert_to_numpy(seen)).all()
            assert known.shape[-1] == target.shape[-1]


def test_the_same_seed_gives_the_same_batch(folder):
    made = stream.Stream(folder, heads=1, images=1)
    first, again, other = (made(np.random.default_rng(seed))[0][0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(ops.convert_to_numpy(first) - ops.convert_to_numpy(other)).mean() > 0.01


def test_skulls_and_faces_go_as_on_the_processor(posed):
    """Each way of cutting leaves the brain; without skull nothing is left far from it."""
    numbers = ops.convert_to_numpy(posed.numbers)
    labels = paintings.LABELS[numbers]
    brain_there = np.isin(labels, (2, 41))
    shares = []
    for seed in range(12):
        kept = ops.convert_to_numpy(stream.crop_head(np.random.default_rng(seed), posed)) > 0
        assert kept[brain_there].mean() > 0.999
        shares.append(kept[labels == anatomy.SOFT_TISSUE].mean())
    assert min(shares) < 0.2 and max(shares) == 1


def test_k_space_of_both_is_the_same():
    protocol = contrast.Protocol((1.0, 1.0, 3.0), 3.0, matrix=0.7, snr=1e6, motion_mm=0.5)
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((24, 30, 4)), 2).astype(np.float32)
    expected = contrast.through_scanner(image, np.random.default_rng(3), protocol, 0.0)
    found = stream._through_scanner(np.random.default_rng(3), device.tensor(image), protocol, 0.0)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)


def test_numbers_of_labels_fit():
    assert len(paintings.LABELS) < stream._KINDS
    assert len(set(paintings.LABELS.tolist())) == len(paintings.LABELS)
