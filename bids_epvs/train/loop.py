"""The training loop of every network: Keras `fit`, resumable, with averaged weights and a log of held-out figures."""

from __future__ import annotations

import csv
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bids_epvs import __version__
from bids_epvs.errors import DataError
from bids_epvs.models import weights
from bids_epvs.train import widen

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes
    ----------
    steps : int
        Updates in all.
    epoch : int
        Updates between two judgements and checkpoints.
    rate : float
        Peak learning rate of Adam; it rises over the first 5 % and falls as a cosine over the rest.
    average : float
        Momentum of the moving average of the weights.
    patience : int
        Judgements without a better first figure after which training stops, the best weights kept; 0: never.
    seed : int
    """

    steps: int
    epoch: int = 100
    rate: float = 1e-3
    average: float = 0.998
    patience: int = 0
    seed: int = 0

    @property
    def epochs(self) -> int:
        """Number of epochs, at least 1."""
        return max(1, self.steps // self.epoch)


class Folder(keras.utils.PyDataset):
    """Items drawn from the examples in a folder, which may still be growing; subclasses say how to draw.

    Parameters
    ----------
    folder : Path
    steps : int
        Items an epoch.
    batch : int
    seed : int
    """

    def __init__(self, folder: Path, *, steps: int, batch: int = 1, seed: int = 0) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=4)
        self.folder, self.steps, self.batch, self.seed = folder, steps, batch, seed
        self.epoch = -1
        self.files: list[Path] = []
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        """Look for new examples."""
        self.epoch += 1
        self.files = sorted(self.folder.glob("example-*.npz"))
        if not self.files:
            raise DataError("no examples.", where=self.folder, remedy="Make them with bids_epvs-train.")

    def __len__(self) -> int:
        return self.steps

    def rng(self, index: int) -> np.random.Generator:
        """A generator for one item of this epoch."""
        return np.random.default_rng([self.seed, self.epoch, index])


def started(
    build: Callable[..., keras.Model],
    default: tuple[int, ...],
    widths: tuple[int, ...] | None,
    init: Path | None,
    sharp: int | None = None,
    *,
    grows: bool = False,
) -> tuple[keras.Model, dict[str, Any]]:
    """The network to train, with the parameters of `init` where given, and the arguments it was built with.

    Its filters are those asked for, or else those of `init`, or else the default ones; where a network `grows`, a wider
    one than that of `init` begins as that one (`widen.grown`).

    Raises
    ------
    DataError
        The parameters do not fit.
    """
    stored = weights.architecture(init) if init else {}
    architecture = {"widths": default, **stored}
    asked = {"widths": widths, "sharp": sharp}
    architecture |= {name: value for name, value in asked.items() if value is not None}
    model = build(**architecture)
    narrow = {"widths": default, **stored}
    if init and (narrow == architecture or not grows):
        weights.load(model, init)
    elif init:
        old = build(**narrow)
        weights.load(old, init)
        try:
            widen.grown(old, model, narrow["widths"], architecture["widths"])
        except ValueError as error:
            raise DataError(f"this network cannot begin another one: {error}.", where=init) from error
    return model, architecture


class Judge(keras.callbacks.Callback):
    """Loss and figures of the averaged weights on held-out data, a row of ``log.csv`` an epoch; stops in time."""

    def __init__(
        self, figures: Callable[[keras.Model], Mapping[str, float]], path: Path, *, every: int = 1, patience: int = 0
    ) -> None:
        super().__init__()
        self.figures, self.path, self.every, self.patience = figures, path, every, patience
        self.last: dict[str, float] = {}
        self.best, self.worse, self.improved = -float("inf"), 0, True

    def on_train_begin(self, logs: dict | None = None) -> None:
        """A run that goes on knows how good it was."""
        if self.patience and self.path.exists():
            with open(self.path, newline="") as file:
                first = [float(list(row.values())[2]) for row in csv.DictReader(file)]
            self.best = max(first, default=self.best)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Judge at every so many epochs; a row either way."""
        if epoch % self.every == self.every - 1 or not self.last:
            self.last = {k: round(float(v), 4) for k, v in self.figures(self.model).items()}
            logger.info("epoch %d: %s", epoch + 1, self.last)
            first = next(iter(self.last.values()), 0.0)
            self.improved = first > self.best
            self.best, self.worse = max(first, self.best), 0 if self.improved else self.worse + 1
            if self.patience and self.worse >= self.patience:
                logger.info("stopped: no better for %d judgements", self.worse)
                self.model.stop_training = True
        log(self.path, {"epoch": epoch + 1, "loss": round(float((logs or {})["loss"]), 5), **self.last})


def log(path: Path, row: Mapping[str, object]) -> None:
    """Add a row to a CSV file, which begins with the names of its columns."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def keep(model: keras.Model, path: Path, architecture: Mapping[str, Any]) -> None:
    """Weights in one piece: to a temporary name, then renamed."""
    draft = path.with_suffix(".tmp")
    weights.save(model, draft, architecture)
    draft.replace(path)


def write_card(
    model: keras.Model,
    out: Path,
    architecture: Mapping[str, Any],
    schedule: Any,
    about: Mapping[str, object] | None,
    figures: Mapping[str, object],
) -> None:
    """``card.json`` beside ``weights.npz``; `schedule` is a dataclass."""
    card = {
        **(about or {}),
        "Command": " ".join(sys.argv),
        "Version": __version__,
        "Backend": keras.backend.backend(),
        "Architecture": dict(architecture),
        "Schedule": asdict(schedule),
        "Parameters": model.count_params(),
        **figures,
        "SHA256": weights.digest(out / "weights.npz"),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def settle(model: keras.Model, data: keras.utils.PyDataset, *, batches: int = 100) -> None:
    """Measure the statistics of batch normalisation anew, for averaged weights.

    What training has collected belongs to the weights of each step, not to their average; with it, averaged weights
    answer with a bias until the rate has fallen to nothing (Izmailov et al. 2018, arXiv:1803.05407).
    """
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not layers:
        return
    before = [layer.momentum for layer in layers]
    with without_gradients():
        for k in range(batches):
            for layer in layers:
                layer.momentum = k / (k + 1)  # the mean over batches
            model(data[k % len(data)][0], training=True)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum


def tuned() -> None:
    """Let torch try the ways to convolve on a GPU and keep the fastest: shapes of batches are few."""
    if keras.backend.backend() == "torch":
        import torch

        torch.backends.cudnn.benchmark = True


def without_gradients() -> AbstractContextManager[object]:
    """Where nothing is kept for gradients; torch would keep every batch, as the statistics of one need those before."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


class Settle(keras.callbacks.Callback):
    """`settle` after each epoch, when the averaged weights are in place."""

    def __init__(self, data: keras.utils.PyDataset) -> None:
        super().__init__()
        self.data = data

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Before anything is judged or kept."""
        settle(self.model, self.data, batches=min(100, len(self.data)))


class Follow(keras.callbacks.Callback):
    """Tells the data which epoch it is: a run that goes on draws what it would have drawn, not its beginning again."""

    def __init__(self, data: keras.utils.PyDataset) -> None:
        super().__init__()
        self.data = data

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Counted from the start of the first run."""
        if isinstance(self.data, Folder):
            self.data.epoch = epoch


class Keep(keras.callbacks.Callback):
    """Averaged weights on disk after each epoch (the best ones where training stops early)."""

    def __init__(self, path: Path, architecture: Mapping[str, Any], judge: Judge) -> None:
        super().__init__()
        self.path, self.architecture, self.judge = path, architecture, judge

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Unless older ones are better."""
        if self.judge.patience and self.path.exists() and not self.judge.improved:
            return
        keep(self.model, self.path, self.architecture)


def fit(
    model: keras.Model,
    data: keras.utils.PyDataset,
    loss: Callable[[Any, Any], Any],
    schedule: Schedule,
    *,
    out: Path,
    figures: Callable[[keras.Model], Mapping[str, float]],
    architecture: Mapping[str, Any],
    judge_every: int = 1,
    calibrate: Callable[[keras.Model], Mapping[str, Any]] | None = None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Train, or go on training where a killed run stopped.

    Parameters
    ----------
    model : keras.Model
    data : PyDataset
        ``len(data)`` is `schedule.epoch`.
    loss : callable
    schedule : Schedule
    out : Path
        Gets ``log.csv`` (loss and held-out figures an epoch), ``weights.npz`` (averaged), ``card.json`` and, while
        training, a checkpoint.
    figures : callable
        Model to held-out figures.
    architecture : mapping
        Arguments that the network was built with; kept with its weights.
    judge_every : int
        Epochs between two judgements.
    calibrate : callable, optional
        Model, at the end, to what is kept with its weights: measured on held-out data, JSON.
    about : mapping, optional
        Goes into the card: data, licence, limits.
    """
    out.mkdir(parents=True, exist_ok=True)
    warm = max(1, schedule.steps // 20)
    rate = keras.optimizers.schedules.CosineDecay(
        schedule.rate / 50, max(1, schedule.steps - warm), alpha=0.01, warmup_target=schedule.rate, warmup_steps=warm
    )
    adam = keras.optimizers.Adam(rate, global_clipnorm=1.0, use_ema=True, ema_momentum=schedule.average)
    model.compile(optimizer=adam, loss=loss, jit_compile=False)
    judge = Judge(figures, out / "log.csv", every=judge_every, patience=schedule.patience)
    started = time.monotonic()
    model.fit(
        data,
        epochs=schedule.epochs,
        verbose=1 if sys.stderr.isatty() else 2,
        callbacks=[
            keras.callbacks.BackupAndRestore(str(out / "checkpoint")),
            Follow(data),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            Settle(data),
            judge,
            Keep(out / "weights.npz", architecture, judge),
        ],
    )
    if calibrate:
        weights.load(model, out / "weights.npz")
        weights.save(model, out / "weights.npz", architecture, calibrate(model))
    figures_of_run = {
        "HoursSinceLastStart": round((time.monotonic() - started) / 3600, 2),
        "HeldOut": judge.last,
        "HeldOutBest": judge.best,
        "Calibration": weights.calibration(out / "weights.npz"),
    }
    write_card(model, out, architecture, schedule, about, figures_of_run)
