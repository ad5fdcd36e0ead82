"""Train the counting networks from images of regions and one number each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy import ndimage

from bids_epvs.measure import agreement
from bids_epvs.models import count, gpunet
from bids_epvs.prepare import crops, planes
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.train import loop

BLOCK = (48, 48, 24)
"""Voxels of a training block."""
CELL = (8, 8, 4)
"""Voxels of a cell: where simulation says in which cell EPVS are, the counts of cells teach too."""
OFTEN = {"BasalGanglia": 0.2, "CentrumSemiovale": 0.25, "Hippocampus": 0.4, "Midbrain": 0.15}
"""How often a block is cut out of each region: the largest, and the one whose fluid looks like EPVS, most."""
ADDED, GRAIN, ACROSS = 0.03, 1.0, 0.4
"""Most noise that is added to a block (as a share of the step from white matter to fluid), its widest grain (standard
deviation, voxels), and how far it reaches across slices (standard deviation, slices)."""
WINDOW, PACE = 48, 16
"""Files that blocks are drawn from at a time, and how many at least are new in each epoch: reading one takes as long as
learning from some blocks."""
PART = 0.5
"""Share of blocks of which only what lies on one side of a random plane is counted."""
BUILD: Mapping[str, Callable[..., keras.Model]] = {"cnn": count.build, "gpunet": gpunet.build}


@dataclass(frozen=True)
class Region:
    """One region of one hemisphere in memory.

    Attributes
    ----------
    name : str
    slice_mm : float
    turned : bool
        Slices are coronal or sagittal.
    image : ndarray of uint8
        `crops.as_bytes`.
    soft : ndarray of uint8
        `crops.Crop.soft`, 255 = 1.
    mask : ndarray of bool
    at, share : ndarray
        Points of EPVS and the part of one EPVS that each stands for.
    known : float, optional
        Number of EPVS where only that is known, not where they are.
    count : float, optional
        Number of EPVS in the true region, if the mask is another one.
    """

    name: str
    slice_mm: float
    turned: bool
    image: np.ndarray
    soft: np.ndarray
    mask: np.ndarray
    at: np.ndarray
    share: np.ndarray
    known: float | None = None
    count: float | None = None

    @cached_property
    def tissue(self) -> float:
        """Intensity of the region, as `crops.level`."""
        return float(crops.from_bytes(np.array(np.median(self.image[self.mask])))) if self.mask.any() else 0.0

    @cached_property
    def noise(self) -> float:
        """`crops.noise`."""
        return crops.noise(crops.from_bytes(self.image), self.mask)

    @property
    def total(self) -> float:
        """Number of EPVS."""
        told = self.count if self.known is None else self.known
        return float(self.share.sum()) if told is None else told


def read(path: Path) -> dict[int, Region]:
    """The regions of an example, by index of `REGIONS`."""
    with np.load(path) as stored:
        names = [int(n.removeprefix("image_")) for n in stored.files if n.startswith("image_")]
        turned = "turned" in stored.files and bool(stored["turned"])
        slice_mm, parts = float(stored["spacing"][2]), ("image", "soft", "mask", "at", "share")
        found = {k: {part: stored[f"{part}_{k}"] for part in parts} for k in names}
        return {
            k: Region(
                name=REGIONS[k].name,
                slice_mm=slice_mm,
                turned=turned,
                known=float(stored[f"total_{k}"]) if f"total_{k}" in stored else None,
                count=float(stored[f"count_{k}"]) if f"count_{k}" in stored else None,
                **found[k],
            )
            for k in names
        }


@lru_cache(maxsize=64)
def _kept(path: Path) -> dict[int, Region]:
    return read(path)


class Examples(loop.Folder):
    """Random blocks of random regions of random examples, each with its number of EPVS."""

    epochs = 1
    """Epochs in which all examples are to be seen."""

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        rng = self.rng(index)
        drawn = [self._draw(rng, index) for _ in range(self.batch)]
        image, mask, told, number = zip(*drawn, strict=True)
        return (stacked(image), stacked(mask), np.stack(told)), np.stack(number)

    def _draw(self, rng: np.random.Generator, index: int) -> tuple[np.ndarray, ...]:
        """One block out of a window of few files that passes over the folder at least once in all epochs."""
        window = min(len(self.files), WINDOW)
        pace = max(PACE, len(self.files) / self.epochs)
        begins = int((self.epoch + index / self.steps) * pace)
        found = _kept(self.files[(begins + int(rng.integers(window))) % len(self.files)])
        names = [found[k].name for k in found]
        often = np.array([OFTEN[n] for n in names])
        chosen = list(found.values())[int(rng.choice(len(names), p=often / often.sum()))]
        return block(rng, chosen)


def stacked(blocks: tuple[np.ndarray, ...]) -> np.ndarray:
    """Blocks (X, Y, Z, 1) as one batch, the smaller ones padded with 0."""
    size = np.max([b.shape for b in blocks], axis=0)
    return np.stack([np.pad(b, [(0, int(n - m)) for n, m in zip(size, b.shape, strict=True)]) for b in blocks])


def block(rng: np.random.Generator, region: Region, size: tuple[int, int, int] = BLOCK) -> tuple[np.ndarray, ...]:
    """A block of a region: image (X, Y, Z, 1), mask, marks, number of EPVS in each of its cells.

    A region larger than the block is cut around one of its voxels; a smaller one is padded with 0. A region of which
    only the number of EPVS is known comes whole.
    """
    if region.known is not None:
        return whole(rng, region)
    shape = np.array(region.image.shape)
    somewhere = np.argwhere(region.mask[::4, ::4, ::4]) * 4
    centre = somewhere[rng.integers(len(somewhere))] if len(somewhere) else shape // 2
    room = np.maximum(shape - size, 0)
    low = np.clip(centre - np.array(size) // 2 + rng.integers(-16, 17, 3), 0, room)
    high = np.minimum(low + size, shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    mask = region.mask[box].astype(np.float32)
    if rng.random() < PART:
        mask *= _half(rng, mask.shape)
    at = region.at.astype(int) - low
    known = ((at >= 0) & (at < high - low)).all(axis=1)
    at, share = at[known], region.share[known]
    counted = share * mask[tuple(at.T)]
    varied, noise = _varied(rng, region.image[box], region)
    image = crops.stretched(varied, region.tissue) * (region.soft[box] / np.float32(255))
    pad = [(0, s - n) for s, n in zip(size, mask.shape, strict=True)]
    number = np.zeros([s // c for s, c in zip(size, CELL, strict=True)], np.float32)
    np.add.at(number, tuple((at // CELL).T), counted)
    flip = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    seen, inside = (np.pad(a, pad)[flip][..., None].astype(np.float32) for a in (image, mask))
    told = count.marks(region.name, region.slice_mm, noise)
    return seen, inside, told, np.ascontiguousarray(number[flip])[..., None]


def whole(rng: np.random.Generator, region: Region) -> tuple[np.ndarray, ...]:
    """A whole region with other intensities and flips, sides divisible by `count.MULTIPLE`; as `block`."""
    varied, noise = _varied(rng, region.image, region)
    image = crops.stretched(varied, region.tissue) * (region.soft / np.float32(255))
    pad = [(0, -n % count.MULTIPLE) for n in image.shape]
    flip = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    seen, inside = (np.pad(a, pad)[flip][..., None].astype(np.float32) for a in (image, region.mask))
    told = count.marks(region.name, region.slice_mm, noise)
    return seen, inside, told, np.full((1, 1, 1, 1), region.total, np.float32)


def _half(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """1 on one side of a random plane through the middle half of a block."""
    normal = rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    point = np.array(shape) * rng.uniform(0.25, 0.75, 3)
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    away = sum(g * n for g, n in zip(grid, normal, strict=True)) - point @ normal
    return (away > 0).astype(np.float32)


def _varied(rng: np.random.Generator, image: np.ndarray, region: Region) -> tuple[np.ndarray, float]:
    """Part of a region with a random scale, offset and noise, and how noisy it is then.

    The noise that is added has a random grain in the plane of the slices and reaches as far across them as that of a
    scan whose slices are interpolated.
    """
    out = crops.from_bytes(image)
    scale, offset = float(np.exp(rng.normal(0, 0.1))), float(rng.normal(0, 0.01))
    added, grain = float(rng.uniform(0, ADDED)), float(rng.uniform(0, GRAIN))
    through = ACROSS * region.slice_mm / crops.SPACING_MM[2]
    more = ndimage.gaussian_filter(rng.standard_normal(out.shape, dtype=np.float32), (grain, grain, through))
    more *= np.float32(added / max(float(more.std()), 1e-6))
    seen = crops.noise(more, np.ones(more.shape, bool))
    return out * np.float32(scale) + np.float32(offset) + more, float(np.hypot(scale * region.noise, seen))


def loss(target: Any, density: Any) -> Any:
    """Four times the squared difference of square roots of counts (plus 3/8), and half the Poisson deviance of cells.

    The square root makes the spread of counts independent of their size (Anscombe 1948, doi:10.1093/biomet/35.3-4.246);
    the paper's squared error lets the fullest regions decide.

    Parameters
    ----------
    target : tensor
        (batch, cells, cells, cells, 1); a single cell where only the number in the whole region is known.
    density : tensor
        (batch, X, Y, Z, 1).
    """
    from keras import ops

    wanted = ops.cast(target, density.dtype)[..., 0]
    found, true = ops.sum(density, axis=(1, 2, 3, 4)), ops.sum(wanted, axis=(1, 2, 3))
    whole = 4 * ops.mean(ops.square(ops.sqrt(found + 0.375) - ops.sqrt(true + 0.375)))
    cells = tuple(wanted.shape[1:])
    if cells == (1, 1, 1):
        return whole
    x, y, z = (n // c for n, c in zip(density.shape[1:4], cells, strict=True))
    each, small = ops.average_pool(density, (x, y, z), (x, y, z))[..., 0] * (x * y * z), 1e-2
    deviance = each - wanted - (wanted + small) * (ops.log(each + small) - ops.log(wanted + small))
    return whole + ops.mean(ops.sum(deviance, axis=(1, 2, 3)))


def counted(model: keras.Model, region: Region) -> float:
    """Number of EPVS that a network finds in a whole region."""
    seen = crops.stretched(crops.from_bytes(region.image), region.tissue) * (region.soft / np.float32(255))
    given = count.inputs(seen, region.mask, region.name, region.slice_mm, region.noise)
    return float(np.asarray(model.predict_on_batch(list(given))).sum())


def pairs(model: keras.Model, files: list[Path]) -> dict[tuple[str, str], list[np.ndarray]]:
    """(region, `planes.kind` of slices) -> for each image (sides, 2) true and estimated number of each hemisphere."""
    out: dict[tuple[str, str], list[np.ndarray]] = {}
    for path in files:
        own: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for region in read(path).values():
            where = region.name, planes.kind((0.5, 0.5, region.slice_mm), turned=region.turned)
            own.setdefault(where, []).append((region.total, counted(model, region)))
        for where, found in own.items():
            out.setdefault(where, []).append(np.array(found))
    return dict(sorted(out.items()))


def figures(model: keras.Model, files: list[Path]) -> dict[str, float]:
    """ICC, Pearson's r and mean absolute error of each region and kind of slice; the first is the mean ICC."""
    each: dict[str, float] = {}
    for (name, slices), images in pairs(model, files).items():
        found = np.concatenate(images)
        varies = len(found) > 2 and np.ptp(found, axis=0).min() > 0
        each[f"icc_{name}_{slices}"] = agreement.icc(found).value if varies else np.nan
        each[f"r_{name}_{slices}"] = agreement.pearson(*found.T)
        each[f"mae_{name}_{slices}"] = float(np.abs(found[:, 0] - found[:, 1]).mean())
    return {"icc": float(np.nanmean([v for k, v in each.items() if k.startswith("icc")])), **each}


FEW = 10
"""Hemispheres for which half of the calibrated gain is believed."""
GAINS = (0.5, 2.0)
"""Range of gains."""


def line(true: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """``shift``, ``gain`` and ``factor`` of `count.calibrated`: square roots spread as the true ones, totals agree.

    The reduced major axis and not the regression line: counts are compared between people and groups, where the pull of
    a regression towards the mean would do harm. The gain is drawn to 1 where there are few hemispheres.
    """
    a, b = count.root(true), count.root(found)
    spread = float(a.std()), float(b.std())
    gain = spread[0] / spread[1] if min(spread) > 0 else 1.0
    gain = float(np.clip(1 + (gain - 1) * len(a) / (len(a) + FEW), *GAINS))
    out = {"shift": float(a.mean() - gain * b.mean()) if gain != 1 else 0.0, "gain": gain}
    total = float(count.calibrated(found, out).sum())
    return {**out, "factor": float(true.sum()) / max(total, 1e-6) if true.sum() else 1.0}


def calibrate(model: keras.Model, files: list[Path]) -> dict[str, Any]:
    """For counts and intervals, by region and kind of slice: `line`, and spreads of square roots of calibrated counts.

    ``spread`` is that of one hemisphere, ``spread_both`` that of both together; ``n`` is the number of images.
    """
    return calibration(pairs(model, files))


def calibration(found: Mapping[tuple[str, str], list[np.ndarray]]) -> dict[str, Any]:
    """`calibrate` of `pairs`."""
    out: dict[str, Any] = {}
    for (name, slices), images in found.items():
        row = line(*np.concatenate(images).T)
        told = [np.stack([image[:, 0], count.calibrated(image[:, 1], row)], axis=1) for image in images]
        sides, both = np.concatenate(told), np.array([image.sum(axis=0) for image in told])
        for key, f in (("spread", sides), ("spread_both", both)):
            row[key] = float(np.sqrt(((count.root(f[:, 1]) - count.root(f[:, 0])) ** 2).mean()))
        out.setdefault(slices, {})[name] = {**{k: round(v, 4) for k, v in row.items()}, "n": len(images)}
    return out


def train(
    examples: Path,
    held_out: Path,
    out: Path,
    schedule: loop.Schedule,
    *,
    model: str,
    batch: int = 4,
    widths: tuple[int, ...] | None = None,
    init: Path | None = None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Train `cnn` or `gpunet` on one folder of examples, judge and calibrate on another; see `loop.fit`."""
    keras.utils.set_random_seed(schedule.seed)
    network, architecture = loop.started(BUILD[model], count.WIDTHS, widths, init)
    data = Examples(examples, steps=schedule.epoch, batch=batch, seed=schedule.seed)
    data.epochs = schedule.epochs
    files = sorted(held_out.glob("example-*.npz"))
    loop.fit(
        network,
        data,
        loss,
        schedule,
        out=out,
        figures=lambda m: figures(m, files),
        architecture=architecture,
        judge_every=2,
        calibrate=lambda m: calibrate(m, files),
        about=about,
    )
