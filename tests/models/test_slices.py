"""The look at thick slices: which slices, sides, orientation, what it leaves alone; what it is trained on."""

import nibabel as nib
import numpy as np
import pytest

from bids_epvs.models import looks, parcellation, slices
from bids_epvs.models.slices import CLASSES
from bids_epvs.prepare import brain, structures
from bids_epvs.prepare.labels import ATLAS_LABELS

SMALL = (4, 6, 8)
LABELS = list(ATLAS_LABELS)


@pytest.fixture
def small(rng):
    model = slices.build(SMALL)
    change = model.get_weights()
    change[-2] = rng.normal(0, 0.7, change[-2].shape)
    model.set_weights(change)
    return model


def head(rng):
    """A T2w-like image with slices of 4 mm, and soft probabilities: white matter, ventricles, putamen of both sides."""
    shape = (44, 52, 12)
    prior = np.zeros((*shape, len(LABELS)), np.float32)
    image = np.zeros(shape, np.float32)
    blocks = {2: (slice(4, 22), 300), 41: (slice(22, 40), 300), 4: (slice(16, 20), 900), 43: (slice(24, 28), 900)}
    blocks |= {12: (slice(8, 12), 450), 51: (slice(32, 36), 450)}
    for k, (index, (x, value)) in enumerate(blocks.items()):
        box = (x, slice(6, 46), slice(1, 11)) if k < 2 else (x, slice(20, 34), slice(4, 8))
        prior[box] = 0
        prior[(*box, LABELS.index(index))] = 0.9
        prior[(*box, LABELS.index(24))] = 0.05
        image[box] = value
    image += np.abs(rng.normal(0, 15, shape)).astype(np.float32)
    return nib.Nifti1Image(image, np.diag([1.0, 1.0, 4.0, 1.0])), prior


@pytest.mark.parametrize(
    ("spacing", "axis", "thick"),
    [((1, 1, 4), 2, True), ((1, 3, 1), 1, True), ((5, 1, 1), 0, True), ((1, 1, 1.5), 2, False), ((1, 1, 1), 2, False)],
)
def test_slices_lie_across_the_largest_voxels(spacing, axis, thick):
    grid = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([*spacing, 1.0]))
    assert slices.across(grid) == axis
    assert slices.thick(grid) is thick


def test_classes_and_sides_are_the_same_after_there_and_back(rng):
    wanted = np.isin(LABELS, parcellation.outputs())
    pairs = [c for c in slices.columns() if len(c) == 2]
    for side in (0, 1):
        own = wanted & ~np.isin(range(len(LABELS)), [p[1 - side] for p in pairs])
        prior = np.where(own, rng.random((30, len(LABELS))), 0).astype(np.float32)
        prior /= 1.2 * prior.sum(axis=-1, keepdims=True)
        known = slices.known_classes(prior)
        assert np.allclose(known.sum(axis=-1), 1, atol=1e-5)
        assert np.allclose(known[:, 0], 1 - prior.sum(axis=-1), atol=1e-5)
        assert np.allclose(slices.sided(known, prior), prior, atol=1e-4)


def test_lesions_are_white_matter_and_unexpected_structures_take_the_side_of_the_place():
    prior = np.zeros((2, len(LABELS)), np.float32)
    prior[0, LABELS.index(2)], prior[1, LABELS.index(41)] = 0.9, 0.9
    found = np.zeros((2, len(CLASSES)), np.float32)
    found[:, CLASSES.index("WhiteMatterLesion")] = 0.6
    found[:, CLASSES.index("Putamen")] = 0.4
    out = slices.sided(found, prior)
    assert np.allclose(out[0, [LABELS.index(2), LABELS.index(12)]], [0.6, 0.4], atol=1e-3)
    assert np.allclose(out[1, [LABELS.index(41), LABELS.index(51)]], [0.6, 0.4], atol=1e-3)


def test_before_training_it_changes_nothing(rng):
    image, prior = head(rng)
    found = slices.refined([image], prior, model=slices.build(SMALL))
    box = slices.window(prior, 4)
    known = (slices.known_classes(prior[box]) + 0.01) * [slices.ODDS.get(name, 1) for name in CLASSES]
    expected = slices.sided(known / known.sum(axis=-1, keepdims=True), prior[box])
    assert np.allclose(found[box], expected, atol=1e-3)
    assert np.array_equal(found.argmax(axis=-1)[prior.any(axis=-1)], prior.argmax(axis=-1)[prior.any(axis=-1)])


def test_a_trained_network_cannot_change_sides(rng, small):
    image, prior = head(rng)
    found = slices.refined([image], prior, model=small)
    assert np.abs(found - prior).max() > 0.2
    pairs = np.array([c for c in slices.columns() if len(c) == 2])
    left, right = (found[..., own].sum(axis=-1) for own in pairs.T)
    assert right[4:22, 6:46, 1:11].max() < 1e-3
    assert left[22:40, 6:46, 1:11].max() < 1e-3


@pytest.mark.parametrize("axis", [0, 1])
def test_any_axis_may_lie_across_the_slices(rng, small, axis):
    image, prior = head(rng)
    flat = slices.refined([image], prior, model=small)
    spacing = np.insert([1.0, 1.0], axis, 4.0)
    turned = nib.Nifti1Image(np.moveaxis(np.asarray(image.dataobj), 2, axis), np.diag([*spacing, 1.0]))
    found = slices.refined([turned], np.moveaxis(prior, 2, axis), model=small)
    assert np.allclose(np.moveaxis(found, axis, 2), flat, atol=1e-4)


def test_neighbours_and_distance_are_shown(rng):
    values = rng.random((8, 8, 5), dtype=np.float32)
    fit = parcellation.Fit(1.0, np.linspace(0.1, 0.9, 4), np.full(4, 0.01))
    seen = slices.evidence(values, fit, 4.0, [0, 2, 4])
    assert seen.shape == (3, 8, 8, slices.CHANNELS)
    assert np.allclose(seen[..., 0], np.moveaxis(values[:, :, [0, 2, 4]], 2, 0) / 2)
    assert not seen[0, :, :, -3].any()
    assert np.allclose(seen[0, :, :, -2], values[:, :, 1] / 2)
    assert np.allclose(seen[2, :, :, -3], values[:, :, 3] / 2)
    assert not seen[2, :, :, -2].any()
    assert (seen[..., -1] == 0.5).all()


@pytest.mark.parametrize(
    ("levels", "contrast"),
    [((0.9, 0.5, 0.3, 0.4), "T2w"), ((0.1, 0.5, 0.8, 0.6), "T1w"), ((0.1, 0.8, 0.6, 0.7), "FLAIR")],
)
def test_the_contrast_is_that_of_the_tissues(levels, contrast):
    assert list(parcellation.TISSUES)[:3] == ["CSF", "GM", "WM"]
    assert slices.contrast_of(parcellation.Fit(1.0, np.array(levels), np.full(4, 0.01))) == contrast


def test_a_contrast_with_parameters_of_its_own_is_looked_at_with_them(rng, small, monkeypatch):
    image, prior = head(rng)
    fluid = prior[..., [LABELS.index(4), LABELS.index(43)]].any(axis=-1)
    dark = nib.Nifti1Image(np.where(fluid, 50, np.asarray(image.dataobj)), image.affine)
    plain, asked = slices.build(SMALL), []

    def network(file=None, contrast=""):
        asked.append(contrast)
        return small if contrast == "FLAIR" else plain

    monkeypatch.setattr(slices, "network", network)
    monkeypatch.setattr(slices, "contrast_of", lambda fit: "FLAIR" if fit.mean[0] < fit.mean[2] else "T2w")
    assert np.array_equal(slices.refined([image], prior), slices.refined([image], prior, model=plain))
    assert np.array_equal(slices.refined([dark], prior), slices.refined([dark], prior, model=small))
    assert set(asked) == {"", "T2w", "FLAIR"}


def test_packaged_parameters_are_there_for_every_contrast():
    for contrast in ("", *slices.WEIGHTS.own):
        model = slices.network(contrast=contrast)
        assert model.count_params() == slices.network().count_params()
    assert slices.WEIGHTS.of("T1w") == slices.WEIGHTS
    assert slices.network(contrast="T2w") is slices.network() is not slices.network(contrast="FLAIR")


def test_thick_slices_take_its_labels_thin_ones_those_of_intensities(rng, monkeypatch):
    image, prior = head(rng)
    data = np.stack([prior[..., LABELS.index(i)] for i in parcellation.outputs()], axis=-1)
    parcels = structures.Parcels(nib.Nifti1Image(data, image.affine), parcellation.outputs())
    asked = []

    def outline(images, known):
        asked.append(known)
        better = slices.outline(images, known, model=slices.build(SMALL))
        if better is not None:  # the putamen of the left becomes pallidum
            column = LABELS.index(12), LABELS.index(13)
            better[..., column[1]], better[..., column[0]] = better[..., column[0]], 0
        return better

    thick = brain.from_parcels([image], parcels, np.eye(4), outline=outline)
    assert (thick.labels[9:11, 22:32, 5:7] == 13).all()
    assert (thick.labels[33:35, 22:32, 5:7] == 51).all()
    thin_affine = np.diag([1.0, 1.0, 1.5, 1.0])
    thin = nib.Nifti1Image(np.asarray(image.dataobj), thin_affine)
    parcels = structures.Parcels(nib.Nifti1Image(data, thin_affine), parcels.labels)
    with_it = brain.from_parcels([thin], parcels, np.eye(4), outline=outline)
    assert len(asked) == 2
    without = brain.from_parcels([thin], parcels, np.eye(4))
    assert np.array_equal(with_it.labels, without.labels)


@pytest.fixture(scope="module")
def coarse():
    """What makes an example of a coarse head; the other networks are untrained and repeat the atlas."""
    from bids_epvs.models import nuclei
    from bids_epvs.synth import anatomy, parcels
    from bids_epvs.synth import slices as planes

    first = parcellation.build(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcels, "SPACING_MM", 2.5)
        patch.setattr(parcels, "BURDENS", {"low": 1.0})
        patch.setattr(parcels, "WARP_MM", 1.0)
        patch.setattr(parcels, "pose_error", lambda _: np.eye(4))
        patch.setattr(nuclei, "predict", lambda images, pose: looks.predict(images, pose, model=first))
        yield lambda contrast="": planes.example(np.random.default_rng(20261121), anatomy.average(), contrast)


@pytest.fixture(scope="module")
def made(coarse):
    return coarse()


def test_an_example_of_one_contrast_has_four_images_of_it(coarse, tmp_path):
    from bids_epvs.train import slices as train

    np.savez(tmp_path / "example-00000.npz", **coarse("FLAIR"))
    names = train.images(tmp_path / "example-00000.npz")
    assert names == ("FLAIR1", "FLAIR2", "FLAIR3", "FLAIR4")
    with np.load(tmp_path / "example-00000.npz") as stored:
        for name in names:
            image, middle = stored[name].astype(float), stored[f"{name}_codes"][..., 2]
            fluid, white = (np.isin(middle, CLASSES.index(n)) for n in ("LateralVentricle", "CerebralWhiteMatter"))
            assert np.median(image[fluid]) < 0.8 * np.median(image[white]), name
        assert (
            not np.array_equal(stored["FLAIR1"].shape, stored["FLAIR2"].shape)
            or (stored["FLAIR1"] != stored["FLAIR2"]).any()
        )
    seen = train.Examples(tmp_path, steps=8, batch=1)
    shapes = {seen[k][1].shape for k in range(8)}
    assert len(shapes) > 1, "all of them are shown"


def test_an_example_shows_its_labels_at_the_right_place(made):
    for name in parcellation.CONTRASTS:
        assert made[f"{name}_codes"].shape == (*made[name].shape, 5)
        assert made[f"{name}_known"].shape == (*made[name].shape, len(CLASSES))
        assert 2.0 <= made[f"{name}_distance"] <= 7.0
    middle = made["T2w_codes"][..., 2]
    bright = made["T2w"].astype(float)
    fluid, white = (np.isin(middle, CLASSES.index(n)) for n in ("LateralVentricle", "CerebralWhiteMatter"))
    assert np.median(bright[fluid]) > 1.2 * np.median(bright[white])
    known = made["T2w_known"].argmax(axis=-1)  # the untrained network repeats the atlas
    for name, least in (("CerebralWhiteMatter", 0.55), ("Thalamus", 0.5)):
        a, b = known == CLASSES.index(name), middle == CLASSES.index(name)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > least, name


def test_slices_that_show_nuclei_are_drawn_more_often():
    from bids_epvs.train import slices as train

    codes = np.full((4, 4, 3, 5), CLASSES.index("CerebralWhiteMatter"), np.uint8)
    codes[1, 2, 1, 4] = CLASSES.index("Putamen")
    assert np.allclose(train.chances(codes), np.array([1, train.OFTEN, 1]) / (2 + train.OFTEN))


def test_training_improves_on_what_is_known(tmp_path, made):
    import keras

    from bids_epvs.train import losses
    from bids_epvs.train import slices as train

    np.savez(tmp_path / "example-00000.npz", **made)
    keras.utils.set_random_seed(1)
    model = slices.build(SMALL)
    files = sorted(tmp_path.glob("*.npz"))
    before = train.dice(model, files)
    assert before["dice"] == pytest.approx(before["known"], abs=0.02), "an untrained network repeats what is known"
    data = train.Examples(tmp_path, steps=2, batch=3)
    (seen, known), target = data[0]
    assert seen.shape == (3, *target.shape[1:3], slices.CHANNELS)
    assert known.shape == target.shape
    assert not {n % 8 for n in target.shape[1:3]} - {0}
    inside = target.any(axis=-1)
    assert np.allclose(target.sum(axis=-1)[inside], 1, atol=1e-5)
    again = train.Examples(tmp_path, steps=2, batch=3)[0]
    assert np.array_equal(again[0][0], seen)
    model.compile(keras.optimizers.Adam(0.02), loss=losses.soft_cross_entropy_and_dice)
    found = [float(model.train_on_batch([seen, known], target)) for _ in range(6)]
    assert found[-1] < found[0] - 0.02


@pytest.mark.parametrize("contrast", ["", "FLAIR"])
def test_from_the_command_line_to_weights_the_app_can_use(tmp_path, rng, monkeypatch, contrast):
    import json

    from bids_epvs import training
    from bids_epvs.synth import slices as planes

    def generate(heads, out, *, number, seed, nprocs, make=None):
        assert (make.keywords if make else {}) == ({"contrast": contrast} if contrast else {})
        out.mkdir(parents=True)
        made, shape = {}, (16, 24, 6)
        for name in [f"{contrast}{k}" for k in (1, 2, 3, 4)] if contrast else parcellation.CONTRASTS:
            made[name] = rng.integers(0, 255, shape).astype(np.uint8)
            made[f"{name}_fit"] = np.stack([np.linspace(0.1, 0.9, 4), np.full(4, 0.01)]).astype(np.float32)
            made[f"{name}_known"] = np.full((*shape, len(CLASSES)), 16, np.uint8)
            made[f"{name}_codes"] = rng.integers(0, len(CLASSES), (*shape, 5)).astype(np.uint8)
            made[f"{name}_distance"] = np.float32(4)
        np.savez(out / "example-00000.npz", **made)

    monkeypatch.setattr(planes, "generate", generate)
    for name in ("01", "02"):
        (tmp_path / f"sub-{name}_dseg.nii.gz").touch()
    few = ("--steps", "2", "--epoch", "1", "--widths", "2", "2", *(("--contrast", contrast) if contrast else ()))
    assert training.main(["slices", str(tmp_path), str(tmp_path / "out"), "--held-out", "02", *few]) == 0
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["Architecture"] == {"widths": [2, 2]}
    assert {"dice", "known"} <= set(card["HeldOut"])
    assert slices.network(tmp_path / "out/weights.npz").count_params() == card["Parameters"]
