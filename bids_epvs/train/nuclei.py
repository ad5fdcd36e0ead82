"""Train the network that looks again at the deep grey matter on the examples of `synth.nuclei`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import keras
import numpy as np
from scipy import ndimage

from bids_epvs.models import blocks, nuclei, parcellation
from bids_epvs.prepare import fields
from bids_epvs.train import loop
from bids_epvs.train.parcellation import learn, overlap, varied

JUDGED = ("Caudate", "Putamen", "Pallidum", "Accumbens", "Thalamus", "VentralDC")
"""Classes whose mean Dice is logged as the figure of the network."""
TURN_DEGREES, SCALE, SHIFT_MM = 4.0, 0.05, 1.0
"""Standard deviations of how a box is turned, scaled and shifted as a whole, each time it is drawn."""
WARP_MM, KNOTS_MM = 1.0, 12.0
"""Standard deviation, and distance of its knots, of the smooth deformation of a box: other shapes of the nuclei."""

Box = tuple[np.ndarray, parcellation.Fit, np.ndarray, np.ndarray]
"""Intensities (X, Y, Z), those of the tissues, what is known at 2 mm (x, y, z, classes), class numbers (X, Y, Z)."""


class Examples(loop.Folder):
    """Random boxes of random examples, each time in another shape."""

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        rng = self.rng(index)
        drawn = [self._draw(rng) for _ in range(self.batch)]
        seen, known, target = (np.stack(part) for part in zip(*drawn, strict=True))
        return (seen, known), target

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evidence with intensities raised to a random exponent, what is known, and the target of one box."""
        name = parcellation.CONTRASTS[int(rng.choice(len(parcellation.SHARES), p=parcellation.SHARES))]
        path = self.files[rng.integers(len(self.files))]
        values, fit, told, codes = moved(rng, read(path, name, int(rng.integers(2))))
        seen, known, target = given((varied(rng, values), fit, told, codes))
        seen[..., 0] **= np.float32(np.exp(rng.normal(0, parcellation.GAMMA)))
        return seen, known, target


def read(path: Path, contrast: str, side: int) -> Box:
    """One box of an example."""
    with np.load(path) as stored:
        values = stored[contrast][side].astype(np.float32) / 127.5
        known = stored[f"{contrast}_known"][side].astype(np.float32) / 255
        return values, parcellation.Fit(1.0, *stored[f"{contrast}_fit"]), known, stored["codes"][side]


def given(box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evidence, known probabilities and classes (one-hot) of a box, float32."""
    values, fit, known, codes = box
    return nuclei.evidence(values, fit, known), known, np.eye(len(parcellation.CLASSES), dtype=np.float32)[codes]


def moved(rng: np.random.Generator, box: Box) -> Box:
    """A box turned, scaled, shifted and smoothly deformed: image, labels and what is known together.

    Without it the network learns 92 examples by heart: Dice 0.80 on them, 0.76 on new examples of the same heads.
    """
    values, fit, known, codes = box
    shape = np.array(values.shape)
    linear = np.diag(np.exp(rng.normal(0, SCALE, 3)))
    linear = fields.turned(linear, np.deg2rad(rng.normal(0, TURN_DEGREES, 3)))
    centre = (shape - 1) / 2
    at = np.stack(np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij"))
    at = np.tensordot(linear, at, axes=1) + (centre + rng.normal(0, SHIFT_MM, 3))[:, None, None, None]
    knots = np.maximum(4, np.ceil(shape / KNOTS_MM).astype(int))
    amount = rng.uniform(0, 2) * WARP_MM
    at += np.stack([fields.smooth_field(rng.normal(0, amount, knots), values.shape) for _ in range(3)])
    there = at.reshape(3, *(n for s in known.shape[:3] for n in (s, nuclei.FINE))).mean(axis=(2, 4, 6))
    there = (there + 0.5) / nuclei.FINE - 0.5
    classes = np.moveaxis(known, -1, 0)
    found = np.stack([ndimage.map_coordinates(c, there, order=1, mode="nearest") for c in classes], axis=-1)
    return (
        ndimage.map_coordinates(values, at, order=1, mode="nearest"),
        fit,
        found / np.maximum(found.sum(axis=-1, keepdims=True), 1e-3),
        ndimage.map_coordinates(codes, at, order=0, mode="nearest"),
    )


def dice(model: keras.Model, files: list[Path]) -> Mapping[str, float]:
    """Dice of each class of the box, both sides of one contrast of each example (in turn); first their mean.

    ``known`` is the mean Dice of what the parcellation network had found.
    """
    after, before = [], []
    for number, path in enumerate(files):
        for side in range(2):
            seen, known, target = given(read(path, parcellation.CONTRASTS[number % 3], side))
            after.append((np.asarray(model.predict_on_batch([seen[None], known[None]]))[0], target))
            before.append((np.asarray(blocks.doubled(keras.ops.convert_to_tensor(known[None])))[0], target))
    each, known_each = overlap(after), overlap(before)
    means = [float(np.mean([found[f"dice_{n}"] for n in JUDGED])) for found in (each, known_each)]
    return {"dice": means[0], "known": means[1], **{k: v for k, v in each.items() if v > 0}}


train = partial(learn, nuclei.build, nuclei.WIDTHS, Examples, dice)
"""`learn` of this network; an item is a box."""
