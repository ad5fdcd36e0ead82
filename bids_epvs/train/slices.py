"""Train the network that draws borders in the plane of thick slices on the examples of `synth.slices`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np

from bids_epvs.models import parcellation, slices
from bids_epvs.train import loop
from bids_epvs.train.parcellation import learn, overlap, varied

JUDGED = tuple(n for n in slices.CLASSES if n not in ("Background", "WhiteMatterLesion"))
"""Classes whose mean Dice is logged as the figure of the network."""


DEEP = tuple(
    parcellation.NAMES.index(n)
    for n in ("Caudate", "Putamen", "Pallidum", "Accumbens", "Thalamus", "Hippocampus", "Amygdala")
)
"""Classes of which few slices of a head show anything."""
OFTEN = 3.0
"""How many times as often slices that show one of `DEEP` are drawn: else a batch has so few of their pixels that their
soft Dice is mostly noise."""
MULTIPLE = 8
"""Of pixels along each side of a slice: what four levels need."""


class Examples(loop.Folder):
    """A few random slices of one random image, now and then mirrored."""

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        rng = self.rng(index)
        path = self.files[rng.integers(len(self.files))]
        names = images(path)
        odds = parcellation.SHARES if names == parcellation.CONTRASTS else None
        seen, known, target = read(path, str(rng.choice(names, p=odds)), rng=rng, most=self.batch)
        seen[..., 0] **= np.float32(np.exp(rng.normal(0, parcellation.GAMMA)))
        if rng.random() < 0.5:
            seen, known, target = seen[:, ::-1], known[:, ::-1], target[:, ::-1]
        return (np.ascontiguousarray(seen), np.ascontiguousarray(known)), np.ascontiguousarray(target)


def images(path: Path) -> tuple[str, ...]:
    """Names of the images of an example: `parcellation.CONTRASTS`, or those of one contrast."""
    with np.load(path) as stored:
        return tuple(name.removesuffix("_known") for name in stored.files if name.endswith("_known"))


def read(
    path: Path, name: str, *, rng: np.random.Generator | None = None, most: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evidence, known probabilities and shares of the classes of an image's slices, float32 (slices, X, Y, ...).

    Parameters
    ----------
    path : Path
    name : str
        One of its `images`.
    rng : Generator, optional
        Draws slices and varies intensities; without it all are read as they are.
    most : int
        How many it draws.
    """
    with np.load(path) as stored:
        values, codes = stored[name].astype(np.float32) / 127.5, stored[f"{name}_codes"]
        at: Sequence[int] = range(values.shape[2])
        if rng is not None:
            values = varied(rng, values)
            odds = chances(codes)
            at = sorted(rng.choice(len(odds), min(most, len(odds)), replace=False, p=odds))
        fit = parcellation.Fit(1.0, *stored[f"{name}_fit"])
        seen = slices.evidence(values, fit, float(stored[f"{name}_distance"]), at)
        known = np.moveaxis(stored[f"{name}_known"][:, :, at], 2, 0).astype(np.float32) / 255
        target = shares(np.moveaxis(codes[:, :, at], 2, 0))
        seen, known, target = (slices.padded(part, MULTIPLE) for part in (seen, known, target))
        return seen, known, target


def chances(codes: np.ndarray) -> np.ndarray:
    """Probability that a slice is drawn, from class numbers (X, Y, slices, depths)."""
    shown = np.isin(codes, DEEP).any(axis=(0, 1, 3))
    odds = np.where(shown, OFTEN, 1.0)
    return odds / odds.sum()


def shares(codes: np.ndarray) -> np.ndarray:
    """Share of each class, float32 (..., classes), from class numbers at several depths (..., depths)."""
    out = np.zeros((codes[..., 0].size, len(slices.CLASSES)), np.float32)
    rows = np.arange(len(out))
    for k in range(codes.shape[-1]):
        out[rows, codes[..., k].ravel()] += 1 / codes.shape[-1]
    return out.reshape(*codes.shape[:-1], -1)


def dice(model: keras.Model, files: list[Path]) -> Mapping[str, float]:
    """Dice of each class over one image of each example (in turn); first the mean of `JUDGED`.

    ``known`` is their mean Dice of what was known before.
    """

    def pairs(*, before: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, path in enumerate(files):
            seen, known, target = read(path, images(path)[number % 3])
            for at in range(len(seen)):
                own = slice(at, at + 1)
                yield known[own] if before else np.asarray(model.predict_on_batch([seen[own], known[own]])), target[own]

    each, known = overlap(pairs(before=False)), overlap(pairs(before=True))
    after, before = (float(np.mean([found[f"dice_{n}"] for n in JUDGED])) for found in (each, known))
    return {"dice": after, "known": before, **{f"dice_{n}": each[f"dice_{n}"] for n in slices.CLASSES}}


train = partial(learn, slices.build, slices.WIDTHS, Examples, dice, batch=4)
"""`learn` of this network; an item is a slice."""
