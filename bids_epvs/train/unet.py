"""Train the segmentation network on the examples of `synth.volumes`, then make its output probabilities."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy import ndimage

from bids_epvs.measure import agreement
from bids_epvs.measure.lesions import VISIBLE, instances
from bids_epvs.models import pieces, unet
from bids_epvs.models.unet import COMBINATIONS, REACH, SEQUENCES
from bids_epvs.prepare import planes
from bids_epvs.prepare.resample import bounding_box
from bids_epvs.settings import Settings
from bids_epvs.train import loop, losses

logger = logging.getLogger(__name__)

SHARES = (0.3, 0.1, 0.15, 0.1, 0.15, 0.05, 0.1, 0.05)
"""How often each of `unet.COMBINATIONS` is drawn."""
CROP = 96
"""Voxels of a training crop along both axes of its slice."""
NEAR_EPVS = 0.5
"""Share of crops around an EPVS; the others are around any voxel of the regions."""
TURNED = 0.4
"""Share of crops that are rotated (by up to `MOST_DEGREES`) and scaled."""
MOST_DEGREES = 60.0
OUTSIDE = 0.1
"""Weight of brain outside the regions in the loss."""
SMALLEST_MM3 = Settings.min_volume_mm3
"""Volume from which a lesion is counted when the threshold is chosen."""
NEAR_MM = 1.5
"""A lesion this near to an EPVS has found it."""
THRESHOLDS = np.arange(0.1, 0.71, 0.02)
EXTENTS = np.arange(0.1, 0.91, 0.01)
CLOSE = 0.025
"""A count this near to the true one (relative) is right."""


@dataclass(frozen=True)
class Example:
    """One brain in memory.

    Attributes
    ----------
    images : ndarray of uint8
        (X, Y, Z, SEQUENCES).
    fraction, regions : ndarray of uint8
    spacing : tuple of float
    turned : bool
        Slices are coronal or sagittal (`planes.kind`).
    names : tuple of str
        Sequences there are.
    epvs, inside : ndarray of int
        (n, 3) voxels with EPVS, and voxels of the regions.
    """

    images: np.ndarray
    fraction: np.ndarray
    regions: np.ndarray
    spacing: tuple[float, float, float]
    turned: bool
    names: tuple[str, ...]
    epvs: np.ndarray
    inside: np.ndarray

    @property
    def kind(self) -> str:
        """`planes.kind` of its slices."""
        return planes.kind(self.spacing, turned=self.turned)

    def combinations(self) -> list[int]:
        """Which of `unet.COMBINATIONS` it has."""
        return [k for k, names in enumerate(COMBINATIONS) if set(names) <= set(self.names)]


def read(path: Path) -> Example:
    """An example with the voxels that crops are drawn around."""
    with np.load(path) as stored:
        regions, fraction = stored["regions"], stored["fraction"]
        x, y, z = (float(v) for v in stored["spacing"])
        epvs = np.argwhere((fraction >= 64) & (regions > 0)).astype(np.int16)
        inside = np.argwhere(regions > 0)[::7].astype(np.int16)
        names = tuple(str(n) for n in stored["names"]) if "names" in stored.files else SEQUENCES
        turned = "turned" in stored.files and bool(stored["turned"])
        return Example(stored["images"], fraction, regions, (x, y, z), turned, names, epvs, inside)


class Examples(loop.Folder):
    """Random crops of random examples with random combinations of sequences; every example stays in memory."""

    examples: Mapping[Path, Example] = {}

    def on_epoch_end(self) -> None:
        """Read new examples."""
        super().on_epoch_end()
        self.examples = {path: self.examples.get(path) or read(path) for path in self.files}

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = self.rng(index)
        drawn = [crop(rng, self.examples[self.files[rng.integers(len(self.files))]]) for _ in range(self.batch)]
        return np.stack([d[0] for d in drawn]), np.stack([d[1] for d in drawn])


def crop(rng: np.random.Generator, example: Example, size: int = CROP) -> tuple[np.ndarray, np.ndarray]:
    """Input (size, size, unet.CHANNELS) and target (size, size, 2: share of EPVS, weight) of one crop."""
    pool = example.epvs if len(example.epvs) and rng.random() < NEAR_EPVS else example.inside
    i, j, k = pool[rng.integers(len(pool))].astype(int)
    near = np.clip(k + np.arange(-REACH, REACH + 1), 0, example.images.shape[2] - 1)
    if rng.random() < 0.5:  # upside down
        near = near[::-1]
    matrix, turned = _plane(rng)
    offset = rng.uniform(-size / 3, size / 3, 2)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) - (size - 1) / 2 + offset
    at = grid @ matrix.T + [i, j]
    at = at if turned else np.floor(at)  # whole voxels: nothing is interpolated
    images = _sampled(example.images[:, :, near], at) / np.float32(255) * (unet.RANGE[1] - unet.RANGE[0])
    images = _varied(rng, images + np.float32(unet.RANGE[0]))
    brain = (images[..., 0] > unet.RANGE[0]).any(axis=2)
    possible = example.combinations()
    often = np.array(SHARES)[possible]
    names = COMBINATIONS[int(rng.choice(possible, p=often / often.sum()))]
    images *= np.array([name in names for name in SEQUENCES], np.float32)
    x, y, z = example.spacing
    scale = float(np.sqrt(abs(np.linalg.det(matrix))))
    constants = np.broadcast_to(unet.marks(names, (x * scale, y * scale, z)), (size, size, len(SEQUENCES) + 2))
    seen = np.concatenate([images.reshape(size, size, -1), constants], axis=-1)
    fraction = _sampled(example.fraction[:, :, k, None], at)[..., 0] / np.float32(255)
    known = _sampled((example.regions[:, :, k, None] > 0).astype(np.uint8), at)[..., 0]
    return seen, np.stack([fraction, np.maximum(known, OUTSIDE * brain)], axis=-1).astype(np.float32)


def _plane(rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """2 x 2: mirrored half of the time, now and then rotated and scaled by up to 10 % (True)."""
    out = np.diag([1.0 if rng.random() < 0.5 else -1.0, 1.0])
    if rng.random() >= TURNED:
        return out, False
    angle = np.deg2rad(rng.uniform(-MOST_DEGREES, MOST_DEGREES))
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]]) @ out * np.exp(rng.uniform(-0.1, 0.1)), True


def _sampled(planes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Planes (X, Y, ...) at points (n, m, 2), bilinear, the border repeated; float32 (n, m, ...)."""
    limit = np.array(planes.shape[:2]) - 1
    at = np.clip(at, 0, limit)
    low = np.minimum(np.floor(at).astype(int), limit - 1)
    u, v = (at - low)[..., 0], (at - low)[..., 1]
    i, j = low[..., 0], low[..., 1]
    shape = (*at.shape[:2], *[1] * (planes.ndim - 2))
    out = np.zeros((*at.shape[:2], *planes.shape[2:]), np.float32)
    for a, wa in ((0, 1 - u), (1, u)):
        for b, wb in ((0, 1 - v), (1, v)):
            weight = (wa * wb).astype(np.float32)
            if weight.any():
                out += planes[i + a, j + b] * weight.reshape(shape)
    return out


def _varied(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Contrast and level of each sequence changed a little, noise added; what is not brain stays."""
    n = images.shape[-1]
    gain, level = np.exp(rng.normal(0, 0.1, size=n)), rng.normal(0, 0.04, size=n)
    made = images * np.asarray(gain, np.float32) + np.asarray(level, np.float32)
    if rng.random() < 0.3:
        made += rng.standard_normal(images.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.06))
    return np.where(images > unet.RANGE[0] + 1e-3, np.clip(made, *unet.RANGE), unet.RANGE[0])


def as_volume(example: Example, names: Sequence[str]) -> np.ndarray:
    """What `unet.prepared_volume` would give, (X, Y, Z, SEQUENCES) float32."""
    low, high = unet.RANGE
    there = np.array([name in names for name in SEQUENCES], np.float32)
    return (example.images / np.float32(255) * np.float32(high - low) + np.float32(low)) * there


def dice(model: keras.Model, examples: Sequence[Example]) -> dict[str, float]:
    """Voxel Dice at 0.5 in some slices of held-out brains, by their kind, from the T2w alone and from all sequences.

    The first figure, ``dice``, is the mean of the others.
    """
    out: dict[str, float] = {}
    for number in (0, 3):
        names = COMBINATIONS[number]
        for kind in planes.NEAREST:
            own = [e for e in examples if e.kind == kind and number in e.combinations()]
            if own:
                out[f"dice_{kind}_{'+'.join(names)}"] = _dice(model, own, names)
    return {"dice": float(np.mean(list(out.values()))) if out else 0.0, **out}


def _dice(model: keras.Model, examples: Sequence[Example], names: Sequence[str]) -> float:
    """Dice of all voxels in a dozen slices of each example."""
    overlap = total = 0
    for example in examples:
        filled = np.flatnonzero((example.regions > 0).any(axis=(0, 1)))
        chosen = filled[np.linspace(0, len(filled) - 1, 12).astype(int)]
        seen = unet.slab(as_volume(example, names), chosen, unet.marks(names, example.spacing))
        pads = [(0, 0), (0, -seen.shape[1] % 16), (0, -seen.shape[2] % 16), (0, 0)]
        made = np.asarray(model.predict(np.pad(seen, pads, mode="edge"), batch_size=4, verbose=0))
        found = np.moveaxis(made[:, : seen.shape[1], : seen.shape[2], 0] > 0, 0, -1)
        inside = example.regions[:, :, chosen] > 0
        true = (example.fraction[:, :, chosen] >= 128) & inside
        overlap += 2 * int((found & true).sum())
        total += int((found & inside).sum()) + int(true.sum())
    return overlap / max(total, 1)


def fitted(logit: np.ndarray, share: np.ndarray, *, iterations: int = 30) -> tuple[float, float]:
    """Slope and offset that make ``1 / (1 + exp(-(slope * logit + offset)))`` the likeliest given shares (Newton)."""
    x = np.stack([logit.astype(np.float64), np.ones(len(logit))], axis=1)
    beta = np.array([1.0, 0.0])
    for _ in range(iterations):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -40, 40)))
        hessian = x.T @ (x * np.maximum(p * (1 - p), 1e-9)[:, None]) + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (share - p))
        beta += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    return float(beta[0]), float(beta[1])


def lesions(probability: np.ndarray, voxel_mm3: float, threshold: float, extent: float = 0.0) -> np.ndarray:
    """Lesions of at least `SMALLEST_MM3` in `pieces.marked`, 1 ... n."""
    mask = pieces.marked(probability, threshold, extent)
    return instances(mask, voxel_mm3, minimum=SMALLEST_MM3, maximum=np.inf)


@dataclass(frozen=True)
class Seen:
    """Output of the network for one held-out brain.

    Attributes
    ----------
    logit : ndarray of float32
        (X, Y, Z) around the regions, -30 where nothing is looked for.
    inside : ndarray of bool
        Where EPVS are looked for.
    share : ndarray of float32
        EPVS in each voxel.
    index : ndarray of int
        The EPVS that fills most of a voxel.
    spacing : tuple of float
    """

    logit: np.ndarray
    inside: np.ndarray
    share: np.ndarray
    index: np.ndarray
    spacing: tuple[float, float, float]

    @property
    def shown(self) -> np.ndarray:
        """Indices of the EPVS that can be seen: that fill `VISIBLE` of some voxel."""
        clear = self.inside & (self.share >= VISIBLE) & (self.index > 0)
        return np.unique(self.index[clear])

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing))


def seen(model: keras.Model, path: Path, names: Sequence[str]) -> Seen:
    """What the network makes of an example."""
    example = read(path)
    with np.load(path) as stored:
        inside, index = (example.regions > 0) & ~stored["csf"], stored["index"]
    made = unet.logits(model, as_volume(example, names), unet.marks(names, example.spacing))
    made = np.where(inside, made, -30).astype(np.float32)
    box = bounding_box(inside, int(np.ceil(NEAR_MM / min(example.spacing))))
    return Seen(made[box], inside[box], example.fraction[box] / np.float32(255), index[box], example.spacing)


def lesions_judged(
    found: Seen, probability: np.ndarray, threshold: float, extent: float = 0.0
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean probability of each lesion, whether there is an EPVS within `NEAR_MM`, and the number of EPVS missed.

    Lesions at EPVS that hardly show count as right.
    """
    labels = lesions(probability, found.voxel_mm3, threshold, extent)
    numbers = np.arange(1, labels.max() + 1)
    if not numbers.size:
        return np.zeros(0), np.zeros(0, bool), len(found.shown)
    likely = ndimage.mean(probability, labels, numbers)
    away = ndimage.distance_transform_edt(found.index == 0, sampling=found.spacing)
    right = ndimage.minimum(away, labels, numbers) <= NEAR_MM
    near = ndimage.distance_transform_edt(labels == 0, sampling=found.spacing) if len(found.shown) else np.zeros(0)
    missed = int((ndimage.minimum(near, found.index, found.shown) > NEAR_MM).sum()) if len(found.shown) else 0
    return np.asarray(likely), np.asarray(right), missed


def reliability(rows: Sequence[Seen], settled: Mapping[str, float]) -> float:
    """Expected calibration error over the voxels of the regions."""
    p = np.concatenate([unet.probabilities(r.logit[r.inside], settled) for r in rows])
    share = np.concatenate([r.share[r.inside] for r in rows])
    return agreement.calibration_error(agreement.reliability(share, p))


def calibrate(model: keras.Model, files: Sequence[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """What turns the network's output into probabilities, lesions and intervals, from held-out brains.

    Returns
    -------
    dict
        For each kind of slices and combination of sequences, as in ``["thin"]["T2w+T1w"]``: ``slope`` and ``offset``
        (`unet.probabilities`), ``threshold``, ``count_ratio``, ``extent`` and ``volume_ratio`` (`thinned`; found over
        true), ``ece`` (`reliability`), ``lesion_slope``, ``lesion_offset``, ``lesion_missed``
        (`measure.ratings.Certainty`).
    """
    out: dict[str, dict[str, dict[str, float]]] = {}
    there = {path: (one.combinations(), one.kind) for path, one in ((p, read(p)) for p in files)}
    for number, names in enumerate(COMBINATIONS):
        found: dict[str, list[Seen]] = {}
        for path in (p for p in files if number in there[p][0]):
            found.setdefault(there[path][1], []).append(seen(model, path, names))
        for kind, rows in found.items():
            entry = settle(rows)
            out.setdefault(kind, {})["+".join(names)] = {k: round(v, 4) for k, v in entry.items()}
            logger.info("%s, %s slices: %s", "+".join(names), kind, out[kind]["+".join(names)])
    return out


def thinned(rows: Sequence[Seen], likely: Sequence[np.ndarray]) -> dict[str, float]:
    """Threshold and extent of `pieces.marked` for some brains, and how right counts and volumes are there.

    At the threshold the count of all brains is right, at the extent the volume of masks in the median brain is that of
    the EPVS that can be seen (in the sum of volumes those with the largest voxels, where most is missed, would count
    most; with the volume of all EPVS, masks of those found would make up for those that nobody sees). Where the count
    is right at higher thresholds too (with several sequences: faint marks join as fast as new ones appear) and masks
    are not too small there, these are surer. Thinning takes a few small lesions below `SMALLEST_MM3`.
    """
    brains = list(zip(likely, rows, strict=True))
    shown = max(1, sum(len(r.shown) for r in rows))
    volumes = [float(r.share[r.inside & np.isin(r.index, r.shown)].sum()) * r.voxel_mm3 for r in rows]

    def count(threshold: float, extent: float) -> float:
        return sum(int(lesions(p, r.voxel_mm3, threshold, extent).max(initial=0)) for p, r in brains) / shown

    def volume(threshold: float, extent: float) -> float:
        made = [pieces.marked(p, threshold, extent).sum() * r.voxel_mm3 for p, r in brains]
        return float(np.median([m / v for m, v in zip(made, volumes, strict=True) if v] or [1.0]))

    off = {t: abs(np.log(max(count(t, 0.0), 1e-3))) for t in THRESHOLDS.tolist()}
    best = min(off, key=off.__getitem__)
    surer = (t for t, o in off.items() if t >= best and o <= CLOSE and volume(t, 0.0) >= 1)
    threshold = max(surer, default=best)
    higher = EXTENTS[np.searchsorted(EXTENTS, threshold - 1e-9) :].tolist()
    first = bisect.bisect_left(higher, True, key=lambda e: volume(threshold, e) <= 1)  # the higher the smaller
    tried = {e: volume(threshold, e) for e in higher[max(0, first - 1) : first + 1]}
    extent = min(tried, key=lambda e: abs(tried[e] - 1))
    ratios = {"count_ratio": count(threshold, extent), "volume_ratio": tried[extent]}
    return {"threshold": threshold, "extent": extent, **ratios}


def settle(rows: Sequence[Seen]) -> dict[str, float]:
    """Calibration from brains of one kind; see `calibrate`."""
    logit, share = (np.concatenate([getattr(r, n)[r.inside] for r in rows]) for n in ("logit", "share"))
    slope, offset = fitted(logit, share)
    settled = {"slope": slope, "offset": offset}
    likely = [unet.probabilities(r.logit, settled) for r in rows]
    settled |= thinned(rows, likely)
    settled["ece"] = reliability(rows, settled)
    where = settled["threshold"], settled["extent"]
    judged = [lesions_judged(r, p, *where) for p, r in zip(likely, rows, strict=True)]
    p, right = (np.concatenate([j[k] for j in judged]) for k in (0, 1))
    p = np.clip(p, 1e-4, 1 - 1e-4)
    settled["lesion_slope"], settled["lesion_offset"] = fitted(np.log(p / (1 - p)), right.astype(float))
    settled["lesion_missed"] = sum(j[2] for j in judged) / max(1, int(right.sum()))
    return settled


def train(
    examples: Path,
    held_out: Path,
    out: Path,
    schedule: loop.Schedule,
    *,
    batch: int = 16,
    widths: tuple[int, ...] | None = None,
    init: Path | None = None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Train on one folder of examples, judge and calibrate on another; see `loop.fit` for what is written.

    Parameters
    ----------
    examples, held_out, out : Path
    schedule : Schedule
    batch : int
        Crops in a step.
    widths : tuple of int, optional
        Filters of each level; by default those of `init`, or `unet.WIDTHS`.
    init : Path, optional
        Weights to begin with.
    about : mapping, optional
    """
    keras.utils.set_random_seed(schedule.seed)
    model, architecture = loop.started(unet.build, unet.WIDTHS, widths, init, grows=True)
    data = Examples(examples, steps=schedule.epoch, batch=batch, seed=schedule.seed)
    files = sorted(held_out.glob("example-*.npz"))
    judges = [read(path) for path in files]
    figures: Callable[[Any], Mapping[str, float]] = lambda m: dice(m, judges)  # noqa: E731
    loop.fit(
        model,
        data,
        losses.weighted_entropy_and_dice,
        schedule,
        out=out,
        figures=figures,
        architecture=architecture,
        calibrate=lambda m: calibrate(m, files),
        about=about,
    )
