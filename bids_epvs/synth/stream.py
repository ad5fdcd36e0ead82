"""Heads deformed, imaged and cut into training batches where the network is trained: on a GPU.

What `synth.parcels`, `synth.nuclei` and `synth.slices` write to disk from numpy arrays, in minutes a head, is made here
of the heads of `synth.paintings` with `synth.device`, in milliseconds, and never seen twice. The random numbers of
shapes, contrasts and protocols are drawn by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from bids_epvs.errors import DataError
from bids_epvs.models import nuclei, parcellation, slices, weights
from bids_epvs.synth import anatomy, contrast, device, parcels
from bids_epvs.synth import slices as planes
from bids_epvs.synth.anatomy import Anatomy
from bids_epvs.synth.contrast import Protocol
from bids_epvs.synth.device import Tensor
from bids_epvs.synth.paintings import LABELS
from bids_epvs.synth.scene import Look

if TYPE_CHECKING:
    import keras

_KINDS, _REACH = 64, 8
"""A voxel is one whole number: its number in `LABELS`, then how far it lies from the brain, then the EPVS in it."""
_COUNT = len(parcellation.CLASSES)


def _of(labels: Sequence[int]) -> np.ndarray:
    """1 for the numbers of some labels, float32 (`_KINDS`,)."""
    return np.pad(np.isin(LABELS, labels), (0, _KINDS - len(LABELS))).astype(np.float32)


_INSIDE = np.pad(parcels.in_skull()[LABELS], (0, _KINDS - len(LABELS))).astype(np.float32)
_CODES = np.pad(parcellation.codes()[anatomy.taught(LABELS)], (0, _KINDS - len(LABELS)))


@dataclass(frozen=True)
class Head:
    """A painted head on the device.

    Attributes
    ----------
    packed : tensor of int32
        (n,), see `_KINDS`.
    frame : Anatomy
        Its grid and pose; the labels are empty.
    """

    packed: Tensor
    frame: Anatomy


def read(path: Path) -> Head:
    """A file of `paintings.generate`."""
    with np.load(path) as stored:
        numbers, filled = stored["numbers"], stored["filled"]
        frame = Anatomy(np.broadcast_to(np.int16(0), numbers.shape), stored["affine"], stored["to_template"])
    near = device.tensor((_INSIDE - _of([24]))[numbers] > 0.5)
    away = 1 - near
    for _ in range(_REACH - 2):
        near = device.grown(near)
        away = away + 1 - near
    packed = numbers.astype(np.int32) + _KINDS * _REACH * filled.astype(np.int32)
    packed = ops.convert_to_tensor(packed) + _KINDS * ops.cast(away, "int32")
    return Head(ops.reshape(packed, (-1,)), frame)


@dataclass(frozen=True)
class Pose:
    """A deformed head.

    Attributes
    ----------
    numbers : tensor of int32
        (X, Y, Z): position in `LABELS`.
    away : tensor of int32
        Voxels from the brain (fluid apart), at most `_REACH` - 1.
    filled : tensor
        Share of EPVS, 0-1.
    affine : ndarray
        Voxels to the head's millimetres.
    to_template : ndarray
        Those to (about) ICBM152 millimetres, as registration would say.
    """

    numbers: Tensor
    away: Tensor
    filled: Tensor
    affine: np.ndarray
    to_template: np.ndarray


def pose(rng: np.random.Generator, head: Head) -> Pose:
    """A new deformation of a head, see `parcels.draw_head`, and its inexact pose."""
    old = head.frame.labels.shape
    corners = anatomy.corners_of([(0, n) for n in old], head.frame.affine)
    how = anatomy.draw_deformation(
        head.frame, corners, rng, spacing=parcels.SPACING_MM, amount=1.2, warp_mm=parcels.WARP_MM
    )
    made = Anatomy(np.broadcast_to(np.int16(0), how.shape), how.affine, how.to_template)
    kept = parcels.near_brain(made)
    first = how.shape[2] - kept.labels.shape[2]
    matrix = np.column_stack([how.matrix, how.offset + how.matrix[:, 2] * first])
    spread = [device.smooth_weights(n, m) for n, m in zip(how.shape, how.knots.shape[1:], strict=True)]
    spread[2] = spread[2][first:]
    shift = device.along(device.tensor(np.tensordot(how.to_old, how.knots, axes=1)), spread)
    at = [place + shift[k] for k, place in enumerate(device.places(matrix, kept.labels.shape))]
    packed = device.nearest(head.packed, old, at)
    filled = packed // (_KINDS * _REACH)
    return Pose(
        packed % _KINDS,
        packed // _KINDS % _REACH,
        ops.cast(filled, "float32") / 255,
        kept.affine,
        parcels.pose_error(rng) @ kept.to_template,
    )


def crop_head(rng: np.random.Generator, made: Pose) -> Tensor:
    """Where there is something to image, 0 or 1; see `parcels.crop_head`."""
    inside = ops.take(device.tensor(_INSIDE), made.numbers, axis=0)
    air = ops.cast(made.numbers > 0, "float32")
    chance = rng.random()
    if chance < 0.25:
        reach = int(rng.integers(0, 6))
        near = ops.cast(made.away <= reach, "float32")
        return air * near * (1.0 if reach > 3 else inside)
    if chance < 0.4:
        brain = ops.take(device.tensor(_of((2, 41, 3, 42))), made.numbers, axis=0)
        ends = [np.flatnonzero(ops.convert_to_numpy(ops.max(brain, axis=a))) for a in ((0, 2), (0, 1))]
        _, y, z = (np.arange(n, dtype=np.float32) for n in made.numbers.shape)
        front, low = (ends[0][-1], ends[1][0]) if all(e.size for e in ends) else (len(y), 0)
        face = parcels.face_plane(rng, y, z, front, low)
        return air * ops.maximum(inside, 1 - device.tensor(face)[None])
    return air


def imaged(
    rng: np.random.Generator, made: Pose, look: Look, draw: Callable[..., tuple[Protocol, int]]
) -> tuple[Tensor, np.ndarray]:
    """One acquisition of a head and its affine, see `parcels.imaged`; slices along its own axis."""
    there = crop_head(rng, made)
    protocol, axis = draw(rng)
    fine = _ideal(rng, made, look) * there
    order = [a for a in range(3) if a != axis] + [axis]
    size = [made.numbers.shape[a] for a in order]
    spacing = np.array(protocol.spacing)
    x, y, z = (int(v) for v in np.ceil(np.array(size) * parcels.SPACING_MM / spacing))
    average = contrast.weights(tuple(size), parcels.SPACING_MM, (x, y, z), protocol, np.zeros(3))
    image = device.along(ops.transpose(fine, order), average)
    image = image * _texture(rng, image.shape, protocol.spacing)
    image = image * ops.exp(device.smooth_field(rng.normal(0, protocol.bias, (4, 4, 4)), image.shape))
    image = _through_scanner(rng, image, protocol, look.white / protocol.snr)
    first, last = parcels.covered(rng, z)
    back = np.eye(4)[[*np.argsort(order), 3]]
    affine = back @ parcels.scan_affine(made.affine, order, spacing, first) @ back.T
    return ops.transpose(image[:, :, first:last], np.argsort(order).tolist()), affine


def _ideal(rng: np.random.Generator, made: Pose, look: Look) -> Tensor:
    """Intensities at `parcels.SPACING_MM`, cortex as `parcels.myelinated`, EPVS drawn in."""
    knots, lost = parcels.draw_myelin(rng)
    table = np.pad(look.table[LABELS], (0, _KINDS - len(LABELS)))
    cortex = _of(parcels.CORTEX)
    slope = device.tensor(cortex * (table - look.white))
    fine = ops.take(device.tensor(np.where(cortex > 0, look.white, table)), made.numbers, axis=0)
    white = ops.take(device.tensor(_of((2, 41))), made.numbers, axis=0)
    kept = ops.exp(device.smooth_field(knots, made.numbers.shape))
    kept = device.clipped(kept, *parcels.KEPT) * (1 - lost * device.grown(white))
    return fine + ops.take(slope, made.numbers, axis=0) * kept + made.filled * look.step


def _texture(rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """`contrast.texture`."""
    filters = [device.blur(n, round(1.2 / s, 2)) for n, s in zip(shape, spacing, strict=True)]
    grain = device.along(device.normal(rng, shape), filters)
    return 1 + 0.025 * grain / device.at_least(ops.std(grain), 1e-6)


def _through_scanner(rng: np.random.Generator, image: Tensor, protocol: Protocol, sigma: float) -> Tensor:
    """`contrast.through_scanner`."""
    turn, window = contrast.k_space(tuple(image.shape[:2]), rng, protocol)
    scale = float(contrast.noise_scale(window, sigma))
    image = ops.transpose(image, (2, 0, 1))
    a, b = ops.fft2((image, ops.zeros_like(image)))
    c, d = device.tensor(turn.real), device.tensor(turn.imag)
    noise = device.normal(rng, (2, *a.shape)) * scale
    a, b = a * c - b * d + noise[0], a * d + b * c + noise[1]
    a, b = ops.ifft2((a * device.tensor(window), b * device.tensor(window)))
    return ops.transpose(ops.sqrt(ops.square(a) + ops.square(b)), (1, 2, 0))


def class_numbers(made: Pose, affine: np.ndarray, shape: Sequence[int]) -> Tensor:
    """`parcellation.codes` at the voxels of a grid whose affine leads to the head's millimetres, int32."""
    at = device.places(np.linalg.inv(made.affine) @ affine, shape)
    found = device.nearest(ops.reshape(made.numbers, (-1,)), made.numbers.shape, at)
    return ops.take(device.tensor(_CODES, np.int32), found, axis=0)


def half_codes(stored: Tensor) -> Tensor:
    """`parcellation.half_codes`, int32 (2, ...)."""
    n = parcellation.HALF * stored.shape[0] // parcellation.SHAPE[0]
    return _swapped(stored[:n], ops.flip(stored, axis=0)[:n])


def _swapped(left: Tensor, right: Tensor) -> Tensor:
    """Class numbers of a left half and of a mirrored right one as a left half has them, (2, ...)."""
    codes = np.arange(2 * parcellation.RIGHT)
    midline = [k for k, c in enumerate(parcellation.CLASSES) if c.midline]
    own = np.where(codes >= parcellation.RIGHT, parcellation.OTHER_SIDE, codes)
    shared = np.where(np.isin(codes, midline), codes, parcellation.OTHER_SIDE)
    other = np.where(codes >= parcellation.RIGHT, codes - parcellation.RIGHT, shared)
    tables = (device.tensor(t, np.int32) for t in (own, other))
    return ops.stack([ops.take(t, half, axis=0) for t, half in zip(tables, (left, right), strict=True)])


@dataclass(frozen=True)
class Seen:
    """Some images on the parcellation's grid: intensities, scaled evidence, and the tissues' mean and variance."""

    top: Tensor
    mean: Tensor
    variance: Tensor
    evidence: Tensor


def seen(values: Tensor) -> Seen:
    """`parcellation.fitted` and `parcellation.likened` of several images (batch, *SHAPE)."""
    mask, prior = parcellation.tissue_priors()
    index = device.tensor(np.flatnonzero(mask), np.int32)
    inside = ops.take(ops.reshape(values, (values.shape[0], -1)), index, axis=1)
    there = ops.cast(inside > 0, "float32")
    some = ops.sum(there, axis=-1, keepdims=True) > 0
    top = device.at_least(ops.where(some, device.quantile(inside, there, 0.99), device.number(1.0)), 1e-6)
    mean, variance = device.levels(device.clipped(inside / top, 0, 2), device.tensor(prior.T)[None], there)
    return Seen(top, mean, variance, likened(values, top, mean, variance))


def likened(values: Tensor, top: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`parcellation.likened` of (batch, ...) by `top` (batch, 1) and (batch, tissues)."""
    lead = (values.shape[0], *[1] * (len(values.shape) - 1))
    scaled = device.clipped(values / ops.reshape(top, lead), 0, 2)
    rows = (*lead, mean.shape[-1])
    log = -0.25 * ops.square(scaled[..., None] - ops.reshape(mean, rows)) / ops.reshape(variance, rows)
    shares = ops.softmax(log, axis=-1) * ops.cast(values > 0, "float32")[..., None]
    return ops.concatenate([scaled[..., None] / 2, shares], axis=-1)


def columns(volumes: Tensor, which: Sequence[int]) -> Tensor:
    """Some of the last axis."""
    return ops.stack([volumes[..., k] for k in which], axis=-1)


def halved(volumes: Tensor, n: int) -> Tensor:
    """First `n` voxels along R of (batch, X, ...), and of the mirrored volumes: (2 * batch, n, ...)."""
    return ops.concatenate([volumes[:, :n], ops.flip(volumes, axis=1)[:, :n]], axis=0)


def merged(sides: Tensor, width: int) -> Tensor:
    """`parcellation.merged`, sides together: (2, half, Y, Z, classes) to (width, Y, Z, classes of slices)."""
    half = sides.shape[1]
    rest = ops.zeros((width - half, *sides.shape[2:4], len(slices.CLASSES)))
    left, right = (side[..., : len(slices.CLASSES)] for side in (sides[0], ops.flip(sides[1], axis=0)))
    total = ops.concatenate([left, rest], axis=0) + ops.concatenate([rest, right], axis=0)
    twice = np.ones((width, 1, 1, 1), np.float32)
    twice[width - half : half] = 2
    midline = np.array([c.midline for c in parcellation.CLASSES[: parcellation.OTHER_SIDE]], np.float32)
    total = total / device.tensor(1 + midline * (twice - 1))
    return total / device.at_least(ops.sum(total, axis=-1, keepdims=True), 1e-6)


class Network:
    """A network that looks before the one that is trained; its file is read again when it has changed."""

    def __init__(self, build: Callable[..., keras.Model], file: Path) -> None:
        self.build, self.file, self.read = build, file, 0.0
        self.model: Any = None
        self.found: dict[str, Any] = {}

    def __call__(self, *given: Tensor) -> Tensor:
        """Probabilities."""
        changed = self.file.stat().st_mtime
        if changed != self.read:
            found = weights.architecture(self.file)
            if self.model is None or found != self.found:
                self.model, self.found = self.build(**found), found
            weights.load(self.model, self.file)
            self.read = changed
        return ops.softmax(self.model(list(given), training=False), axis=-1)


class Stream:
    """Batches for the parcellation network: halves of heads.

    Parameters
    ----------
    folder : Path
        Of `paintings.generate`.
    heads, images : int
        Deformed heads in a batch, and images of each.
    first, second : Network, optional
        What looks before, where something does.
    """

    draw_protocol = staticmethod(parcels.draw_protocol)

    def __init__(
        self,
        folder: Path,
        *,
        heads: int = 2,
        images: int = 2,
        first: Network | None = None,
        second: Network | None = None,
    ) -> None:
        self.heads = [read(path) for path in sorted(folder.glob("example-*.npz"))]
        if not self.heads:
            raise DataError("no heads.", where=folder, remedy="Make them with bids_epvs-train.")
        self.number, self.images, self.first, self.second = heads, images, first, second

    def __call__(self, rng: np.random.Generator) -> list[tuple[Sequence[Tensor], Tensor]]:
        """Items (inputs, target), each a batch of its own that fits with the others of its shape."""
        made = [pose(rng, self.heads[rng.integers(len(self.heads))]) for _ in range(self.number)]
        drawn = [(one, *self._image(rng, one)) for one in made for _ in range(self.images)]
        return self.items(rng, drawn)

    def _image(self, rng: np.random.Generator, made: Pose) -> tuple[Tensor, np.ndarray]:
        name = parcellation.CONTRASTS[int(rng.choice(len(parcellation.SHARES), p=parcellation.SHARES))]
        return imaged(rng, made, parcels.draw_look(rng, name), self.draw_protocol)

    def on_grid(self, drawn: Sequence[tuple[Pose, Tensor, np.ndarray]], grid: Any) -> Tensor:
        """`parcellation.on_grid` of each image, (batch, ...)."""
        out = []
        for made, image, affine in drawn:
            matrix = np.linalg.inv(made.to_template @ affine) @ grid.affine
            out.append(device.resampled(image, matrix, grid.shape))
        return ops.stack(out)

    def items(
        self, rng: np.random.Generator, drawn: Sequence[tuple[Pose, Tensor, np.ndarray]]
    ) -> list[tuple[Sequence[Tensor], Tensor]]:
        """A half of each image."""
        given = self.varied(rng, seen(self.on_grid(drawn, parcellation.grid())).evidence)
        sides = halved(given, parcellation.HALF)
        targets: dict[int, Tensor] = {}
        for made, *_ in drawn:
            if id(made) not in targets:
                targets[id(made)] = self.targets(made)
        target = ops.concatenate([ops.stack([targets[id(m)][side] for m, *_ in drawn]) for side in range(2)], axis=0)
        prior = ops.broadcast_to(device.tensor(parcellation.priors())[None], target.shape)
        return [((sides, prior), target)]

    @staticmethod
    def varied(rng: np.random.Generator, evidence: Tensor) -> Tensor:
        """Intensities of each image raised to a random exponent."""
        power = np.exp(rng.normal(0, parcellation.GAMMA, (evidence.shape[0], *[1] * (len(evidence.shape) - 2))))
        first = device.at_least(evidence[..., 0], 0.0) ** device.tensor(power)
        return ops.concatenate([first[..., None], evidence[..., 1:]], axis=-1)

    @staticmethod
    def targets(made: Pose) -> Tensor:
        """Share of each class in each voxel of both halves, (2, HALF, Y, Z, classes)."""
        grid = parcellation.grid()
        fine = grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
        fine[:3, 3] = grid.affine[:3, 3] - parcellation.SPACING_MM / 4
        shape = tuple(2 * n for n in parcellation.SHAPE)
        codes = half_codes(class_numbers(made, np.linalg.inv(made.to_template) @ fine, shape))
        total = 0.0
        for i, j, k in np.ndindex(2, 2, 2):
            total = total + device.one_hot(codes[:, i::2, j::2, k::2], _COUNT)
        return total / 8


class Boxes(Stream):
    """Batches for the network that looks again at the deep grey matter: boxes of both halves."""

    def items(
        self, rng: np.random.Generator, drawn: Sequence[tuple[Pose, Tensor, np.ndarray]]
    ) -> list[tuple[Sequence[Tensor], Tensor]]:
        """Both boxes of each image."""
        given, known = self.boxes(drawn)
        target = ops.concatenate([ops.stack([self.targets(m)[s] for m, *_ in drawn]) for s in range(2)], axis=0)
        return [((self.varied(rng, given), known), target)]

    def boxes(self, drawn: Sequence[tuple[Pose, Tensor, np.ndarray]]) -> tuple[Tensor, Tensor]:
        """`nuclei.evidence` of the left boxes of all images, then of the right ones, and what is known."""
        given, known, _ = self.looked(drawn)
        return given, known

    def looked(self, drawn: Sequence[tuple[Pose, Tensor, np.ndarray]]) -> tuple[Tensor, Tensor, Tensor]:
        """`boxes`, and what the first network says of the halves, (2 * batch, HALF, Y, Z, classes)."""
        assert self.first is not None
        whole = seen(self.on_grid(drawn, parcellation.grid()))
        sides = halved(whole.evidence, parcellation.HALF)
        prior = ops.broadcast_to(device.tensor(parcellation.priors())[None], (*sides.shape[:-1], _COUNT))
        found = self.first(sides, prior)
        known = found[(slice(None), *nuclei.BOX)]
        near = self.on_grid(drawn, nuclei.grid())
        values = halved(near, nuclei.FINE * nuclei.SHAPE[0])
        twice = [ops.concatenate([v, v], axis=0) for v in (whole.top, whole.mean, whole.variance)]
        shares = columns(known, [parcellation.NAMES.index(n) for n in nuclei.KINDS])
        sure = ops.sum(shares, axis=-1)
        sure = sure + ops.sum(columns(known, [parcellation.NAMES.index(n) for n in nuclei.OTHERS]), axis=-1)
        for axis in (1, 2, 3):
            shares, sure = ops.repeat(shares, nuclei.FINE, axis=axis), ops.repeat(sure, nuclei.FINE, axis=axis)
        told = device.likelihoods(values, shares, sure)
        return ops.concatenate([likened(values, *twice), told], axis=-1), known, found

    @staticmethod
    def targets(made: Pose) -> Tensor:
        """Classes of both boxes, one-hot, (2, ...)."""
        grid = nuclei.grid()
        codes = class_numbers(made, np.linalg.inv(made.to_template) @ grid.affine, grid.shape)
        n = nuclei.FINE * nuclei.SHAPE[0]
        return device.one_hot(_swapped(codes[:n], ops.flip(codes, axis=0)[:n]), _COUNT)


class Planes(Boxes):
    """Batches for the network that draws borders in the plane of thick slices: slices of each image."""

    draw_protocol = staticmethod(planes.draw_protocol)
    most, multiple = 12, 32
    """Slices of an image in a batch; what the sides of a slice are padded to."""

    def items(
        self, rng: np.random.Generator, drawn: Sequence[tuple[Pose, Tensor, np.ndarray]]
    ) -> list[tuple[Sequence[Tensor], Tensor]]:
        """Some slices of each image, mirrored now and then; an item an image."""
        assert self.second is not None
        given, known, found = self.looked(drawn)
        fine = self.second(given, known)
        number = len(drawn)
        return [
            item
            for k, one in enumerate(drawn)
            if (item := self._planes(rng, one, found[k::number], fine[k::number])) is not None
        ]

    def _planes(
        self, rng: np.random.Generator, one: tuple[Pose, Tensor, np.ndarray], sides: Tensor, boxes: Tensor
    ) -> tuple[Sequence[Tensor], Tensor] | None:
        """Slices of one image, see `synth.slices.example`; None where the brain is not in it."""
        made, image, affine = one
        image, affine = _at_least_1mm(image, affine)
        axis = int(np.argmax(np.round(np.linalg.norm(affine[:3, :3], axis=0), 2)))
        known = _known(made.to_template @ affine, image.shape, sides, boxes)
        image, known = ops.moveaxis(image, axis, 2), ops.moveaxis(known, axis, 2)
        box = _window(ops.convert_to_numpy(1 - known[..., 0] > 0.05), self.multiple)
        if box is None:
            return None
        values, known = image[box], known[box]
        fit = _fitted(values, known)
        at = np.sort(rng.permutation(values.shape[2])[: self.most])
        distance = float(np.linalg.norm(affine[:3, axis]))
        given = _plane_evidence(values, fit, distance, at)
        told = ops.moveaxis(ops.take(known, device.tensor(at, np.int32), axis=2), 2, 0)
        target = _plane_shares(made, affine, axis, [image.shape[k] for k in range(3)], box, at)
        parts = [self.varied(rng, given[None])[0], told, target]
        if rng.random() < 0.5:
            parts = [ops.flip(part, axis=1) for part in parts]
        rests = [(0, -n % self.multiple) for n in told.shape[1:3]]
        given, told, target = (ops.pad(part, ((0, 0), *rests, (0, 0))) for part in parts)
        return (given, told), target


def _at_least_1mm(image: Tensor, affine: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """An image on `brain.work_grid` of it."""
    from nibabel import Nifti1Image

    from bids_epvs.prepare import brain

    there = brain.work_grid(Nifti1Image(np.broadcast_to(np.uint8(0), tuple(image.shape)), affine))
    if there.shape == tuple(image.shape):
        return image, affine
    return device.resampled(image, np.linalg.inv(affine) @ there.affine, there.shape), there.affine


def _known(to_template: np.ndarray, shape: Sequence[int], sides: Tensor, boxes: Tensor) -> Tensor:
    """`slices.known_classes` of `structures.placed`, (X, Y, Z, CLASSES), of what both networks found in both halves."""
    count = len(slices.CLASSES)
    whole = merged(sides, parcellation.SHAPE[0])
    near = merged(boxes, nuclei.grid().shape[0])
    coarse = device.places(np.linalg.inv(parcellation.grid().affine) @ to_template, shape)
    fine = device.places(np.linalg.inv(nuclei.grid().affine) @ to_template, shape)
    out = device.linear(ops.reshape(whole[..., 1:], (-1, count - 1)), whole.shape[:3], coarse)
    there = device.linear(ops.reshape(near[..., 1:], (-1, count - 1)), near.shape[:3], fine)
    out = ops.where(device.within(fine, near.shape[:3])[..., None], there, out)
    lesion, white = slices.CLASSES.index("WhiteMatterLesion") - 1, slices.CLASSES.index("CerebralWhiteMatter") - 1
    gather = np.eye(count - 1, dtype=np.float32)
    gather[lesion, lesion], gather[lesion, white] = 0, 1
    out = ops.matmul(out, device.tensor(gather))
    out = out * ops.cast(ops.sum(out, axis=-1, keepdims=True) > 0.01, "float32")
    out = ops.concatenate([device.at_least(1 - ops.sum(out, axis=-1, keepdims=True), 0.0), out], axis=-1)
    return out / ops.sum(out, axis=-1, keepdims=True)


def _window(brain: np.ndarray, multiple: int) -> tuple[slice, ...] | None:
    """`slices.window` of a mask."""
    if np.count_nonzero(brain) < 1000:
        return None
    return slices.window(brain[..., None].astype(np.float32), multiple)


def _fitted(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`slices.fitted`: top (1, 1), mean and variance (1, tissues)."""
    names = parcellation.TISSUES.values()
    shares = [ops.sum(columns(known, [slices.CLASSES.index(n) for n in own]), axis=-1) for own in names]
    flat = ops.stack([ops.reshape(s, (-1,)) for s in shares])[None]
    some = ops.reshape(values, (1, -1))
    inside = ops.cast(ops.logical_and(ops.sum(flat, axis=1) > 0.7, some > 0), "float32")
    prior = device.at_least(flat, 1e-3)
    prior = prior / ops.sum(prior, axis=1, keepdims=True)
    there = ops.sum(inside, axis=-1, keepdims=True) > 0
    top = device.at_least(ops.where(there, device.quantile(some, inside, 0.99), device.number(1.0)), 1e-6)
    return (top, *device.levels(device.clipped(some / top, 0, 2), prior, inside))


def _plane_evidence(values: Tensor, fit: tuple[Tensor, Tensor, Tensor], distance: float, at: np.ndarray) -> Tensor:
    """`slices.evidence`."""
    rows = ops.moveaxis(values, 2, 0)
    edge = ops.zeros_like(rows[:1])
    wide = ops.concatenate([edge, rows, edge], axis=0)
    own, below, above = (ops.take(wide, device.tensor(at + k, np.int32), axis=0) for k in (1, 0, 2))
    given = likened(own[None], *fit)[0]
    near = [device.clipped(v / fit[0], 0, 2)[..., None] / 2 for v in (below, above)]
    return ops.concatenate([given, *near, ops.full_like(near[0], distance / 8)], axis=-1)


def _plane_shares(
    made: Pose, affine: np.ndarray, axis: int, turned: Sequence[int], box: tuple[slice, ...], at: np.ndarray
) -> Tensor:
    """Shares of the classes at `planes.DEPTHS` of some slices, (slices, X, Y, CLASSES)."""
    rest = [a for a in range(3) if a != axis]
    total = 0.0
    for depth in planes.DEPTHS:
        there = affine.copy()
        there[:3, 3] += depth * affine[:3, axis]
        there = there[:, [*rest, axis, 3]]
        there[:3, 3] += there[:3, :3] @ [b.start for b in box]
        size = [b.stop - b.start for b in box]
        codes = class_numbers(made, there, size) % parcellation.RIGHT
        codes = ops.moveaxis(ops.take(codes, device.tensor(at, np.int32), axis=2), 2, 0)
        total = total + device.one_hot(codes, len(slices.CLASSES))
    return total / len(planes.DEPTHS)
