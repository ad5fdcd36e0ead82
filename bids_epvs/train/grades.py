"""Train the networks that rate: `rating2d` (five grades of an image) and `resnet152` (mild or severe)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy import ndimage, optimize, special

from bids_epvs.measure import agreement, classification, ratings
from bids_epvs.measure.ratings import SEVERE_GRADE, potter
from bids_epvs.models import rating2d, resnet152, weights
from bids_epvs.prepare import fields
from bids_epvs.records import GRADES
from bids_epvs.train import loop

REGION = "BasalGanglia"
FAINT = 0.05
"""Factor on what a new unit of `deepened` adds; from zero it would never learn."""
TURN_DEG = 30.0
"""Images of `rating2d` are turned by up to this much (the paper)."""
UNSURE = 0.6
"""Times the square root of a count plus 1: how far off a count may be that is taken to be as good. Where the count is
known, images near the border of two grades teach some of both, and so how near they are to it."""


def grade(count: int) -> int:
    """Potter grade of the basal ganglia."""
    return potter(int(count), REGION) or 0


def likely_grades(count: int) -> np.ndarray:
    """Probability of each grade if a count of the basal ganglia is off by `UNSURE`, (GRADES,) float32."""
    spread = UNSURE * np.sqrt(count + 1)
    near = np.arange(int(count + 5 * spread) + 2)
    chances = np.exp(-0.5 * ((near - count) / spread) ** 2)
    return ratings.grade_chances(chances / chances.sum(), REGION).astype(np.float32)


class Balanced(loop.Folder):
    """Random items of all examples, each class about equally often; subclasses say what they are.

    An example has one or more items, each with its class and what the network should say of it; they are kept in
    memory as they are stored.
    """

    classes: int

    def __init__(self, folder: Path, **given: Any) -> None:
        self._known: dict[Path, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        super().__init__(folder, **given)

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items of an example (n, ...), their classes (n,) and targets (n, ...)."""
        raise NotImplementedError

    def varied(self, rng: np.random.Generator, item: np.ndarray) -> np.ndarray:
        """What the network sees of an item this time."""
        raise NotImplementedError

    def on_epoch_end(self) -> None:
        """Read new examples and sort their items by class."""
        super().on_epoch_end()
        for path in self.files:
            if path not in self._known:
                self._known[path] = self.read(path)
        self._sorted: list[list[tuple[Path, int]]] = [[] for _ in range(self.classes)]
        for path, (_, classes, _) in self._known.items():
            for k, own in enumerate(classes):
                self._sorted[own].append((path, k))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = self.rng(index)
        there = [own for own in self._sorted if own]
        seen, target = [], []
        for _ in range(self.batch):
            own = there[rng.integers(len(there))]
            path, k = own[rng.integers(len(own))]
            items, _, targets = self._known[path]
            seen.append(self.varied(rng, items[k].astype(np.float32) / 255))
            target.append(targets[k])
        return np.stack(seen), np.stack(target)


class Images(Balanced):
    """Images of `rating2d` and their grades, turned, flipped and varied.

    Parameters
    ----------
    enhanced : bool
        With Haar enhancement or without.
    """

    classes = GRADES

    def __init__(self, folder: Path, *, enhanced: bool = True, **given: Any) -> None:
        self.enhanced = enhanced
        super().__init__(folder, **given)

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`images`, and `likely_grades` where the counts are known."""
        seen, grades = images(path, enhanced=self.enhanced)
        with np.load(path) as stored:
            known = [likely_grades(n) for n in stored["counts"]] if "counts" in stored else None
        return seen, grades, np.eye(GRADES, dtype=np.float32)[grades] if known is None else np.stack(known)

    def varied(self, rng: np.random.Generator, item: np.ndarray) -> np.ndarray:
        """`varied`."""
        return varied(rng, item)


def images(path: Path, *, enhanced: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Images of an example (n, *SIZE, 2; uint8, 255 = 1.5 and 1) and the grade of each."""
    with np.load(path) as stored:
        stack = np.stack([stored["sharp" if enhanced else "plain"], stored["inside"]], axis=-1)
        known = stored["grades"] if "grades" in stored else [grade(n) for n in stored["counts"]]
        return stack, np.asarray(known, int)


def rotation(degrees: float) -> np.ndarray:
    """Matrix of a rotation in the plane, (2, 2)."""
    return fields.rotation(2, np.deg2rad(degrees))[:2, :2]


def varied(rng: np.random.Generator, seen: np.ndarray) -> np.ndarray:
    """An image (*SIZE, 2) turned, moved, flipped, and with other intensities; float32 on the scale of `rating2d`."""
    matrix = rotation(rng.uniform(-TURN_DEG, TURN_DEG)) * rng.uniform(0.92, 1.08)
    middle = (np.array(seen.shape[:2]) - 1) / 2
    shift = middle - matrix @ middle + rng.uniform(-4, 4, 2)
    out = np.stack(
        [ndimage.affine_transform(seen[..., c], matrix, shift, order=1, mode="nearest") for c in range(2)], axis=-1
    )
    if rng.random() < 0.5:
        out = out[:, ::-1]
    if rng.random() < 0.5:
        out = out[::-1]
    picture = out[..., 0] * 1.5
    picture = picture ** np.exp(rng.normal(0, 0.1)) * np.exp(rng.normal(0, 0.1))
    picture = picture + rng.standard_normal(picture.shape) * rng.uniform(0, 0.015)
    return np.stack([picture, out[..., 1]], axis=-1).astype(np.float32)


def rated(model: keras.Model, files: list[Path], *, enhanced: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    """(grades of its images, probabilities (n, GRADES)) of each example."""
    out = []
    for path in files:
        stack, grades = images(path, enhanced=enhanced)
        seen = stack.astype(np.float32) / 255 * np.array([1.5, 1.0], np.float32)
        out.append((grades, np.asarray(model.predict_on_batch(seen))))
    return out


def image_and_subject(
    found: list[tuple[np.ndarray, np.ndarray]], rule: str = "highest", alike: float = 1.0
) -> dict[str, float]:
    """Quadratic kappa and accuracy of subjects, accuracy of images, ranked probability score of subjects.

    The true grade of a subject is the highest of its images; `alike` as in `rating2d.subject_chances`.
    """
    truth = np.array([g.max() for g, _ in found])
    said = np.array([rating2d.subject_grade(p, rule, alike) for _, p in found])
    every = np.concatenate([g for g, _ in found]) == np.concatenate([p.argmax(axis=1) for _, p in found])
    chances = np.stack([rating2d.subject_chances(p, alike) for _, p in found])
    return {
        "kappa": agreement.weighted_kappa(truth, said, categories=GRADES).value,
        "accuracy": float((truth == said).mean()),
        "accuracy_images": float(every.mean()),
        "rps": classification.ranked_probability_score(truth, chances),
    }


def temperature(found: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """What the logarithms of probabilities are divided by, so that they fit the held-out grades of images best."""
    grades = np.concatenate([g for g, _ in found])
    logs = np.log(np.maximum(np.concatenate([p for _, p in found]), 1e-7))

    def loss(log_t: float) -> float:
        scaled = special.log_softmax(logs / np.exp(log_t), axis=1)
        return float(-scaled[np.arange(len(grades)), grades].mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))


def likeness(found: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """`rating2d.subject_chances`' power that fits the held-out grades of subjects best."""
    truth = [int(g.max()) for g, _ in found]

    def loss(log_power: float) -> float:
        power = float(np.exp(log_power))
        said = [rating2d.subject_chances(p, power)[t] for (_, p), t in zip(found, truth, strict=True)]
        return float(-np.log(np.maximum(said, 1e-6)).mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-3, 0.5), method="bounded").x))


def calibrate_grades(found: list[tuple[np.ndarray, np.ndarray]], *, enhanced: bool) -> dict[str, Any]:
    """What makes the probabilities of images and then of subjects right on held-out examples."""
    warm = temperature(found)
    cooled = [(g, rating2d.cooled(p, warm)) for g, p in found]
    return {"temperature": round(warm, 4), "alike": round(likeness(cooled), 4), "haar": enhanced, "n": len(found)}


def settled(found: list[tuple[np.ndarray, np.ndarray]], *, enhanced: bool) -> dict[str, float]:
    """`image_and_subject` with the calibration that is measured on the same examples (two numbers)."""
    made = calibrate_grades(found, enhanced=enhanced)
    return image_and_subject([(g, rating2d.cooled(p, made["temperature"])) for g, p in found], alike=made["alike"])


class Boxes(Balanced):
    """Boxes of `resnet152`, mild and severe, mirrored, moved and varied."""

    classes = 2

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`box`, the only item of its example; `likely_grades` where the count is known."""
        image, severe = box(path)
        chance = float(severe)
        with np.load(path) as stored:
            if "fullest" in stored:
                chance = float(likely_grades(int(stored["fullest"]))[SEVERE_GRADE:].sum())
        return image[None], np.array([severe]), np.array([[chance]], np.float32)

    def varied(self, rng: np.random.Generator, item: np.ndarray) -> np.ndarray:
        """`moved`."""
        return moved(rng, item)


def box(path: Path) -> tuple[np.ndarray, int]:
    """Box of an example (uint8) and whether its EPVS are severe."""
    with np.load(path) as stored:
        known = "severe" in stored
        return stored["box"], int(stored["severe"] if known else grade(int(stored["fullest"])) >= SEVERE_GRADE)


def moved(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A box (X, Y, Z, 1) mirrored, turned, stretched and shifted, with other intensities.

    Heads differ in more than the label maps show (size of ventricles, brightness of fluid), of which there are few.
    """
    matrix = np.eye(3)
    matrix[:2, :2] = rotation(rng.uniform(-12, 12)) @ np.diag(np.exp(rng.normal(0, 0.07, 2)))
    middle = (np.array(image.shape) - 1) / 2
    away = np.array([*rng.uniform(-6, 6, 2), float(rng.integers(-1, 2))])
    out = ndimage.affine_transform(image, matrix, middle - matrix @ middle + away, order=1)
    if rng.random() < 0.5:
        out = out[::-1]
    inside, level = out > 0, np.float32(resnet152.LEVEL)
    out = np.clip(level + (out - level) * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 0.02), 0, 1)
    out = out ** np.float32(np.exp(rng.normal(0, 0.1)))
    out = out + rng.standard_normal(out.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.03))
    return (np.clip(out, 0, 1) * inside)[..., None].astype(np.float32)


def severities(model: keras.Model, files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """True class and probability of each example."""
    known = [box(path) for path in files]
    batches = [known[k : k + 8] for k in range(0, len(known), 8)]
    said = [
        np.asarray(model.predict_on_batch(np.stack([b for b, _ in part])[..., None].astype(np.float32) / 255))
        for part in batches
    ]
    return np.array([s for _, s in known]), np.concatenate(said)[:, 0]


def two_classes(model: keras.Model, files: list[Path]) -> dict[str, float]:
    """AUC, accuracy and loss on held-out examples."""
    truth, chance = severities(model, files)
    p = np.clip(chance, 1e-6, 1 - 1e-6)
    entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    accuracy = float(((chance >= 0.5) == truth).mean())
    return {"auc": classification.auc(truth, chance).value, "accuracy": accuracy, "loss": float(entropy)}


def platt(truth: np.ndarray, chance: np.ndarray) -> dict[str, float]:
    """Slope and offset that turn logits into probabilities on held-out data (Platt 1999, his smoothed targets)."""
    logit = special.logit(np.clip(chance, 1e-6, 1 - 1e-6))
    m, n = int(truth.sum()), int((1 - truth).sum())
    target = np.where(truth == 1, (m + 1) / (m + 2), 1 / (n + 2))

    def loss(x: np.ndarray) -> float:
        z = x[0] * logit + x[1]
        return float(np.mean(np.logaddexp(0, z) - target * z))

    slope, offset = optimize.minimize(loss, [1.0, 0.0]).x
    return {"slope": round(float(slope), 4), "offset": round(float(offset), 4), "n": m + n}


def train_rating2d(
    examples: Path,
    held_out: Path,
    out: Path,
    schedule: loop.Schedule,
    *,
    batch: int = 32,
    widths: tuple[int, ...] | None = None,
    init: Path | None = None,
    enhanced: bool = True,
    squared: bool = False,
    about: Mapping[str, object] | None = None,
) -> None:
    """Train `rating2d` on one folder of examples, judge and calibrate on another; see `loop.fit`.

    `enhanced`: with Haar enhancement; `squared`: mean squared error instead of cross-entropy (the paper tried both).
    """
    keras.utils.set_random_seed(schedule.seed)
    network, architecture = loop.started(rating2d.build, rating2d.WIDTHS, widths, init)
    data = Images(examples, enhanced=enhanced, steps=schedule.epoch, batch=batch, seed=schedule.seed)
    files = sorted(held_out.glob("example-*.npz"))
    judged = partial(rated, files=files, enhanced=enhanced)
    loop.fit(
        network,
        data,
        keras.losses.MeanSquaredError() if squared else keras.losses.CategoricalCrossentropy(),
        schedule,
        out=out,
        figures=lambda m: settled(judged(m), enhanced=enhanced),
        architecture=architecture,
        calibrate=lambda m: calibrate_grades(judged(m), enhanced=enhanced),
        about=about,
    )


def deepened(network: keras.Model, shallow: keras.Model) -> None:
    """Give a `resnet152` the parameters of one of fewer units; the other units begin as almost nothing added.

    A deep residual network learns faster from a trained shallow one than from random parameters, and each step of the
    shallow one is cheaper.
    """
    known = {layer.name: layer for layer in shallow.layers}
    for layer in network.layers:
        if layer.name in known:
            layer.set_weights(known[layer.name].get_weights())
        elif layer.name.endswith("_3_normalisation"):
            layer.gamma.assign(keras.ops.full_like(layer.gamma, FAINT))


def train_resnet152(
    examples: Path,
    held_out: Path,
    out: Path,
    schedule: loop.Schedule,
    *,
    batch: int = 20,
    widths: tuple[int, ...] | None = None,
    init: Path | None = None,
    depth: int = 152,
    stride_z: int = 2,
    about: Mapping[str, object] | None = None,
) -> None:
    """Train `resnet152` on one folder of examples, judge and calibrate on another; see `loop.fit`.

    `widths` holds one number, the filters of the first stage. `init` may be of a smaller depth: see `deepened`.
    """
    keras.utils.set_random_seed(schedule.seed)
    stored = weights.architecture(init) if init else {}
    width = widths[0] if widths else stored.get("width", resnet152.SHIPPED_WIDTH)
    architecture = {"depth": depth, "width": width, "stride_z": stride_z}
    network = resnet152.build(**architecture)
    if init and stored.get("depth", depth) < depth:
        shallow = resnet152.build(**{**architecture, "depth": stored["depth"]})
        weights.load(shallow, init)
        deepened(network, shallow)
    elif init:
        weights.load(network, init)
    data = Boxes(examples, steps=schedule.epoch, batch=batch, seed=schedule.seed)
    files = sorted(held_out.glob("example-*.npz"))
    loop.fit(
        network,
        data,
        keras.losses.BinaryCrossentropy(),
        schedule,
        out=out,
        figures=lambda m: two_classes(m, files),
        architecture=architecture,
        calibrate=lambda m: platt(*severities(m, files)),
        about=about,
    )
