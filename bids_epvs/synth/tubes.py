"""Perivascular spaces as curved tubes: where they are, which way they run, and how much of each voxel they fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.regions import REGIONS, indices
from bids_epvs.synth.anatomy import WMH_LEFT, WMH_RIGHT, Anatomy, every_second, plain

STEP_MM = 0.5


@dataclass(frozen=True)
class Prior:
    """What EPVS of one region look like.

    Attributes
    ----------
    diameter_mm, length_mm : float
        Medians; the logarithm of both is normal.
    diameter_sigma, length_sigma : float
        Standard deviations of the logarithms.
    spread_deg : float
        Deviation of the course from the region's direction field.
    """

    diameter_mm: float
    length_mm: float
    diameter_sigma: float = 0.35
    length_sigma: float = 0.35
    spread_deg: float = 12.0


PRIORS: Mapping[str, Prior] = {
    "CentrumSemiovale": Prior(1.1, 6.5),
    "OtherWhiteMatter": Prior(1.1, 6.0),
    "BasalGanglia": Prior(1.3, 4.0),
    "Thalamus": Prior(1.0, 3.0, spread_deg=30.0),
    "Hippocampus": Prior(1.1, 2.5, spread_deg=60.0),
    "Midbrain": Prior(1.1, 3.0, spread_deg=25.0),
}
DIAMETER_RANGE_MM = (0.4, 3.0)
LENGTH_RANGE_MM = (1.5, 20.0)
MAX_TORTUOSITY = 1.15

CLUSTERED = 0.3
"""Share of tubes that start near another one."""
LARGE = 0.025
"""Share of tubes that are wider than `DIAMETER_RANGE_MM` allows, up to 4 mm, and then shorter."""

BURDENS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "any": {"CentrumSemiovale": (5, 500), "BasalGanglia": (0, 120)},
    "low": {"CentrumSemiovale": (5, 40), "BasalGanglia": (0, 10)},
    "mid": {"CentrumSemiovale": (30, 150), "BasalGanglia": (8, 40)},
    "high": {"CentrumSemiovale": (150, 500), "BasalGanglia": (35, 120)},
    "elderly": {"CentrumSemiovale": (410, 149), "BasalGanglia": (20, 120)},
}
"""Range of the number of EPVS, log-uniform in the centrum semiovale and uniform in the basal ganglia; for ``elderly``
the centrum semiovale has mean and standard deviation of a normal distribution (median 410, interquartile range 201).
"""
NEARLY_NONE = 0.1
"""Share of subjects with next to no EPVS, except among the ``elderly``."""


@dataclass(frozen=True)
class Tube:
    """One EPVS.

    Attributes
    ----------
    region : int
        Index of `REGIONS`.
    points : ndarray
        (n, 3), mm of the head.
    radius : ndarray
        (n,), mm.
    """

    region: int
    points: np.ndarray
    radius: np.ndarray

    @property
    def centre_mm(self) -> float:
        """Length of the centre line."""
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())

    @property
    def length_mm(self) -> float:
        """Length with the round ends, as it is seen."""
        return self.centre_mm + float(self.radius[0] + self.radius[-1])

    @property
    def volume_mm3(self) -> float:
        """Volume of the tube with its round ends, from its centre line and radius."""
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        squares = self.radius**2
        body = float(np.pi * (steps * (squares[1:] + squares[:-1]) / 2).sum())
        return body + 2 / 3 * np.pi * float(self.radius[0] ** 3 + self.radius[-1] ** 3)

    @property
    def diameter_mm(self) -> float:
        """Mean diameter."""
        return float(2 * self.radius.mean())


def sample_counts(rng: np.random.Generator, burden: str) -> dict[str, int]:
    """Number of EPVS in each region; one subject in ten has nearly none, except among the elderly."""
    a, b = BURDENS[burden]["CentrumSemiovale"]
    centrum = max(20.0, rng.normal(a, b)) if burden == "elderly" else np.exp(rng.uniform(np.log(a), np.log(b)))
    counts = {
        "CentrumSemiovale": round(float(centrum)),
        "BasalGanglia": round(float(rng.uniform(*BURDENS[burden]["BasalGanglia"]))),
        "Hippocampus": int(rng.integers(0, 16)),
        "Midbrain": int(rng.integers(0, 7)),
        "Thalamus": int(rng.integers(0, 5)),
    }
    counts["OtherWhiteMatter"] = round(counts["CentrumSemiovale"] * float(rng.uniform(0.1, 0.4)))
    if burden != "elderly" and rng.random() < NEARLY_NONE:
        counts = {name: min(n, 2) for name, n in counts.items()}
    return counts


def potential(labels: np.ndarray, *, iterations: int = 60) -> np.ndarray:
    """Laplace potential in cerebral white matter: 0 at the ventricles, 1 at the cortex (float32).

    Starts from relative distances, which are near the solution, and relaxes by Jacobi steps.
    """
    white = np.isin(labels, (2, 41))
    inner = ndimage.distance_transform_edt(~np.isin(labels, (4, 43))).astype(np.float32)
    outer = ndimage.distance_transform_edt(~np.isin(labels, (3, 42))).astype(np.float32)
    value = inner / np.maximum(inner + outer, 1e-3)
    fixed = ~white
    kernel = np.array([0.5, 0.0, 0.5], np.float32)
    start = value.copy()
    for _ in range(iterations):
        value = sum(ndimage.correlate1d(value, kernel, axis=a, mode="nearest") for a in range(3)) / np.float32(3)
        value[fixed] = start[fixed]
    return value


class Courses:
    """Direction fields and room of one head, made once for all its tubes.

    Parameters
    ----------
    head : Anatomy
    regions : ndarray of uint8
        Indices of `REGIONS` on the grid of `every_second` of the head.
    """

    def __init__(self, head: Anatomy, regions: np.ndarray) -> None:
        self.head, self.regions = head, regions
        self.inverse = np.linalg.inv(head.affine)
        half = every_second(head)
        self._field = every_second(half) if half.spacing[0] < 1.6 else half
        gradient = np.stack(np.gradient(ndimage.gaussian_filter(potential(plain(self._field.labels)), 0.7)), axis=-1)
        self.gradient = gradient / np.maximum(np.linalg.norm(gradient, axis=-1, keepdims=True), 1e-6)
        self._to_field = np.linalg.inv(self._field.affine)
        axes = np.linalg.inv(head.to_template[:3, :3]) @ np.eye(3)
        self.out, self.front, self.up = (_unit(axes[:, a]) for a in range(3))
        solid = [i for i, e in ATLAS_LABELS.items() if e.brain and e.tissue != "CSF"]
        self._solid = np.zeros(1024, bool)
        self._solid[[*solid, WMH_LEFT, WMH_RIGHT]] = True
        self._allowed = {i: self._regions_of(i) for i in REGIONS}

    @staticmethod
    def _regions_of(region: int) -> np.ndarray:
        """Which regions a tube may run through: its own, and both parts of white matter for one of them."""
        own = REGIONS[region]
        white = {"CentrumSemiovale", "OtherWhiteMatter"}
        out = np.zeros(len(REGIONS) + 1, bool)
        for index, other in REGIONS.items():
            same = other.name == own.name or {other.name, own.name} <= white
            out[index] = same and other.side == own.side
        return out

    def voxel(self, points: np.ndarray) -> np.ndarray:
        """Nearest voxel of points (mm) in the head, inside the array."""
        at = np.rint(points @ self.inverse[:3, :3].T + self.inverse[:3, 3]).astype(int)
        return np.clip(at, 0, np.array(self.head.labels.shape) - 1)

    def region(self, voxels: np.ndarray) -> np.ndarray:
        """Region at voxels of the head."""
        i, j, k = np.minimum(voxels // 2, np.array(self.regions.shape) - 1).T
        return self.regions[i, j, k]

    def direction(self, point: np.ndarray, name: str, side: str) -> np.ndarray:
        """Unit vector of the expected course at a point."""
        if name in ("CentrumSemiovale", "OtherWhiteMatter"):
            at = np.rint(self._to_field[:3, :3] @ point + self._to_field[:3, 3]).astype(int)
            i, j, k = np.clip(at, 0, np.array(self.gradient.shape[:3]) - 1)
            return self.gradient[i, j, k]
        outward = self.out * (1.0 if side == "Right" else -1.0)
        if name == "BasalGanglia":
            return _unit(self.up + 0.35 * outward - 0.1 * self.front)
        if name == "Hippocampus":
            return _unit(outward + 0.3 * self.up)
        return _unit(self.up + 0.2 * self.front)

    def inside(self, points: np.ndarray, region: int) -> np.ndarray:
        """Whether points lie in solid tissue of a region where a tube of `region` may run."""
        voxels = self.voxel(points)
        return self._solid[self.head.labels[tuple(voxels.T)]] & self._allowed[region][self.region(voxels)]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def grow(rng: np.random.Generator, courses: Courses, region: int, start: np.ndarray, length: float) -> np.ndarray:
    """Centre line from `start` both ways along the field until `length` mm are reached or the tissue ends, (n, 3)."""
    prior = PRIORS[REGIONS[region].name]
    name, side = REGIONS[region].name, REGIONS[region].side
    tilt = rng.normal(0, np.tan(np.deg2rad(prior.spread_deg)), 3)
    steps = max(1, round(length / 2 / STEP_MM))
    size = length / 2 / steps
    lines = []
    for sign in (1.0, -1.0):
        line, point = [], start
        bend = np.zeros(3)
        for _ in range(steps):
            bend = 0.9 * bend + rng.normal(0, 0.06, 3)
            step = _unit(_unit(courses.direction(point, name, side) + tilt) + bend)
            point = point + sign * size * step
            if not courses.inside(point[None], region)[0]:
                break
            line.append(point)
        lines.append(line)
    return np.array([*lines[1][::-1], start, *lines[0]])


def sample(
    rng: np.random.Generator, head: Anatomy, regions: np.ndarray, counts: Mapping[str, int], *, tries: int = 60
) -> list[Tube]:
    """Tubes of one head that neither cross nor leave their tissue.

    Parameters
    ----------
    rng : Generator
    head : Anatomy
    regions : ndarray of uint8
        Indices of `REGIONS` on the grid of `every_second` of the head.
    counts : mapping
        Region name -> number wanted (both hemispheres); where there is no room left, fewer.
    tries : int
        Starts tried for each tube; its size is drawn once, so that narrow places do not favour short tubes.
    """
    courses = Courses(head, regions)
    tubes: list[Tube] = []
    taken = _Taken()
    for name, wanted in counts.items():
        room = np.argwhere(np.isin(regions, indices(name))) * 2
        starts: list[np.ndarray] = []
        for _ in range(wanted if len(room) else 0):
            length, diameter = draw_size(rng, PRIORS[name])
            for _ in range(tries):
                tube = _one(rng, courses, room, starts, length, diameter, name)
                if tube is not None and not taken.touches(tube):
                    tubes.append(tube)
                    taken.add(tube)
                    starts.append(tube.points[len(tube.points) // 2])
                    break
    return tubes


def draw_size(rng: np.random.Generator, prior: Prior) -> tuple[float, float]:
    """Length and diameter in mm."""
    length = np.clip(np.exp(rng.normal(np.log(prior.length_mm), prior.length_sigma)), *LENGTH_RANGE_MM)
    diameter = np.clip(np.exp(rng.normal(np.log(prior.diameter_mm), prior.diameter_sigma)), *DIAMETER_RANGE_MM)
    if rng.random() < LARGE:
        diameter, length = rng.uniform(DIAMETER_RANGE_MM[1], 4.0), 0.6 * length
    return float(length), float(diameter)


def _one(
    rng: np.random.Generator,
    courses: Courses,
    room: np.ndarray,
    starts: list[np.ndarray],
    length: float,
    diameter: float,
    name: str,
) -> Tube | None:
    """A tube somewhere in the room, or None where tissue ends before its length is reached."""
    affine = courses.head.affine
    if starts and rng.random() < CLUSTERED:
        start = starts[rng.integers(len(starts))] + rng.normal(0, 4.0, 3)
    else:
        start = affine[:3, :3] @ (room[rng.integers(len(room))] + rng.uniform(-0.5, 1.5, 3)) + affine[:3, 3]
    region = int(courses.region(courses.voxel(start[None]))[0])
    if region not in REGIONS or REGIONS[region].name != name or not courses.inside(start[None], region)[0]:
        return None
    centre = max(length - 0.65 * diameter, 1.0)  # the ends are tapered to 65 %
    points = grow(rng, courses, region, start, centre)
    tube = Tube(region, points, profile(rng, len(points), diameter / 2))
    chord = float(np.linalg.norm(points[-1] - points[0]))
    if tube.centre_mm < 0.9 * centre or tube.centre_mm > MAX_TORTUOSITY * chord:
        return None
    return tube


class _Taken:
    """Space that tubes fill, in cells of 8 mm."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, ...], list[tuple[np.ndarray, np.ndarray]]] = {}

    @staticmethod
    def _around(tube: Tube, margin: float) -> Iterator[tuple[int, ...]]:
        low = np.floor((tube.points.min(axis=0) - margin) / 8).astype(int)
        high = np.floor((tube.points.max(axis=0) + margin) / 8).astype(int)
        return product(*(range(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)))

    def add(self, tube: Tube) -> None:
        """Remember a tube."""
        for cell in self._around(tube, 0.0):
            self._cells.setdefault(cell, []).append((tube.points, tube.radius))

    def touches(self, tube: Tube, gap_mm: float = 0.8) -> bool:
        """Whether a tube comes nearer than `gap_mm` to another."""
        for cell in self._around(tube, 6.0):
            for points, radius in self._cells.get(cell, ()):
                distance = np.linalg.norm(tube.points[:, None] - points[None], axis=-1)
                if (distance < tube.radius[:, None] + radius[None] + gap_mm).any():
                    return True
        return False


def profile(rng: np.random.Generator, n: int, radius: float) -> np.ndarray:
    """Radius along a tube with mean `radius`: beads and tapered ends within about 25 %, (n,) mm."""
    along = np.linspace(0, 1, n)
    waves = 1 + 0.12 * np.sin(2 * np.pi * (along * max(1.0, n * STEP_MM / 3.0) + rng.random()))
    taper = 1 - 0.35 * np.abs(2 * along - 1) ** 4
    shape = waves * taper * (1 + rng.normal(0, 0.04, n))
    return np.maximum(radius * shape / shape.mean(), 0.15)


def occupancy(
    tubes: Sequence[Tube], shape: tuple[int, int, int], affine: np.ndarray, *, sub_mm: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of each voxel that tubes fill, and the tube that fills most of it.

    Each tube is drawn at `sub_mm` or finer in its own box and averaged down, so partial volume is exact to that step.

    Parameters
    ----------
    tubes : sequence of Tube
    shape, affine
        Grid; the affine must be a scaled axis permutation of the head's millimetres (no rotation).

    Returns
    -------
    fraction : ndarray of float32
        0-1.
    index : ndarray of int32
        1-based number of the tube, 0 where none.
    """
    fraction, best = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    index = np.zeros(shape, np.int32)
    spacing, origin = np.diag(affine)[:3], affine[:3, 3]
    split = np.maximum(1, np.ceil(spacing / sub_mm)).astype(int)
    for number, tube in enumerate(tubes, start=1):
        radius = tube.radius.max()
        low = np.floor((tube.points.min(axis=0) - radius - origin) / spacing - 0.5).astype(int)
        high = np.ceil((tube.points.max(axis=0) + radius - origin) / spacing + 0.5).astype(int) + 1
        low, high = np.maximum(low, 0), np.minimum(high, shape)
        if (high <= low).any():
            continue
        part = _rasterised(tube, low, high, spacing, origin, split)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        fraction[box] = np.minimum(fraction[box] + part, 1)
        better = part > best[box]
        best[box] = np.where(better, part, best[box])
        index[box] = np.where(better, number, index[box])
    return fraction, index


def _rasterised(
    tube: Tube, low: np.ndarray, high: np.ndarray, spacing: np.ndarray, origin: np.ndarray, split: np.ndarray
) -> np.ndarray:
    """Volume fraction of one tube in the voxels low ... high - 1."""
    axes = []
    for a in range(3):
        fine = (np.arange((high[a] - low[a]) * split[a]) + 0.5) / split[a] - 0.5 + low[a]
        axes.append((fine * spacing[a] + origin[a]).astype(np.float32))
    inside = np.zeros([len(v) for v in axes], bool)
    points, radius = _dense(tube, 0.1)
    tree = cKDTree(points)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    distance, nearest = tree.query(grid, distance_upper_bound=float(radius.max()))
    hit = np.isfinite(distance)
    flat = inside.reshape(-1)
    flat[hit] = distance[hit] <= radius[nearest[hit]]
    n = (high - low).tolist()
    return flat.reshape(n[0], split[0], n[1], split[1], n[2], split[2]).mean(axis=(1, 3, 5), dtype=np.float32)


def _dense(tube: Tube, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and radii along the centre line, `step` mm apart."""
    lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(tube.points, axis=0), axis=1))]
    at = np.linspace(0, lengths[-1], max(2, int(np.ceil(lengths[-1] / step)) + 1))
    points = np.stack([np.interp(at, lengths, tube.points[:, a]) for a in range(3)], axis=1)
    return points, np.interp(at, lengths, tube.radius)
