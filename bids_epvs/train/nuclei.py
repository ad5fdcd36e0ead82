"""Train the network that looks again at the deep grey matter on the examples of `synth.nuclei`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import keras
import numpy as np

from bids_epvs.models import nuclei, parcellation
from bids_epvs.train import loop
from bids_epvs.train.parcellation import GAMMA, SHARES, learn, overlap, shares

JUDGED = ("Caudate", "Putamen", "Pallidum", "Accumbens", "Thalamus", "VentralDC")
"""Classes whose mean Dice is logged as the figure of the network."""


class Examples(loop.Folder):
    """Random boxes of random examples."""

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        rng = self.rng(index)
        drawn = [self._draw(rng) for _ in range(self.batch)]
        seen, known, target = (np.stack(part) for part in zip(*drawn, strict=True))
        return (seen, known), target

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evidence with intensities raised to a random exponent, what is known, and the target of one box."""
        name = parcellation.CONTRASTS[int(rng.choice(len(SHARES), p=SHARES))]
        path = self.files[rng.integers(len(self.files))]
        seen, known, target = read(path, name, int(rng.integers(2)))
        seen[..., 0] **= np.float32(np.exp(rng.normal(0, GAMMA)))
        return seen, known, target


def read(path: Path, contrast: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evidence, known probabilities and shares of the classes of one box of an example, float32."""
    with np.load(path) as stored:
        values = stored[contrast][side].astype(np.float32) / 127.5
        seen = parcellation.likened(values, parcellation.Fit(1.0, *stored[f"{contrast}_fit"]))
        known = stored[f"{contrast}_known"][side].astype(np.float32) / 255
        return seen, known, shares(stored["codes"][side])


def dice(model: keras.Model, files: list[Path]) -> Mapping[str, float]:
    """Dice of each class of the box, both sides of one contrast of each example (in turn); first their mean.

    ``known`` is the mean Dice of what the parcellation network had found.
    """
    after, before = [], []
    for number, path in enumerate(files):
        for side in range(2):
            seen, known, target = read(path, parcellation.CONTRASTS[number % 3], side)
            after.append((np.asarray(model.predict_on_batch([seen[None], known[None]]))[0], target))
            before.append((known, target))
    each, known_each = overlap(after), overlap(before)
    means = [float(np.mean([found[f"dice_{n}"] for n in JUDGED])) for found in (each, known_each)]
    return {"dice": means[0], "known": means[1], **{k: v for k, v in each.items() if v > 0}}


train = partial(learn, nuclei.build, nuclei.WIDTHS, Examples, dice)
"""`learn` of this network; an item is a box."""
