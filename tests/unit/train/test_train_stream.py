"""Training by the clock: what is kept, and that something is learnt."""

import csv
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from bids_epvs.models import slices, weights

weights.configure()
import keras  # noqa: E402

from bids_epvs.train import stream  # noqa: E402

CLASSES = len(slices.CLASSES)


def item(rng):
    """Slices whose class is white matter where they are bright, fluid elsewhere; what is known says neither."""
    bright = rng.random((2, 16, 16)) > 0.5
    seen = np.zeros((2, 16, 16, slices.CHANNELS), np.float32)
    seen[..., 0] = bright
    known = np.full((2, 16, 16, CLASSES), 1 / CLASSES, np.float32)
    target = np.eye(CLASSES, dtype=np.float32)[np.where(bright, 1, 4)]
    return tuple(keras.ops.convert_to_tensor(v) for v in (seen, known)), keras.ops.convert_to_tensor(target)


def test_batches_are_new_and_then_kept_ones():
    made = []

    def draw(rng):
        made.append(float(rng.random()))
        return [((made[-1],), None)]

    found = stream.updates(draw, stream.Clock(1, repeat=3, kept=2))
    first = [next(found)[0][0] for _ in range(9)]
    assert first[::3] == made
    assert all(value in made[: k // 3 + 1][-2:] for k, value in enumerate(first))


def test_pixels_without_target_do_not_count():
    (seen, known), target = item(np.random.default_rng(0))
    target = np.array(target)
    target[:, :, 8:] = 0
    model = slices.build((2, 2))

    class Right:
        def __call__(self, given, training):
            logits = np.array(target)
            logits[:, :, 8:, 7] = 5
            return keras.ops.convert_to_tensor(logits)

    figures = stream.dice(Right(), [((seen, known), keras.ops.convert_to_tensor(target))], ["OtherCSF"], CLASSES)
    assert figures["dice"] == 1
    assert figures["dice_Thalamus"] == 0
    assert stream.dice(model, [((seen, known), keras.ops.convert_to_tensor(target))], ["OtherCSF"], CLASSES)["dice"] < 1


def test_a_network_learns_and_is_kept(tmp_path, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))  # an update a second
    clock = stream.Clock(3, every=1, rate=1e-2, average=0.9)
    judges = [item(np.random.default_rng(99))]
    stream.fit("slices", lambda rng: [item(rng)], judges, tmp_path, clock, widths=(4, 4), about={"Limits": "none"})
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert [float(rows[0]["steps"]), float(rows[-1]["minutes"])] == [0, pytest.approx(3, abs=0.1)]
    wanted = [float(row["dice_CerebralWhiteMatter"]) + float(row["dice_OtherCSF"]) for row in rows]
    assert wanted[-1] > 1.8 > wanted[0]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["Limits"] == "none"
    assert card["SHA256"] == weights.digest(tmp_path / "weights.npz")
    assert card["Schedule"]["minutes"] == 3
    again = slices.network(tmp_path / "weights.npz")
    figures = stream.dice(again, judges, stream.NETWORKS["slices"][2], CLASSES)
    assert figures["dice_OtherCSF"] == pytest.approx(float(rows[-1]["dice_OtherCSF"]), abs=0.02)
