"""The training loop: log, weights, card; a killed run goes on where it stopped."""

import csv
import json

import keras
import numpy as np
import pytest

from bids_epvs.models import weights
from bids_epvs.train import loop


class Line(keras.utils.PyDataset):
    """y = 2 x + 1; item `stop` of an epoch kills the run once."""

    def __init__(self, stop=None):
        super().__init__()
        self.asked, self.stop = 0, stop

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.asked += 1
        if self.asked == self.stop:
            raise RuntimeError("killed")
        x = np.random.default_rng(index).normal(size=(16, 1)).astype(np.float32)
        return x, 2 * x + 1


def network():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((1,))
    return keras.Model(inputs, keras.layers.Dense(1)(inputs))


def slope(model):
    return {"slope": float(np.asarray(model.get_weights()[0])[0, 0])}


def train(out, stop=None):
    schedule = loop.Schedule(60, epoch=10, rate=0.3, average=0.5)
    more = {"figures": slope, "architecture": {"units": 1}, "about": {"A": 1}}
    loop.fit(network(), Line(stop), keras.losses.mean_squared_error, schedule, out=out, **more)


def test_a_single_step_is_a_run_too(tmp_path):
    more = {"figures": slope, "architecture": {"units": 1}}
    loop.fit(network(), Line(), keras.losses.mean_squared_error, loop.Schedule(1, epoch=1), out=tmp_path, **more)
    assert len(rows(tmp_path)) == 1


def rows(out):
    return list(csv.DictReader((out / "log.csv").open()))


def test_a_run_learns_and_leaves_log_weights_and_card(tmp_path):
    train(tmp_path)
    log = rows(tmp_path)
    assert [r["epoch"] for r in log] == list("123456")
    assert float(log[-1]["loss"]) < 0.1 * float(log[0]["loss"])
    model = network()
    weights.load(model, tmp_path / "weights.npz")
    assert slope(model)["slope"] == pytest.approx(2, abs=0.2)
    assert slope(model)["slope"] == pytest.approx(float(log[-1]["slope"]), abs=0.01)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["A"] == 1
    assert weights.architecture(tmp_path / "weights.npz") == card["Architecture"] == {"units": 1}
    assert card["SHA256"] == weights.digest(tmp_path / "weights.npz")
    assert card["Schedule"]["steps"] == 60


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(Exception, match="killed"):  # TensorFlow wraps it
        train(tmp_path, stop=45)
    assert 1 <= len(rows(tmp_path)) <= 4, "a backend may fetch ahead"
    assert not (tmp_path / "card.json").exists()
    train(tmp_path)
    assert [r["epoch"] for r in rows(tmp_path)] == list("123456")
    assert (tmp_path / "card.json").exists()


def test_a_run_that_goes_on_draws_what_comes_next(tmp_path):
    (tmp_path / "example-00000.npz").touch()
    drawn = []

    class Numbers(loop.Folder):
        def __getitem__(self, index):
            drawn.append((self.epoch, float(self.rng(index).random())))
            return np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)

    more = {"figures": slope, "architecture": {"units": 1}}
    for steps in (10, 20):  # the second run finds the checkpoint of the first
        data = Numbers(tmp_path, steps=5, seed=2)
        schedule = loop.Schedule(steps, epoch=5, rate=0.1)
        (tmp_path / "out" / "card.json").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keras.callbacks.BackupAndRestore, "on_train_end", lambda *_: None)  # as if killed
            loop.fit(network(), data, keras.losses.mean_squared_error, schedule, out=tmp_path / "out", **more)
    assert {epoch for epoch, _ in drawn} == {0, 1, 2, 3}
    late = {value for epoch, value in drawn if epoch == 3}
    assert len(late) == 5
    assert not late & {value for epoch, value in drawn if epoch < 3}


def test_training_stops_in_time_and_keeps_the_best(tmp_path):
    figures = iter([0.3, 0.5, 0.4, 0.45, 0.9, 0.9])
    schedule = loop.Schedule(60, epoch=10, rate=0.3, average=0.5, patience=2)
    more = {"figures": lambda _: {"score": next(figures)}, "architecture": {"units": 1}}
    saved = []
    original = weights.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "save", lambda *a: saved.append(len(rows(tmp_path))) or original(*a))
        loop.fit(network(), Line(), keras.losses.mean_squared_error, schedule, out=tmp_path, **more)
    assert [float(r["score"]) for r in rows(tmp_path)] == [0.3, 0.5, 0.4, 0.45], "two judgements no better: it stops"
    assert saved == [1, 2], "written after the first and the second epoch, the best one"
    assert json.loads((tmp_path / "card.json").read_text())["HeldOutBest"] == 0.5


def test_statistics_are_those_of_the_averaged_weights(rng):
    """Batch normalisation after a layer whose weights were changed behind its back."""

    class Data(keras.utils.PyDataset):
        items = rng.normal(3, 2, (20, 64, 5)).astype(np.float32)

        def __len__(self):
            return 20

        def __getitem__(self, index):
            return self.items[index], self.items[index]

    seen = keras.Input((5,))
    dense, norm = keras.layers.Dense(5, kernel_initializer="identity"), keras.layers.BatchNormalization(momentum=0.9)
    model = keras.Model(seen, norm(dense(seen)))
    dense.set_weights([4 * np.eye(5), np.ones(5)])
    loop.settle(model, Data(), batches=20)
    values = 4 * Data.items.reshape(-1, 5) + 1
    np.testing.assert_allclose(np.asarray(norm.moving_mean), values.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(np.asarray(norm.moving_variance), values.var(axis=0), rtol=0.05)
    assert norm.momentum == 0.9
    loop.settle(keras.Model(seen, dense(seen)), Data())  # nothing to measure
