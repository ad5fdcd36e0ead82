"""The second look at the deep grey matter: its box, its network, what it leaves alone; what it is trained on."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.evaluate.metrics import dice
from bids_epvs.models import looks, nuclei, parcellation
from bids_epvs.models.parcellation import NAMES
from bids_epvs.prepare.labels import mirrored

SMALL = (4, 6, 8)


@pytest.fixture
def small(rng):
    model = nuclei.build(SMALL)
    change = model.get_weights()
    change[-2] = rng.normal(0, 0.5, change[-2].shape)
    model.set_weights(change)
    return model


def example(rng, monkeypatch):
    from bids_epvs.synth import anatomy, parcels
    from bids_epvs.synth import nuclei as boxes

    monkeypatch.setattr(parcels, "SPACING_MM", 2.5)
    monkeypatch.setattr(parcels, "BURDENS", {"low": 1.0})
    monkeypatch.setattr(parcels, "WARP_MM", 1.0)
    monkeypatch.setattr(parcels, "pose_error", lambda _: np.eye(4))
    monkeypatch.setattr(parcellation, "network", lambda: parcellation.build(SMALL))
    return boxes.example(rng, anatomy.average())


def linear(volume):
    """(X, Y, Z, channels) at half the voxel size, by another library."""
    at = np.meshgrid(*(np.arange(2 * n) / 2 - 0.25 for n in volume.shape[:3]), indexing="ij")
    each = [ndimage.map_coordinates(v, at, order=1, mode="nearest") for v in np.moveaxis(volume, -1, 0)]
    return np.stack(each, axis=-1)


def test_the_box_holds_the_nuclei_of_the_atlas():
    prior = parcellation.priors()
    inside = np.zeros(prior.shape[:3], bool)
    inside[nuclei.BOX] = True
    for name in ("Caudate", "Putamen", "Pallidum", "Accumbens", "Thalamus"):
        own = prior[..., NAMES.index(name)]
        assert own[inside].sum() > 0.995 * own.sum(), name
    assert all(n % 2 ** (len(nuclei.WIDTHS) - 1) == 0 for n in nuclei.SHAPE)


def test_fine_voxels_lie_in_the_coarse_ones():
    coarse, fine = parcellation.grid().affine, nuclei.grid().affine
    first = coarse @ [*(s.start for s in nuclei.BOX), 1]
    pair = (fine @ [0, 0, 0, 1] + fine @ [1, 1, 1, 1]) / 2
    assert np.allclose(pair, first)
    last = coarse @ [parcellation.SHAPE[0] - 1 - nuclei.BOX[0].start, *(s.stop - 1 for s in nuclei.BOX[1:]), 1]
    end = np.array(nuclei.grid().shape)
    assert np.allclose((fine @ [*(end - 1), 1] + fine @ [*(end - 2), 1]) / 2, last)


def test_before_training_it_changes_nothing(rng):
    model = nuclei.build(SMALL)
    seen = rng.random((1, *(2 * n for n in nuclei.SHAPE), nuclei.CHANNELS), dtype=np.float32)
    known = parcellation.priors()[nuclei.BOX][None]
    found = np.asarray(model.predict_on_batch([seen, known]))
    assert found.shape == (1, *(2 * n for n in nuclei.SHAPE), len(NAMES))
    assert np.allclose(np.exp(found[0]) - 0.01, linear(known[0]), atol=1e-4)


@pytest.fixture
def scans(rng):
    """An image without sense, and its mirror image."""
    image = np.zeros(parcellation.SHAPE, np.float32)
    image[20:60, 20:80, 20:60] = 0.2 + rng.random((40, 60, 40), dtype=np.float32)
    return [nib.Nifti1Image(v, parcellation.grid().affine) for v in (image, np.ascontiguousarray(image[::-1]))]


def test_evidence_knows_each_nucleus_by_its_own_intensity(rng):
    """A pallidum as dark as white matter is told from the putamen, whatever the pooled Gaussian of grey matter says."""
    known = parcellation.priors()[nuclei.BOX]
    likely = known.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    levels = dict.fromkeys(NAMES, 0.9) | {"CerebralWhiteMatter": 0.5, "Pallidum": 0.42, "Putamen": 0.6}
    levels |= {"Caudate": 0.63, "Thalamus": 0.56, "Accumbens": 0.6, "VentralDC": 0.5}
    true = likely.argmax(axis=-1)
    values = np.array([levels[n] for n in NAMES])[true] + rng.normal(0, 0.02, true.shape)
    fit = parcellation.Fit(1.0, np.array([0.9, 0.8, 0.5, 0.6]), np.full(4, 0.01))
    seen = nuclei.evidence(values.astype(np.float32), fit, known)
    assert seen.shape == (*values.shape, nuclei.CHANNELS) and seen.dtype == np.float32
    assert np.array_equal(seen[..., : parcellation.CHANNELS], parcellation.likened(values.astype(np.float32), fit))
    own = seen[..., parcellation.CHANNELS :]
    assert own.min() > 0 and own.max() == 1
    for k, name in enumerate(nuclei.KINDS):
        sure = (likely[..., NAMES.index(name)] > 0.9) if name != "Pallidum" else true == NAMES.index(name)
        assert own[sure, k].mean() > 0.7, name
    pallidum, putamen = (nuclei.KINDS.index(n) for n in ("Pallidum", "Putamen"))
    assert own[true == NAMES.index("Pallidum"), putamen].mean() < 0.15
    assert own[true == NAMES.index("Putamen"), pallidum].mean() < 0.15
    assert (nuclei.evidence(values * 0, fit, known)[..., parcellation.CHANNELS :] == 1).all(), "nothing was imaged"


def test_a_mirrored_head_gives_mirrored_structures(small, scans):
    first = parcellation.build(SMALL)
    made = [nuclei.predict([s], np.eye(4), first=first, second=small) for s in scans]
    labels = parcellation.outputs()
    swap = [labels.index(mirrored(i)) for i in labels]
    for part in ("probability", "fine"):
        one, other = (np.asarray(getattr(m, part).dataobj) for m in made)
        assert np.allclose(one, other[::-1][..., swap], atol=1e-4), part
        assert np.abs(one - one[::-1][..., swap]).max() > 0.1, "the image must matter"


def test_it_speaks_of_its_boxes_and_leaves_the_rest(small, scans, monkeypatch):
    first = parcellation.build(SMALL)
    monkeypatch.setattr(parcellation, "without_islands", lambda probability, labels: probability)
    before = np.asarray(looks.predict(scans[:1], np.eye(4), model=first).probability.dataobj)
    made = nuclei.predict(scans[:1], np.eye(4), first=first, second=small)
    after, fine = (np.asarray(part.dataobj) for part in (made.probability, made.fine))
    inside = np.zeros(before.shape[:3], bool)
    inside[18:62, 34:74, 24:56] = True
    assert np.array_equal(after[~inside], before[~inside])
    assert np.abs(after - before)[inside].max() > 0.1
    assert fine.shape[:3] == nuclei.grid().shape and np.allclose(made.fine.affine, nuclei.grid().affine)
    corners = [fine[i::2, j::2, k::2] for i, j, k in np.ndindex(2, 2, 2)]
    assert np.allclose(np.mean(corners, axis=0), after[18:62, 34:74, 24:56], atol=1e-5)
    assert fine.sum(axis=-1).max() < 1 + 1e-4


def test_without_an_image_there_is_nothing_to_find(small):
    with pytest.raises(ValueError, match="at least one image"):
        nuclei.predict([], np.eye(4), first=parcellation.build(SMALL), second=small)


def test_islands_go_from_the_fine_grid_too(small, scans, monkeypatch):
    """Where a structure is removed at 2 mm, its eight voxels at 1 mm go to the others."""
    first = parcellation.build(SMALL)
    column = parcellation.outputs().index(12)
    fine = {}
    for gone in (False, True):

        def without(probability, labels, gone=gone):
            out = probability.copy()
            if gone:
                out[30, 50, 40, column] = 0
            return out

        monkeypatch.setattr(parcellation, "without_islands", without)
        made = nuclei.predict(scans[:1], np.eye(4), first=first, second=small)
        fine[gone] = np.asarray(made.fine.dataobj)
    block = tuple(slice(2 * (n - s), 2 * (n - s) + 2) for n, s in zip((30, 50, 40), (18, 34, 24), strict=True))
    assert fine[False][block][..., column].min() > 0
    assert not fine[True][block][..., column].any()
    assert np.allclose(fine[True][block].sum(axis=-1), fine[False][block].sum(axis=-1), atol=1e-5)
    same = np.ones(fine[True].shape[:3], bool)
    same[block] = False
    assert np.array_equal(fine[True][same], fine[False][same])


def test_an_example_shows_its_labels_at_the_right_place(rng, monkeypatch):
    made = example(rng, monkeypatch)
    for name in parcellation.CONTRASTS:
        assert made[name].shape == (2, *(2 * n for n in nuclei.SHAPE))
        assert made[f"{name}_known"].shape == (2, *nuclei.SHAPE, len(NAMES))
    ventricle, white = (made["codes"] == NAMES.index(n) for n in ("LateralVentricle", "CerebralWhiteMatter"))
    for side in range(2):
        bright = made["T2w"][side].astype(float)
        assert np.median(bright[ventricle[side]]) > 1.2 * np.median(bright[white[side]])
    known = made["T2w_known"].astype(np.float32).argmax(axis=-1)
    coarse = made["codes"][:, ::2, ::2, ::2]
    for name in ("Thalamus", "Putamen"):  # the untrained network repeats the atlas
        a, b = known == NAMES.index(name), coarse == NAMES.index(name)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.6, name


def test_image_labels_and_what_is_known_move_together(rng):
    from bids_epvs.train import nuclei as train
    from bids_epvs.train.parcellation import shares

    shape = tuple(2 * n for n in nuclei.SHAPE)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).T
    putamen = (((at - (20, 45, 30)) / (6, 14, 11)) ** 2).sum(axis=-1).T < 1
    codes = np.where(putamen, NAMES.index("Putamen"), NAMES.index("CerebralWhiteMatter")).astype(np.uint8)
    known = shares(codes)
    box = np.where(putamen, 0.9, 0.3).astype(np.float32), parcellation.Fit(1.0, *np.ones((2, 4))), known, codes
    alike = []
    for _ in range(5):
        values, fit, there, now = train.moved(rng, box)
        moved = now == NAMES.index("Putamen")
        assert fit is box[1]
        assert dice(values > 0.6, moved) > 0.97
        own = there[..., NAMES.index("Putamen")] > 0.5
        assert dice(own, shares(now)[..., NAMES.index("Putamen")] > 0.5) > 0.9
        assert np.allclose(there.sum(axis=-1), 1, atol=1e-3)
        alike.append(dice(moved, putamen))
    assert 0.5 < min(alike) < max(alike) < 0.97, "each time another shape, near the one it had"


def test_intensities_vary_where_something_was_imaged(rng):
    from bids_epvs.train.parcellation import varied

    values = np.zeros((20, 24, 16), np.float32)
    values[4:] = 0.5
    made = varied(rng, values)
    assert (made[:4] == 0).all()
    assert (made[4:] > 0).all()
    assert 0.01 < np.abs(made[4:] / 0.5 - 1).mean() < 0.2


def test_training_improves_on_what_is_known(tmp_path, rng, monkeypatch):
    import keras

    from bids_epvs.train import losses
    from bids_epvs.train import nuclei as train

    np.savez(tmp_path / "example-00000.npz", **example(rng, monkeypatch))
    keras.utils.set_random_seed(1)
    model = nuclei.build(SMALL)
    files = sorted(tmp_path.glob("*.npz"))
    before = train.dice(model, files)
    assert before["dice"] == pytest.approx(before["known"], abs=0.02), "an untrained network repeats what is known"
    data = train.Examples(tmp_path, steps=2)
    (seen, known), target = data[0]
    assert seen.shape[1:] == (*(2 * n for n in nuclei.SHAPE), nuclei.CHANNELS)
    assert target.shape[1:] == (*(2 * n for n in nuclei.SHAPE), len(NAMES)) and known.shape[1:4] == nuclei.SHAPE
    assert np.allclose(target.sum(axis=-1), 1)
    again = train.Examples(tmp_path, steps=2)[0]
    assert np.array_equal(again[0][0], seen)
    model.compile(keras.optimizers.Adam(0.02), loss=losses.soft_cross_entropy_and_dice)
    found = [float(model.train_on_batch([seen, known], target)) for _ in range(6)]
    assert found[-1] < found[0] - 0.02


def test_from_the_command_line_to_weights_the_app_can_use(tmp_path, rng, monkeypatch):
    import json

    from bids_epvs import training
    from bids_epvs.synth import nuclei as boxes

    fine = tuple(2 * n for n in nuclei.SHAPE)

    def generate(heads, out, *, number, seed, nprocs):
        out.mkdir(parents=True)
        made = {"codes": rng.integers(0, len(NAMES), (2, *fine)).astype(np.uint8)}
        for name in parcellation.CONTRASTS:
            made[name] = rng.integers(0, 255, (2, *fine)).astype(np.uint8)
            made[f"{name}_fit"] = np.stack([np.linspace(0.1, 0.9, 4), np.full(4, 0.01)]).astype(np.float32)
            made[f"{name}_known"] = np.full((2, *nuclei.SHAPE, len(NAMES)), 15, np.uint8)
        np.savez(out / "example-00000.npz", **made)

    monkeypatch.setattr(boxes, "generate", generate)
    for name in ("01", "02"):
        (tmp_path / f"sub-{name}_dseg.nii.gz").touch()
    few = ("--steps", "2", "--epoch", "1", "--widths", "2", "2")
    assert training.main(["nuclei", str(tmp_path), str(tmp_path / "out"), "--held-out", "02", *few]) == 0
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["Architecture"] == {"widths": [2, 2]}
    assert {"dice", "known"} <= set(card["HeldOut"])
    assert nuclei.network(tmp_path / "out/weights.npz").count_params() == card["Parameters"]
