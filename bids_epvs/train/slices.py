"""Train the network that draws borders in the plane of thick slices on the examples of `synth.slices`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from bids_epvs.models import parcellation, slices
from bids_epvs.train import loop
from bids_epvs.train.parcellation import GAMMA, SHARES, learn

JUDGED = tuple(n for n in slices.CLASSES if n not in ("Background", "WhiteMatterLesion"))
"""Classes whose mean Dice is logged as the figure of the network."""


MULTIPLE = 8
"""Of pixels along each side of a slice: what four levels need."""


class Examples(loop.Folder):
    """A few random slices of one random image, now and then mirrored."""

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        rng = self.rng(index)
        name = parcellation.CONTRASTS[int(rng.choice(len(SHARES), p=SHARES))]
        path = self.files[rng.integers(len(self.files))]
        seen, known, target = read(path, name, rng=rng, most=self.batch)
        seen[..., 0] **= np.float32(np.exp(rng.normal(0, GAMMA)))
        if rng.random() < 0.5:
            seen, known, target = seen[:, ::-1], known[:, ::-1], target[:, ::-1]
        return (np.ascontiguousarray(seen), np.ascontiguousarray(known)), np.ascontiguousarray(target)


def read(
    path: Path, contrast: str, *, rng: np.random.Generator | None = None, most: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evidence, known probabilities and shares of the classes of an image's slices, float32 (slices, X, Y, ...).

    Parameters
    ----------
    path : Path
    contrast : str
        One of `parcellation.CONTRASTS`.
    rng : Generator, optional
        Draws slices; without it all are read.
    most : int
        How many it draws.
    """
    with np.load(path) as stored:
        values = stored[contrast].astype(np.float32) / 127.5
        at: Sequence[int] = range(values.shape[2])
        if rng is not None:
            at = sorted(rng.permutation(values.shape[2])[:most])
        fit = parcellation.Fit(1.0, *stored[f"{contrast}_fit"])
        seen = slices.evidence(values, fit, float(stored[f"{contrast}_distance"]), at)
        known = np.moveaxis(stored[f"{contrast}_known"][:, :, at], 2, 0).astype(np.float32) / 255
        target = shares(np.moveaxis(stored[f"{contrast}_codes"][:, :, at], 2, 0))
        seen, known, target = (slices.padded(part, MULTIPLE) for part in (seen, known, target))
        return seen, known, target


def shares(codes: np.ndarray) -> np.ndarray:
    """Share of each class, float32 (..., classes), from class numbers at several depths (..., depths)."""
    out = np.zeros((codes[..., 0].size, len(slices.CLASSES)), np.float32)
    rows = np.arange(len(out))
    for k in range(codes.shape[-1]):
        out[rows, codes[..., k].ravel()] += 1 / codes.shape[-1]
    return out.reshape(*codes.shape[:-1], -1)


def dice(model: keras.Model, files: list[Path]) -> Mapping[str, float]:
    """Dice of each class over one contrast of each example (in turn); first the mean of `JUDGED`.

    ``known`` is their mean Dice of what was known before.
    """
    size = len(slices.CLASSES)
    counts = np.zeros((2, 2, size))
    for number, path in enumerate(files):
        seen, known, target = read(path, parcellation.CONTRASTS[number % 3])
        true = np.argmax(target, axis=-1)
        for at in range(len(seen)):
            found = np.asarray(model.predict_on_batch([seen[at : at + 1], known[at : at + 1]]))[0]
            for which, answer in enumerate((found, known[at])):
                made = np.argmax(answer, axis=-1)
                counts[which, 0] += np.bincount(true[at][made == true[at]], minlength=size)
                counts[which, 1] += np.bincount(true[at].ravel(), minlength=size)
                counts[which, 1] += np.bincount(made.ravel(), minlength=size)
    each = 2 * counts[:, 0] / np.maximum(counts[:, 1], 1)
    inner = [slices.CLASSES.index(n) for n in JUDGED]
    after, before = (float(row[inner].mean()) for row in each)
    return {
        "dice": after,
        "known": before,
        **{f"dice_{n}": float(v) for n, v in zip(slices.CLASSES, each[0], strict=True)},
    }


def train(
    examples: Path,
    held_out: Path,
    out: Path,
    schedule: loop.Schedule,
    *,
    batch: int = 4,
    widths: tuple[int, ...] | None = None,
    init: Path | None = None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Train on one folder of examples, judge on another; arguments as of `train.parcellation.train`."""
    learn(
        slices.build,
        slices.WIDTHS,
        Examples,
        dice,
        examples,
        held_out,
        out,
        schedule,
        batch=batch,
        widths=widths,
        init=init,
        about=about,
    )
