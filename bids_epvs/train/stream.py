"""Training by the clock on batches that are made as they are needed (`synth.stream`), on a GPU lent for minutes."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bids_epvs.models import nuclei, parcellation, slices
from bids_epvs.train import loop, losses
from bids_epvs.train import nuclei as boxes
from bids_epvs.train import slices as planes
from bids_epvs.train.parcellation import JUDGED, agreement

logger = logging.getLogger(__name__)

Item = tuple[Sequence[Any], Any]
"""Inputs and target of one update, tensors."""
NETWORKS: dict[str, tuple[Callable[..., keras.Model], tuple[int, ...], tuple[str, ...]]] = {
    parcellation.NAME: (parcellation.build, parcellation.WIDTHS, JUDGED),
    nuclei.NAME: (nuclei.build, nuclei.WIDTHS, boxes.JUDGED),
    slices.NAME: (slices.build, slices.WIDTHS, planes.JUDGED),
}
"""How each network is built, its usual widths, and the classes whose mean Dice is its figure."""


@dataclass(frozen=True)
class Clock:
    """How long to train.

    Attributes
    ----------
    minutes : float
        From the first update on.
    every : float
        Minutes between two judgements, after which the averaged weights are kept.
    rate : float
        Peak learning rate of Adam; it rises over the first 3 % of the time and falls as a cosine over the rest.
    average : float
        Momentum of the moving average of the weights.
    repeat : int
        Updates with each batch: with the new one, then with some of those that are kept.
    kept : int
        Batches kept.
    seed : int
    """

    minutes: float
    every: float = 1.0
    rate: float = 2e-3
    average: float = 0.998
    repeat: int = 2
    kept: int = 24
    seed: int = 1

    def rate_at(self, share: float) -> float:
        """Learning rate when a share of the time is over.

        >>> [round(Clock(1, rate=1.0).rate_at(s), 2) for s in (0, 0.03, 0.515, 1)]
        [0.02, 1.0, 0.5, 0.01]
        """
        if share < 0.03:
            return self.rate * max(0.02, share / 0.03)
        return self.rate * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(1.0, (share - 0.03) / 0.97)))


def updates(draw: Callable[[np.random.Generator], list[Item]], clock: Clock) -> Iterator[Item]:
    """Items for ever: each new one, and after it others that are not long ago."""
    rng = np.random.default_rng(clock.seed)
    kept: deque[Item] = deque(maxlen=clock.kept)
    while True:
        with loop.without_gradients():
            new = draw(rng)
        kept.extend(new)
        yield from new
        for _ in range((clock.repeat - 1) * len(new)):
            yield kept[rng.integers(len(kept))]


def dice(model: keras.Model, items: Sequence[Item], judged: Sequence[str], number: int) -> dict[str, float]:
    """Mean Dice of the judged classes, and that of each, over all items together; pixels with no target do not count.

    Parameters
    ----------
    model : keras.Model
    items : sequence of Item
    judged : sequence of str
    number : int
        Classes.
    """

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for given, target in items:
            with loop.without_gradients():
                made = keras.ops.argmax(model(list(given), training=False), axis=-1)
                true, there = keras.ops.argmax(target, axis=-1), keras.ops.sum(target, axis=-1) > 0
            made, true, there = (keras.ops.convert_to_numpy(v) for v in (made, true, there))
            yield made[there], true[there]

    each = agreement(pairs(), number)
    return {"dice": float(np.mean([each[f"dice_{n}"] for n in judged])), **each}


def fit(
    name: str,
    draw: Callable[[np.random.Generator], list[Item]],
    judges: Sequence[Item],
    out: Path,
    clock: Clock,
    *,
    widths: tuple[int, ...] | None = None,
    sharp: int | None = None,
    init: Path | None = None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Train a network for some minutes.

    Parameters
    ----------
    name : str
        Of `NETWORKS`.
    draw : callable
        Random generator to new items.
    judges : sequence of Item
        Of subjects held out.
    out : Path
        Gets ``log.csv``, ``weights.npz`` (averaged) and ``card.json`` at each judgement; what was there is replaced.
    clock : Clock
    widths : tuple of int, optional
        Filters of each level; by default those of `init`, or the usual ones.
    sharp : int, optional
        Filters of the last look of a network that has one.
    init : Path, optional
        Weights to begin with.
    about : mapping, optional
        Goes into the card.
    """
    build, usual, judged = NETWORKS[name]
    keras.utils.set_random_seed(clock.seed)
    if len(judges[0][1].shape) == 5:  # slices come in many sizes
        loop.tuned()
    model, architecture = loop.started(build, usual, widths, init, sharp, grows=True)
    adam = keras.optimizers.Adam(clock.rate, global_clipnorm=1.0, use_ema=True, ema_momentum=clock.average)
    model.compile(optimizer=adam, loss=losses.soft_cross_entropy_and_dice, jit_compile=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.csv").unlink(missing_ok=True)
    length, number, recent = 60 * clock.minutes, int(judges[0][1].shape[-1]), deque[float](maxlen=200)
    start, judged_at = time.monotonic(), -math.inf
    for steps, (given, target) in enumerate(updates(draw, clock)):
        spent = time.monotonic() - start if steps else 0.0
        if not steps:
            start = time.monotonic()  # the first batch may take long
        if spent > length or spent > judged_at + 60 * clock.every:
            judged_at = spent
            own = model.get_weights()
            if steps:
                adam.finalize_variable_values(model.trainable_variables)
            figures = dice(model, judges, judged, number)
            row = {"minutes": spent / 60, "steps": steps, "loss": float(np.mean(recent or [0.0])), **figures}
            row = {k: round(float(v), 5) for k, v in row.items()}
            loop.keep(model, out / "weights.npz", architecture)
            loop.log(out / "log.csv", row)
            loop.write_card(model, out, architecture, clock, {"Model": name, **(about or {})}, {"HeldOut": row})
            model.set_weights(own)
            logger.info("%.1f min, %d steps, loss %.4f, Dice %.4f", *list(row.values())[:4])
            if spent > length:
                return
        adam.learning_rate.assign(clock.rate_at(spent / length))
        recent.append(float(np.ravel(model.train_on_batch(list(given), target))[0]))
