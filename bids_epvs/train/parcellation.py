"""Train the parcellation network on the examples of `synth.parcels`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import keras
import numpy as np

from bids_epvs.models import parcellation
from bids_epvs.prepare import fields
from bids_epvs.train import loop, losses

JUDGED = tuple(n for n in parcellation.NAMES if n not in ("Background", "OtherSide"))
"""Classes whose mean Dice is logged as the figure of the network."""
NOISE, FIELD = 0.02, 0.03
"""Standard deviations of added noise, in shares of the top of the brain, and of the logarithm of a smooth field."""


def varied(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Intensities (share of the top of the brain) with noise and a field; where nothing was imaged (0) nothing is."""
    field = fields.smooth_field(rng.normal(0, FIELD, (4, 4, 4)), values.shape)
    noise = rng.normal(0, abs(rng.normal(0, NOISE)), values.shape)
    return np.where(values > 0, np.maximum(values * np.exp(field) + noise, 1e-3), 0).astype(np.float32)


def shares(codes: np.ndarray) -> np.ndarray:
    """Share of each class in each voxel, float32 (X, Y, Z, classes), from class numbers at half the voxel size."""
    x, y, z = (n // 2 for n in codes.shape)
    out = np.zeros((x * y * z, len(parcellation.CLASSES)), np.float32)
    rows = np.arange(len(out))
    for i, j, k in np.ndindex(2, 2, 2):
        out[rows, codes[i::2, j::2, k::2].reshape(-1)] += 0.125
    return out.reshape(x, y, z, -1)


class Examples(loop.Folder):
    """Random halves of random examples."""

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        rng = self.rng(index)
        drawn = [self._draw(rng) for _ in range(self.batch)]
        images, targets = np.stack([d[0] for d in drawn]), np.stack([d[1] for d in drawn])
        prior = np.broadcast_to(parcellation.priors(), (self.batch, *parcellation.priors().shape))
        return (images, prior), targets

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One half: intensities raised to a random exponent, and its target."""
        name = parcellation.CONTRASTS[int(rng.choice(len(parcellation.SHARES), p=parcellation.SHARES))]
        seen, codes = read(self.files[rng.integers(len(self.files))], name)
        side = int(rng.integers(2))
        half = np.ascontiguousarray(parcellation.halves(seen)[side])
        half[..., 0] **= np.float32(np.exp(rng.normal(0, parcellation.GAMMA)))
        return half, shares(parcellation.half_codes(codes)[side])


def read(path: Path, contrast: str) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of one image (float32) and the codes of an example."""
    with np.load(path) as stored:
        return stored[contrast].astype(np.float32) / 255, stored["codes"]


def dice(model: keras.Model, files: list[Path]) -> Mapping[str, float]:
    """Dice of each class, at the spacing of the network, both halves of one contrast of each example (in turn)."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for number, path in enumerate(files):
        seen, codes = read(path, parcellation.CONTRASTS[number % 3])
        found = parcellation.seen_halves(model, seen)
        pairs += zip(found, map(shares, parcellation.half_codes(codes)), strict=True)
    each = overlap(pairs)
    return {"dice": float(np.mean([each[f"dice_{n}"] for n in JUDGED])), **each}


def overlap(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Dice of the most likely classes: over all pairs of probabilities found and shares (X, Y, Z, classes) together."""
    return agreement((np.argmax(found, axis=-1), np.argmax(truth, axis=-1)) for found, truth in pairs)


def agreement(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], number: int = len(parcellation.CLASSES)
) -> dict[str, float]:
    """Dice of each of the first `number` classes over all pairs of class numbers found and true together."""
    both, total = np.zeros(number), np.zeros(number)
    for made, true in pairs:
        both += np.bincount(true[made == true], minlength=number)
        total += np.bincount(true.ravel(), minlength=number) + np.bincount(made.ravel(), minlength=number)
    names = parcellation.NAMES[:number]
    return {f"dice_{n}": 2 * b / max(t, 1) for n, b, t in zip(names, both, total, strict=True)}


def learn(
    build: Callable[..., keras.Model],
    default: tuple[int, ...],
    kind: type[loop.Folder],
    figures: Callable[[keras.Model, list[Path]], Mapping[str, float]],
    examples: Path,
    held_out: Path,
    out: Path,
    schedule: loop.Schedule,
    *,
    batch: int = 1,
    widths: tuple[int, ...] | None = None,
    sharp: int | None = None,
    init: Path | None = None,
    about: Mapping[str, object] | None = None,
    judge_every: int = 1,
) -> None:
    """Train a network that names structures on one folder of examples, judge on another; writes what `loop.fit` says.

    Parameters
    ----------
    build, default, kind, figures
        How the network is built, its usual widths, its items and its figures on held-out files; fixed by `train`.
    examples, held_out, out : Path
    schedule : Schedule
    batch : int
        Items in a step.
    widths : tuple of int, optional
        Filters of each level; by default those of `init`, or `default`.
    sharp : int, optional
        Filters of the last look of a network that has one.
    init : Path, optional
        Weights to begin with.
    about : mapping, optional
    judge_every : int
        Epochs between two judgements.
    """
    keras.utils.set_random_seed(schedule.seed)
    model, architecture = loop.started(build, default, widths, init, sharp, grows=True)
    files = sorted(held_out.glob("example-*.npz"))
    loop.fit(
        model,
        kind(examples, steps=schedule.epoch, batch=batch, seed=schedule.seed),
        losses.soft_cross_entropy_and_dice,
        schedule,
        out=out,
        figures=lambda m: figures(m, files),
        architecture=architecture,
        judge_every=judge_every,
        about=about,
    )


train = partial(learn, parcellation.build, parcellation.WIDTHS, Examples, dice, judge_every=2)
"""`learn` of the parcellation network; an item is half a head."""
