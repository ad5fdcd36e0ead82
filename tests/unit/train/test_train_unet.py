"""Crops, calibration and threshold of the segmentation network."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.errors import DataError
from bids_epvs.models import pieces, unet, weights
from bids_epvs.train import loop
from bids_epvs.train import unet as training

SHAPE, SPACING = (60, 70, 12), (0.5, 0.5, 4.0)


@pytest.fixture
def path(tmp_path, rng):
    """An example on disk whose T2w shows exactly the EPVS."""
    fraction = np.zeros(SHAPE, np.uint8)
    index = np.zeros(SHAPE, np.uint16)
    for n in range(1, 13):
        x, y, z = rng.integers(5, 50), rng.integers(5, 60), rng.integers(1, 11)
        fraction[x : x + 3, y : y + 3, z], index[x : x + 3, y : y + 3, z] = 255, n
    images = np.full((*SHAPE, 4), 109, np.uint8)  # white matter
    images[..., 0] = np.where(fraction > 0, 220, 109)
    regions = np.zeros(SHAPE, np.uint8)
    regions[4:56, 4:66, 1:11] = 3
    arrays = {"images": images, "fraction": fraction, "index": index, "regions": regions}
    file = tmp_path / "example-00000.npz"
    np.savez(file, **arrays, csf=np.zeros(SHAPE, bool), spacing=np.array(SPACING, np.float32))
    return file


def test_a_crop_keeps_image_and_truth_together(path, rng):
    example = training.read(path)
    combinations = set()
    for _ in range(60):
        seen, target = training.crop(rng, example, 32)
        assert seen.shape == (32, 32, unet.CHANNELS)
        names = tuple(n for n, there in zip(unet.SEQUENCES, seen[0, 0, -6:-2], strict=True) if there)
        combinations.add(names)
        middle = seen[..., len(unet.SEQUENCES) * unet.REACH]
        if "T2w" in names and target[..., 0].max() > 0.9:
            assert middle[target[..., 0] > 0.9].min() > middle[target[..., 0] == 0].max()
        for channel, name in enumerate(unet.SEQUENCES):
            if name not in names:
                assert not seen[..., channel : 4 * (2 * unet.REACH + 1) : 4].any()
    assert combinations == set(unet.COMBINATIONS)


def test_batches_differ_by_index_and_not_by_call(path):
    data = training.Examples(path.parent, steps=3, batch=2, seed=5)
    first, again, other = data[0], data[0], data[1]
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    with pytest.raises(DataError, match="no examples"):
        training.Examples(path.parent / "none", steps=1)


def test_slope_and_offset_are_recovered(rng):
    logit = rng.normal(-3, 3, 40_000)
    share = (rng.random(40_000) < 1 / (1 + np.exp(-(0.6 * logit + 0.8)))).astype(float)
    slope, offset = training.fitted(logit, share)
    assert slope == pytest.approx(0.6, abs=0.03)
    assert offset == pytest.approx(0.8, abs=0.08)


class Sees:
    """A network that marks what is bright on T2w, and half of the time a voxel that is not."""

    def predict_on_batch(self, seen):
        t2w = seen[..., len(unet.SEQUENCES) * unet.REACH, None]
        return np.where(t2w > 1, 3.0, np.where(t2w < -0.5, -0.5, -4.0)).astype(np.float32)


def test_calibration_makes_counts_right(path):
    assert 8 <= len(training.seen(Sees(), path, ("T2w",)).shown) <= 12
    found = training.calibrate(Sees(), [path])
    assert set(found) == {"thick"}
    assert set(found["thick"]) == {"+".join(names) for names in unet.COMBINATIONS}
    assert found["thick"]["T2w"]["count_ratio"] == pytest.approx(1, abs=0.2)
    assert found["thick"]["T2w"]["ece"] < 0.01
    assert found["thick"]["T2w"]["lesion_missed"] == 0
    assert found["thick"]["FLAIR"]["lesion_missed"] > 5, "FLAIR shows nothing: all are missed"
    example = training.read(path)
    made = unet.logits(Sees(), training.as_volume(example, ("T2w",)), unet.marks(("T2w",), SPACING))
    likely = unet.probabilities(made, found["thick"]["T2w"])
    assert likely[example.fraction > 0].mean() > 0.9
    assert likely.sum() == pytest.approx((example.fraction / 255).sum(), rel=0.1), "shares add up to the volume"
    assert training.dice(Loud(), [example])["dice_thick_T2w"] == 1


class Loud(Sees):
    """The same through the other door of Keras."""

    def predict(self, seen, **_):
        return self.predict_on_batch(seen)


def test_masks_are_thinned_until_their_volume_is_right(rng):
    """Wide soft lines: a threshold low enough for faint ones makes clear ones three times too wide."""
    share = np.zeros((60, 60, 40), np.float32)
    index = np.zeros(share.shape, np.int32)
    for n, (x, y) in enumerate([(10, 10), (10, 30), (30, 10), (30, 30), (45, 45)], start=1):
        share[x, y, 5:35], index[x, y, 5:35] = 1, n
    soft = ndimage.gaussian_filter(share, 0.9)
    soft = 0.9 * soft / soft.max()
    soft[40:] *= 0.4
    soft[52:56, 10:13, 10:13] = 0.25
    row = training.Seen(np.zeros_like(soft), np.ones(soft.shape, bool), share, index, (0.7, 0.7, 0.7))
    found = training.thinned([row], [soft])
    assert found["count_ratio"] == 1
    assert 0.33 < found["threshold"] <= 0.36 < found["extent"], "the highest at which the faint one is found"
    mask = pieces.marked(soft, found["threshold"], found["extent"])
    assert mask.sum() / share.sum() == pytest.approx(found["volume_ratio"])
    assert found["volume_ratio"] == pytest.approx(1, abs=0.2)
    assert (soft >= found["threshold"]).sum() > 2 * mask.sum()


def test_lesions_are_judged_by_what_lies_near(path):
    one = training.seen(Sees(), path, ("T2w",))
    likely = np.where(one.index > 0, 0.8, 0.0)
    likely[one.index == one.shown[0]] = 0
    wrong = tuple(np.argwhere(ndimage.distance_transform_edt(one.index == 0, sampling=SPACING) > 5)[0])
    likely[wrong] = 0.4
    p, right, missed = training.lesions_judged(one, likely, 0.3)
    assert missed == 1
    assert (~right).sum() == 1
    assert p[~right] == pytest.approx(0.4)
    assert training.lesions_judged(one, 0 * likely, 0.3)[2] == len(one.shown)


def test_calibration_error_is_the_mean_gap(path):
    one = training.seen(Sees(), path, ("T2w",))
    flat = replace(one, logit=np.zeros_like(one.logit))
    gap = training.reliability([flat], {"slope": 1, "offset": 0})
    assert gap == pytest.approx(0.5 - one.share[one.inside].mean(), abs=1e-4)


def test_a_wider_network_goes_on_from_a_narrower_one(path, tmp_path, monkeypatch):
    weights.save(unet.build((2, 3)), tmp_path / "narrow.npz", {"widths": (2, 3)})
    monkeypatch.setattr(training, "calibrate", lambda *_: {})
    init, short = tmp_path / "narrow.npz", loop.Schedule(1, epoch=1)
    training.train(path.parent, path.parent, tmp_path / "out", short, batch=1, widths=(4, 3), init=init)
    assert tuple(weights.architecture(tmp_path / "out" / "weights.npz")["widths"]) == (4, 3)
