"""A head with its EPVS, ready to be imaged as often as wanted: whole (`Scene.scan`) or in crops (`Scene.crop`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from bids_epvs.prepare import planes
from bids_epvs.prepare.regions import from_labels
from bids_epvs.prepare.resample import slice_axis
from bids_epvs.synth import contrast, mimics, tubes
from bids_epvs.synth.anatomy import FINE_MM, Anatomy, deformed, every_second, plain
from bids_epvs.synth.contrast import Protocol

_CHUNK = 24_000_000
"""Fine voxels imaged at a time."""


@dataclass(frozen=True)
class Look:
    """How one image of a scene looks.

    Attributes
    ----------
    name : str
        Key of `contrast.MEANS` or ``random``.
    table : ndarray of float32
        Intensity of each label.
    step : float
        Intensity that a voxel full of EPVS gains over its tissue.
    white : float
        Intensity of white matter.
    """

    name: str
    table: np.ndarray
    step: float
    white: float


def draw_look(rng: np.random.Generator, name: str, *, strength: float, tesla: float = 3.0) -> Look:
    """Intensities of one contrast.

    Parameters
    ----------
    rng : Generator
    name : str
    strength : float
        Signal of EPVS on the way from white matter to fluid, 0.5-1; on FLAIR a further random share of it.
    tesla : float
    """
    means = contrast.draw_means(rng, name, tesla)
    step = epvs_share(rng, name, strength) * (means["CSF"] - means["WM"])
    return Look(name, contrast.intensity_table(rng, means), step, means["WM"])


def epvs_share(rng: np.random.Generator, name: str, strength: float) -> float:
    """Signal of EPVS in one contrast as a share of the step to fluid: on FLAIR a random part of `strength`."""
    return strength * (float(rng.uniform(0.1, 1.0)) if name == "FLAIR" else 1.0)


@dataclass(frozen=True)
class Scene:
    """A deformed head with lesions, vessels and tubes.

    Attributes
    ----------
    head : Anatomy
        At `FINE_MM`.
    regions : ndarray of uint8
        On the grid of `every_second` of the head.
    tubes : tuple of Tube
    filled : ndarray of uint8
        Share of each voxel of the head that tubes fill, 255 = all.
    parameters : mapping
        What was drawn.
    """

    head: Anatomy
    regions: np.ndarray
    tubes: tuple[tubes.Tube, ...]
    filled: np.ndarray
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def grid(self, spacing: Sequence[float]) -> tuple[tuple[int, int, int], np.ndarray]:
        """Shape and affine of an acquisition that covers the head."""
        step = np.array(self.head.spacing)
        x, y, z = (int(v) for v in np.ceil(np.array(self.head.labels.shape) * step / np.array(spacing)))
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = self.head.affine[:3, 3] - step / 2 + np.array(spacing) / 2
        return (x, y, z), affine

    def scan(self, rng: np.random.Generator, look: Look, protocol: Protocol) -> np.ndarray:
        """One image on `grid` of the protocol's spacing, float32; slices lie along `slice_axis` of that."""
        axis = slice_axis(protocol.spacing)
        if axis != planes.AXIAL:
            own = replace(protocol, spacing=planes.turned_spacing(protocol.spacing, axis))
            return np.ascontiguousarray(planes.unsliced(self.turned(axis).scan(rng, look, own), axis))
        shape, _ = self.grid(protocol.spacing)
        ideal = np.empty(shape, np.float32)
        plane = self.head.labels.shape[0] * self.head.labels.shape[1]
        count = max(1, int(_CHUNK / plane * self.head.spacing[2] / protocol.spacing[2]))
        for first in range(0, shape[2], count):
            last = min(first + count, shape[2])
            start = np.array([0.0, 0.0, first * protocol.spacing[2]])
            part = (shape[0], shape[1], last - first)
            ideal[:, :, first:last] = self._ideal(look, protocol, start, part)
        return finish(ideal, rng, look, protocol, self.middle)

    def turned(self, axis: int) -> Scene:
        """The head with another axis last (`planes.sliced`), to be scanned; regions and tubes stay as they are."""
        head = self.head
        swap = np.eye(4)[[*planes.order(axis), 3]]
        labels, filled = (np.ascontiguousarray(planes.sliced(a, axis)) for a in (head.labels, self.filled))
        moved = Anatomy(labels, swap @ head.affine @ swap.T, head.to_template @ swap.T)
        return replace(self, head=moved, filled=filled)

    @property
    def middle(self) -> np.ndarray:
        """The middle of the head (`contrast.MIDDLE_MM`), mm from the outer corner of the head."""
        voxel = np.linalg.inv(self.head.to_template @ self.head.affine) @ [*contrast.MIDDLE_MM, 1.0]
        return np.asarray((voxel[:3] + 0.5) * np.array(self.head.spacing))

    def _ideal(self, look: Look, protocol: Protocol, start: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Noise-free average over the voxels of a block; `start` is its outer corner in mm from that of the head."""
        box, weights = self._block(protocol, start, shape)
        fine = look.table[self.head.labels[box]]
        fine += self.filled[box] * np.float32(look.step / 255)
        return contrast.average(fine, weights)

    def _block(
        self, protocol: Protocol, start: np.ndarray, shape: tuple[int, int, int]
    ) -> tuple[tuple[slice, ...], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The fine voxels that a block of acquired voxels needs, and the matrices that average them."""
        step = self.head.spacing[0]
        extent = np.array(shape) * np.array(protocol.spacing)
        low = np.maximum(np.floor(start / step).astype(int) - 2, 0)
        high = np.minimum(np.ceil((start + extent) / step).astype(int) + 2, self.head.labels.shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return box, contrast.weights(tuple(high - low), step, shape, protocol, start - low * step)

    def fraction(self, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Share of EPVS in each voxel (float32) and the tube that fills most of it (int32), on `grid`."""
        shape, affine = self.grid(spacing)
        return tubes.occupancy(self.tubes, shape, affine)

    def regions_on(self, spacing: Sequence[float]) -> np.ndarray:
        """Region at the centre of each voxel of `grid`, uint8."""
        return self._regions_in(np.zeros(3), self.grid(spacing)[0], spacing)

    def _regions_in(self, start: np.ndarray, shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
        """Region at the centre of each voxel of a block that begins at `start` (mm from the corner of the head)."""
        at = [
            np.minimum(((s + (np.arange(n) + 0.5) * d) / (2 * f)).astype(int), m - 1)
            for s, n, d, f, m in zip(start, shape, spacing, self.head.spacing, self.regions.shape, strict=True)
        ]
        return self.regions[np.ix_(*at)]

    def mimics_on(self, spacing: Sequence[float]) -> np.ndarray:
        """Kind of mimic (`mimics.KINDS`) that fills at least half of each voxel of `grid`, uint8."""
        shape, _ = self.grid(spacing)
        whole = Protocol((spacing[0], spacing[1], spacing[2]), thickness=spacing[2])
        step = self.head.spacing[0]
        table = np.zeros(1024, np.uint8)
        for kind, codes in mimics.CODES.items():
            table[list(codes)] = kind
        kinds = table[self.head.labels]
        out = np.zeros(shape, np.uint8)
        for kind, box in enumerate(ndimage.find_objects(kinds, max_label=len(mimics.KINDS)), start=1):
            if box is None:
                continue
            low = [int(b.start * step / s) for b, s in zip(box, spacing, strict=True)]
            high = [min(int(b.stop * step / s) + 1, n) for b, s, n in zip(box, spacing, shape, strict=True)]
            part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            start = np.array(low) * np.array(spacing) - np.array([b.start for b in box]) * step
            size = (high[0] - low[0], high[1] - low[1], high[2] - low[2])
            made = contrast.weights(kinds[box].shape, step, size, whole, start)
            out[part][contrast.average(kinds[box] == kind, made) >= 0.5] = kind
        return out

    def crop(
        self,
        rng: np.random.Generator,
        looks: Sequence[Look],
        protocol: Protocol,
        shape: tuple[int, int, int],
        *,
        near_tubes: float = 0.7,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A training crop.

        Parameters
        ----------
        rng : Generator
        looks : sequence of Look
            One a channel.
        protocol : Protocol
        shape : tuple of int
        near_tubes : float
            Share of crops that hold a tube.

        Returns
        -------
        images : ndarray of float32
            (channels, *shape).
        fraction : ndarray of float32
            Share of EPVS in each voxel.
        regions : ndarray of uint8
        """
        step = self.head.spacing[0]
        extent = np.array(shape) * np.array(protocol.spacing)
        origin = self.head.affine[:3, 3] - step / 2
        if self.tubes and rng.random() < near_tubes:
            tube = self.tubes[rng.integers(len(self.tubes))]
            centre = tube.points[rng.integers(len(tube.points))] - origin + rng.uniform(-0.3, 0.3, 3) * extent
        else:
            inside = np.argwhere(self.regions[::4, ::4, ::4] > 0)
            centre = (inside[rng.integers(len(inside))] * 8 + rng.uniform(0, 8, 3)) * step
        size = np.array(self.head.labels.shape) * step
        start = np.clip(centre - extent / 2, 0, np.maximum(size - extent, 0))
        middle = self.middle - start
        images = np.stack([finish(self._ideal(k, protocol, start, shape), rng, k, protocol, middle) for k in looks])
        whole = Protocol(protocol.spacing, thickness=protocol.spacing[2])
        box, weights = self._block(whole, start, shape)
        fraction = contrast.average(self.filled[box], weights) / 255
        return images, fraction, self._regions_in(start, shape, protocol.spacing)


def finish(
    ideal: np.ndarray, rng: np.random.Generator, look: Look, protocol: Protocol, middle: np.ndarray | None = None
) -> np.ndarray:
    """Texture, coil field, scanner and noise on an ideal image, float32.

    `middle` is that of the head, mm from the outer corner of the image; without it noise is even.
    """
    image = ideal * contrast.texture(ideal.shape, protocol.spacing, rng)
    image *= contrast.bias_field(ideal.shape, rng, protocol.bias)
    sigma: float | np.ndarray = look.white / protocol.snr
    if middle is not None:
        x, y, z = ideal.shape
        sigma = sigma * contrast.noise_map((x, y, z), protocol.spacing, middle, protocol.depth)
    return contrast.through_scanner(image, rng, protocol, sigma)


def build(
    rng: np.random.Generator,
    head: Anatomy,
    *,
    burden: str = "any",
    age: float = 65.0,
    with_mimics: bool = True,
    fine_mm: float = FINE_MM,
    counts: Mapping[str, int] | None = None,
) -> Scene:
    """Deform a head, paint mimics, draw tubes.

    Parameters
    ----------
    rng : Generator
    head : Anatomy
        From `anatomy.packaged` or `anatomy.from_labelmap`.
    burden : str
        Key of `tubes.BURDENS`.
    age : float
        Years; lesions grow with it.
    with_mimics : bool
    fine_mm : float
        Voxel size at which the head is drawn; larger is faster and coarser.
    counts : mapping, optional
        Number of EPVS by region, instead of drawing it from the burden.
    """
    moved = deformed(head, rng, spacing=fine_mm)
    half = every_second(moved)
    regions = from_labels(plain(half.labels), half.spacing, half.to_template @ half.affine)
    used: dict[str, Any] = {"Burden": burden, "Age": age}
    if with_mimics:
        load = mimics.draw(rng, age)
        moved = mimics.add(rng, moved, regions, load)
        used["Mimics"] = vars(load)
    counts = tubes.sample_counts(rng, burden) if counts is None else counts
    drawn = tubes.sample(rng, moved, regions, counts)
    used["CountsWanted"] = dict(counts)
    filled, _ = tubes.occupancy(drawn, moved.labels.shape, moved.affine, sub_mm=0.17)
    return Scene(moved, regions, tuple(drawn), np.rint(filled * 255).astype(np.uint8), used)
