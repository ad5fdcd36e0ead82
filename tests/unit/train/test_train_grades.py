"""Examples, training and calibration of the networks that rate."""

import numpy as np
import pytest

from bids_epvs.models import rating2d, resnet152, weights
from bids_epvs.synth import anatomy, grades, scene, volumes
from bids_epvs.train import grades as training
from bids_epvs.train import loop


@pytest.fixture(scope="module")
def simulated():
    head = volumes.near_brain(anatomy.average())
    made = scene.build(np.random.default_rng(4), head, counts={}, age=60.0, fine_mm=1.0)
    return grades.slab(made)


@pytest.mark.parametrize("kind", ["research", "clinical"])
def test_an_example_shows_the_epvs_it_counts(simulated, kind, rng, monkeypatch):
    monkeypatch.setattr(grades, "NONE", 0.0)
    monkeypatch.setattr(grades, "FEWEST", 100)
    monkeypatch.setattr(grades, "MANY", 100)
    full = grades.filled(rng, simulated)
    made = grades.example(rng, full, kind)
    n = len(made["counts"])
    assert made["plain"].shape == made["sharp"].shape == made["inside"].shape == (n, *rating2d.SIZE)
    assert made["box"].shape == made["basal"].shape == made["epvs"].shape == resnet152.SHAPE
    assert 4 <= n <= 6 and made["counts"].sum() > 5 and made["fullest"] >= made["counts"].max()
    assert made["basal"].sum() * np.prod(resnet152.STEP_MM) > 20e3, "mm3"
    assert not (made["epvs"] & ~made["basal"]).sum() > 0.2 * made["epvs"].sum()
    box = made["box"].astype(float)
    assert np.median(box[made["epvs"]]) > np.median(box[made["basal"] & ~made["epvs"]]) + 10


def test_a_slab_without_draws_is_empty(simulated, rng, monkeypatch):
    monkeypatch.setattr(grades, "NONE", 1.0)
    made = grades.example(rng, grades.filled(rng, simulated), "clinical")
    assert made["counts"].max() == 0 and made["fullest"] == 0 and not made["epvs"].any()


@pytest.fixture
def folder(tmp_path, rng):
    """Examples in which the grade is the brightness of the image."""
    for k in range(12):
        count = (0, 5, 15, 30, 60)[k % 5]
        level = 20 + 50 * (k % 5)
        noise = rng.integers(0, 15, (6, *rating2d.SIZE))
        plain = (level + noise).astype(np.uint8)
        box = (level + rng.integers(0, 15, (32, 32, 16))).astype(np.uint8)
        np.savez(
            tmp_path / f"example-{k:05d}.npz",
            plain=255 - plain,
            sharp=plain,
            inside=np.full(plain.shape, 255, np.uint8),
            counts=np.full(6, count, np.int16),
            box=box,
            fullest=np.int16(count),
        )
    return tmp_path


def test_grades_are_drawn_about_equally_often(folder):
    data = training.Images(folder, steps=2, batch=200, seed=1)
    seen, target = data[0]
    assert seen.shape == (200, *rating2d.SIZE, 2) and seen.dtype == np.float32
    assert target.sum(axis=0).min() > 20
    order = seen[..., 0].mean(axis=(1, 2))
    assert np.corrcoef(order, target.argmax(axis=1))[0, 1] > 0.9
    plain, same = training.Images(folder, steps=2, batch=200, seed=1, enhanced=False)[0]
    assert np.corrcoef(plain[..., 0].mean(axis=(1, 2)), same.argmax(axis=1))[0, 1] < -0.9


@pytest.mark.parametrize("count", [0, 1, 4, 10, 11, 15, 20, 21, 29, 40, 41, 90])
def test_near_a_border_both_grades_are_likely(count):
    found = training.likely_grades(count)
    assert found.shape == (5,) and found.sum() == pytest.approx(1, abs=1e-5)
    assert found.argmax() == training.grade(count)
    near = min(abs(count - b) for b in (10.5, 20.5, 40.5))
    assert (np.sort(found)[-2] > 0.3) == (near < 1)


def test_targets_tell_how_near_a_count_is_to_the_next_grade(folder):
    path = folder / "example-00000.npz"
    with np.load(path) as stored:
        known = dict(stored)
    np.savez(path, **{**known, "counts": np.array([3, 10, 12, 19, 30, 44], np.int16), "fullest": np.int16(11)})
    _, grades, targets = training.Images(folder, steps=1).read(path)
    np.testing.assert_array_equal(grades, targets.argmax(axis=1))
    assert targets[0, 1] > 0.95 > 0.7 > targets[1, 1] > 0.5 and targets[3, 3] > 0.2
    _, severe, chance = training.Boxes(folder, steps=1).read(path)
    assert severe[0] == 1 and 0.5 < chance[0, 0] < 0.7
    given = {**known, "grades": np.full(6, 2), "severe": np.int16(1)}
    np.savez(path, **{k: v for k, v in given.items() if k not in ("counts", "fullest")})
    assert (training.Images(folder, steps=1).read(path)[2] == np.eye(5)[2]).all(), (
        "grades by a person are what they are"
    )
    assert training.Boxes(folder, steps=1).read(path)[2][0, 0] == 1


def test_the_rating_network_learns_and_is_calibrated(folder, tmp_path):
    out = tmp_path / "run"
    schedule, widths = loop.Schedule(200, epoch=100, rate=1e-2, average=0.9), (8, 8, 8, 8, 8)
    training.train_rating2d(folder, folder, out, schedule, batch=8, widths=widths)
    stored = weights.calibration(out / "weights.npz")
    assert stored["haar"] is True and stored["temperature"] > 0 and 0 < stored["alike"] < 2
    model = rating2d.build(widths)
    weights.load(model, out / "weights.npz")
    found = training.image_and_subject(training.rated(model, sorted(folder.glob("example-*.npz"))))
    assert found["kappa"] > 0.6, found


def test_the_severity_network_is_trained_and_calibrated(folder, tmp_path):
    out = tmp_path / "run"
    schedule = loop.Schedule(4, epoch=2, rate=3e-3, average=0.5)
    training.train_resnet152(folder, folder, out, schedule, batch=8, widths=(2,), depth=50, stride_z=1)
    assert weights.architecture(out / "weights.npz") == {"depth": 50, "width": 2, "stride_z": 1}
    assert set(weights.calibration(out / "weights.npz")) == {"slope", "offset", "n"}


def test_platt_scaling_undoes_a_wrong_scale(rng):
    z = rng.normal(0, 2, 4000)
    truth = (rng.random(4000) < 1 / (1 + np.exp(-z))).astype(int)
    found = training.platt(truth, 1 / (1 + np.exp(-(2 * z + 1))))
    assert found["slope"] == pytest.approx(0.5, abs=0.05)
    assert found["offset"] == pytest.approx(-0.5, abs=0.1)


def test_temperature_undoes_a_wrong_scale(rng):
    logits = rng.normal(0, 2, (3000, 5))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    grade = np.array([rng.choice(5, p=p) for p in chance])
    sharp = rating2d.cooled(chance, 0.5)
    assert training.temperature([(grade, sharp)]) == pytest.approx(2.0, rel=0.1)


def test_figures_of_known_answers():
    truth = [np.array([0, 2]), np.array([1, 1]), np.array([3, 4])]
    found = [(t, np.eye(5)[t]) for t in truth]
    assert training.image_and_subject(found) == {"kappa": 1.0, "accuracy": 1.0, "accuracy_images": 1.0, "rps": 0.0}
    wrong = [(t, np.eye(5)[[0, 0]]) for t in truth]
    assert training.image_and_subject(wrong)["accuracy"] == 0


def test_figures_are_of_calibrated_grades(rng):
    """Six images of each subject err in the same way, so that the highest of them would be too high."""
    found = []
    for grade in np.repeat([1, 2, 3], 40):
        chances = np.full((6, 5), 1e-3)
        chances[:, grade], chances[:, grade + 1] = 0.65, 0.35
        chances[rng.integers(6), [grade, grade + 1]] = 0.45, 0.55
        found.append((np.full(6, grade), chances / chances.sum(axis=1, keepdims=True)))
    assert training.image_and_subject(found)["accuracy"] < 0.1
    assert training.settled(found, enhanced=True)["accuracy"] > 0.9


def test_a_deeper_network_goes_on_from_a_shallow_one(rng):
    shallow, deep = (resnet152.build(depth, width=2, stride_z=1) for depth in (50, 101))
    seen = rng.random((4, 32, 32, 4, 1)).astype(np.float32)
    settled(shallow, seen)
    before, random = shallow.predict_on_batch(seen), deep.predict_on_batch(seen)
    training.deepened(deep, shallow)
    settled(deep, seen)
    assert np.abs(deep.predict_on_batch(seen) - before).max() < 0.1 < np.abs(random - before).max()
    grown = deep.get_layer("stage3_unit20_3_normalisation")
    assert np.allclose(grown.get_weights()[0], training.FAINT)


def settled(model, seen):
    """With the statistics of one batch."""
    for layer in model.layers:
        if hasattr(layer, "momentum"):
            layer.momentum = 0.0
    model(seen, training=True)
