"""The parcellation network: its classes, its halves, its weights; what it is trained on."""

import keras
import nibabel as nib
import numpy as np
import pytest

from bids_epvs.errors import DataError
from bids_epvs.models import looks, parcellation, weights
from bids_epvs.models.parcellation import CLASSES, HALF, OTHER_SIDE, RIGHT, SHAPE
from bids_epvs.prepare.labels import ATLAS_LABELS, mirrored
from bids_epvs.prepare.structures import Parcels

SMALL, CUBE = (4, 6, 8), (16, 16, 16)


@pytest.fixture(scope="module")
def small():
    return parcellation.build(SMALL, CUBE)


def atlas_codes():
    """Sided class numbers of the atlas's most probable labels, on the grid."""
    left = np.argmax(parcellation.priors(), axis=-1)[: SHAPE[0] // 2]
    left[left == OTHER_SIDE] = 0
    shared = np.isin(left, [k for k, c in enumerate(CLASSES) if c.midline])
    return np.concatenate([left, np.where(shared, left, left + RIGHT)[::-1]]).astype(np.uint8)


def test_every_label_inside_the_skull_has_a_class():
    codes = parcellation.codes()
    for index, entry in ATLAS_LABELS.items():
        assert (codes[index] > 0) == entry.brain
        if entry.side == "right":
            assert codes[index] == codes[mirrored(index)] + RIGHT
    assert codes[57] == codes[25] + RIGHT > RIGHT


def test_priors_are_probabilities_and_symmetric():
    prior = parcellation.priors()
    assert prior.shape == (HALF, *SHAPE[1:], len(CLASSES))
    assert np.allclose(prior.sum(axis=-1), 1, atol=1e-5)
    strip = prior[SHAPE[0] - HALF :]
    shared = [k for k, c in enumerate(CLASSES) if c.midline]
    assert np.allclose(strip[..., shared], strip[::-1][..., shared], atol=0.02)


def test_halves_give_the_whole_again():
    stored = atlas_codes()
    left, right = (np.eye(len(CLASSES), dtype=np.float32)[h] for h in parcellation.half_codes(stored))
    both = parcellation.merged(left, right)
    expected = np.zeros(64, int)
    for index in (*ATLAS_LABELS, 25, 57):
        expected[parcellation.codes()[index]] = {25: 2, 57: 41, 7: 8, 46: 47, 14: 24, 15: 24}.get(index, index)
    expected[0] = 0
    labels = np.array(parcellation.outputs())
    made = np.where(both.sum(axis=-1) > 0.5, labels[np.argmax(both, axis=-1)], 0)
    wanted = expected[stored]
    assert (wanted == 2).sum() > 10_000 < (wanted == 41).sum()
    assert np.mean(made == wanted) > 0.999


def test_a_mirrored_head_gives_mirrored_structures(rng):
    keras.utils.set_random_seed(0)  # some random networks have a voxel at the edge of a decision
    model = parcellation.build(SMALL)
    change = model.get_weights()
    change[-2] = rng.normal(0, 0.5, change[-2].shape)
    model.set_weights(change)
    image = np.zeros(SHAPE, np.float32)
    image[20:60, 20:80, 20:60] = 0.2 + rng.random((40, 60, 40), dtype=np.float32)
    affine = parcellation.grid().affine
    made = [
        np.asarray(looks.predict([nib.Nifti1Image(v, affine)], np.eye(4), model=model).probability.dataobj)
        for v in (image, np.ascontiguousarray(image[::-1]))
    ]
    labels = parcellation.outputs()
    swap = [labels.index(mirrored(i)) for i in labels]
    assert np.allclose(made[0], made[1][::-1][..., swap], atol=1e-4)
    assert np.abs(made[0] - made[0][::-1][..., swap]).max() > 0.1, "the image must matter"


def test_evidence_means_the_same_in_every_contrast(rng):
    tissue = np.argmax(parcellation.priors()[: SHAPE[0] // 2], axis=-1)
    tissue = np.concatenate([tissue, tissue[::-1]])
    for white, grey, fluid in ((400, 560, 1100), (900, 600, 230)):
        table = np.full(len(CLASSES), float(grey))
        table[[parcellation.NAMES.index(n) for n in ("CerebralWhiteMatter", "Brainstem", "WhiteMatterLesion")]] = white
        table[[parcellation.NAMES.index(n) for n in ("LateralVentricle", "OtherCSF")]] = fluid
        table[0] = 0
        image = table[tissue] + rng.normal(0, 20, SHAPE) * (tissue > 0)
        values = np.maximum(image, 0).astype(np.float32)
        seen = parcellation.likened(values, parcellation.fitted(values))
        assert seen.shape == (*SHAPE, parcellation.CHANNELS)
        assert (seen >= 0).all() and (seen <= 1).all()
        names = list(parcellation.TISSUES)
        for name, tissue_class in (("CSF", "LateralVentricle"), ("WM", "CerebralWhiteMatter")):
            inside = seen[tissue == parcellation.NAMES.index(tissue_class), 1 + names.index(name)]
            assert np.median(inside) > 0.8, (name, white)


def test_before_training_it_repeats_the_atlas(small, rng):
    seen = rng.random((1, *CUBE, parcellation.CHANNELS), dtype=np.float32)
    prior = parcellation.priors()[None, :16, 40:56, 30:46]
    logits = np.asarray(small.predict_on_batch([seen, prior]))
    assert np.allclose(logits, np.log(prior + 0.02), atol=1e-4)


def test_loss_falls_on_one_batch_and_weights_survive_the_disk(tmp_path):
    import keras

    from bids_epvs.train import losses

    keras.utils.set_random_seed(2)
    model = parcellation.build(SMALL, CUBE)
    model.compile(keras.optimizers.Adam(0.03), loss=losses.soft_cross_entropy_and_dice)
    prior = parcellation.priors()[None, 16:32, 40:56, 30:46]
    target = np.roll(prior, 3, axis=2)
    seen = np.repeat(target @ np.linspace(0, 1, len(CLASSES), dtype=np.float32)[:, None], parcellation.CHANNELS, -1)
    found = [float(model.train_on_batch([seen, prior], target)) for _ in range(40)]
    assert found[-1] < 0.7 * found[0]
    path = tmp_path / "w.npz"
    weights.save(model, path)
    other = parcellation.build(SMALL, CUBE)
    weights.load(other, path)
    a, b = (np.asarray(m.predict_on_batch([seen, prior])) for m in (model, other))
    assert np.abs(a - b).max() < 0.1  # float16 on disk
    assert np.mean(np.argmax(a, -1) == np.argmax(b, -1)) > 0.99


def test_loss_by_hand():
    from bids_epvs.train import losses

    target = np.zeros((1, 1, 1, 4, 3), np.float32)
    target[..., :2, 1] = target[..., 2:, 2] = 1
    likely = np.full_like(target, 0.25)
    likely[..., :, 1] = 0.5
    found = float(losses.soft_cross_entropy_and_dice(target, np.log(likely)))
    entropy = -np.mean(np.log([0.5, 0.5, 0.25, 0.25]))
    first = (2 * 2 * 0.5 + 1) / (4 * 0.25 + 2 + 1)
    second = (2 * 2 * 0.25 + 1) / (4 * 0.0625 + 2 + 1)
    assert found == pytest.approx(entropy + 1 - (first + second) / 2, rel=1e-5)


def test_weights_of_another_network_are_refused(small, tmp_path):
    path = tmp_path / "w.npz"
    weights.save(parcellation.build((2, 2, 2), CUBE), path)
    with pytest.raises(DataError, match="another network"):
        weights.load(small, path)
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match="not readable as weights"):
        weights.load(small, path)
    with pytest.raises(DataError, match="not readable as weights"):
        weights.load(small, tmp_path / "absent.npz")


def test_expected_dice_by_hand():
    data = np.zeros((1, 1, 4, 2), np.float32)
    data[0, 0, :, 0] = [1.0, 0.8, 0.4, 0.0]
    data[0, 0, :, 1] = [0.0, 0.1, 0.5, 0.6]
    found = Parcels(nib.Nifti1Image(data, np.eye(4)), (10, 49)).expected_dice()
    assert found[10] == pytest.approx(2 * 1.8 / (2 + 2.2))
    assert found[49] == pytest.approx(2 * 1.1 / (2 + 1.2))


def test_shares_of_a_voxel_by_hand():
    from bids_epvs.train.parcellation import shares

    codes = np.zeros((2, 2, 4), np.uint8)
    codes[0, :, :2] = 3
    codes[..., 3] = 5
    out = shares(codes)
    assert out.shape == (1, 1, 2, len(CLASSES))
    assert out[0, 0, 0, 3] == 0.5
    assert out[0, 0, 0, 0] == 0.5
    assert out[0, 0, 1, 5] == 0.5
    assert np.allclose(out.sum(axis=-1), 1)


def test_where_one_image_ends_the_other_is_asked():
    first, second = (np.full((4, 1, 1, 2), v, np.float32) for v in (0.2, 0.6))
    seen = np.array([True, True, False, False])[:, None, None]
    everywhere = np.ones_like(seen)
    found = looks.averaged([first, second], [everywhere, seen])
    np.testing.assert_allclose(found[:2], 0.4, atol=1e-6)
    np.testing.assert_allclose(found[2:], 0.2, atol=0.01)
    np.testing.assert_allclose(looks.averaged([first, second], [~everywhere, ~everywhere]), 0.4, atol=1e-6)
    assert looks.averaged([second], [seen]) is second
    with pytest.raises(ValueError, match="at least one"):
        looks.agreeing([])


def test_islands_go_and_their_place_is_filled():
    labels = (2, 11)
    data = np.zeros((20, 6, 6, 2), np.float32)
    data[..., 0] = 1
    data[2:8, 1:5, 1:5] = (0.1, 0.9)
    data[15, 3, 3] = (0.3, 0.7)
    data[17, 3, 3] = (0.85, 0.15)
    out = parcellation.without_islands(data, labels)
    assert np.allclose(out.sum(axis=-1), 1)
    assert out[15, 3, 3, 1] == 0
    assert out[15, 3, 3, 0] == 1
    assert np.allclose(out[2:8], data[2:8])
    assert np.allclose(out[17], data[17]), "below the threshold nothing is a piece"


def test_what_there_is_nothing_of_is_refused(small, tmp_path):
    from bids_epvs.train.parcellation import Examples

    with pytest.raises(ValueError, match="at least one image"):
        looks.predict([], np.eye(4), model=small)
    with pytest.raises(DataError, match="no examples"):
        Examples(tmp_path, steps=1)
