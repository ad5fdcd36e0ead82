"""Training examples of the parcellation network: simulated images and labels in the pose of the template.

`generate` (called by ``bids_epvs-train parcellation``) writes ``example-00000.npz`` and on, each a new deformation of
one of the training heads with four images of it: T2w, T1w, FLAIR and one of random contrast, with resolutions from
0.8 mm to slices of 8 mm in any of three directions, lesions, EPVS, coil fields, noise, missing neck, vertex, face or
skull, and the pose left inexact as registration leaves it. EPVS belong to the structure they run through: they have no
label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_epvs.derivatives import write
from bids_epvs.models import parcellation
from bids_epvs.prepare import fields, planes
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.regions import from_labels
from bids_epvs.prepare.resample import resample
from bids_epvs.synth import anatomy, contrast, examples, mimics, tubes
from bids_epvs.synth.anatomy import Anatomy
from bids_epvs.synth.contrast import Protocol
from bids_epvs.synth.examples import Task
from bids_epvs.synth.scene import Look, epvs_share, finish

SPACING_MM = 1.0
"""Voxel size of the heads that are imaged."""
WARP_MM = 3.0
"""Standard deviation of the smooth deformation."""
POSE_DEGREES, POSE_SCALE, POSE_SHEAR, POSE_MM = 2.5, 0.045, 0.03, 2.5
"""Standard deviations of what the affine registration leaves undone (measured on simulated heads, rounded up)."""

BURDENS = {"any": 0.5, "low": 0.1, "high": 0.2, "elderly": 0.2}
"""How often each of `tubes.BURDENS` is drawn."""


def pose_error(rng: np.random.Generator) -> np.ndarray:
    """4 x 4, template millimetres to template millimetres: an inexact registration about the centre of the brain."""
    linear = np.diag(np.exp(rng.normal(0, POSE_SCALE, 3))) + np.triu(rng.normal(0, POSE_SHEAR, (3, 3)), 1)
    linear = fields.turned(linear, np.deg2rad(rng.normal(0, POSE_DEGREES, 3)))
    centre = np.array([0.0, -17.0, 4.0])
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = linear, centre - linear @ centre + rng.normal(0, POSE_MM, 3)
    return out


def draw_head(rng: np.random.Generator, head: Anatomy) -> tuple[Anatomy, np.ndarray]:
    """A deformed head with lesions of any age, and the share (255 = all, uint8) of each voxel that its EPVS fill."""
    return painted(rng, near_brain(anatomy.deformed(head, rng, spacing=SPACING_MM, amount=1.2, warp_mm=WARP_MM)))


def painted(rng: np.random.Generator, made: Anatomy) -> tuple[Anatomy, np.ndarray]:
    """A head with lesions and EPVS, see `draw_head`, in the shape it has."""
    if rng.random() < 0.5:
        made = anatomy.widened(rng, made)
    half = anatomy.every_second(made)
    regions = from_labels(anatomy.plain(half.labels), half.spacing, half.to_template @ half.affine)
    if rng.random() < 0.7:
        made = mimics.add(rng, made, regions, mimics.draw(rng, float(rng.uniform(45, 95))))
    counts = tubes.sample_counts(rng, str(rng.choice(list(BURDENS), p=list(BURDENS.values()))))
    drawn = tubes.sample(rng, made, regions, counts)
    filled, _ = tubes.occupancy(drawn, made.labels.shape, made.affine)
    return made, np.rint(filled * 255).astype(np.uint8)


def near_brain(head: Anatomy, margin_mm: float = 15.0) -> Anatomy:
    """The head without what lies far below the brain (cut at the level of the grid, with a margin)."""
    low = np.linalg.inv(head.to_template @ head.affine) @ np.array([0.0, -17.0, parcellation.ORIGIN_MM[2], 1.0])
    first = max(0, int(low[2] - margin_mm / head.spacing[2]))
    affine = head.affine.copy()
    affine[2, 3] += first * head.spacing[2]
    return replace(head, labels=np.ascontiguousarray(head.labels[:, :, first:]), affine=affine)


STRETCH = (0.5, 1.25)
"""Range of the factor on the contrast of grey to white matter; a clinic's spin-echo T1w has half of the usual."""
DEEP = (10, 11, 12, 13, 16, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60)
"""Structures whose intensities differ most from each other: nuclei (iron), hippocampus, amygdala, brainstem."""


def draw_look(rng: np.random.Generator, name: str) -> Look:
    """Intensities around those of a contrast: means vary by 15 %, contrasts by `STRETCH`, structures by up to 8 %."""
    means = contrast.draw_means(rng, name, float(rng.choice([1.5, 3.0])))
    if name != contrast.RANDOM:
        means = {k: v * float(np.exp(rng.normal(0, 0.15))) for k, v in means.items()}
        stretch = float(rng.uniform(*STRETCH))
        means |= {k: means["WM"] + stretch * (means[k] - means["WM"]) for k in ("GM", "DGM", "Pallidum")}
    table = contrast.intensity_table(rng, means)
    table *= (1 + rng.normal(0, 0.03, table.shape)).astype(np.float32)
    amount = rng.uniform(0, 0.08)
    table[list(DEEP)] *= 1 + rng.normal(0, amount, len(DEEP))
    step = epvs_share(rng, name, float(rng.uniform(0.5, 1.0))) * (means["CSF"] - means["WM"])
    return Look(name, table, step, means["WM"])


CORTEX = (3, 42)
MYELIN, DEEP_LAYERS = 0.7, 0.5
"""Most that is drawn: deviation of the logarithm of the cortex's contrast to white matter from place to place, and what
its deep layers lose of it. On the T2w of a real head (openms sub-01) what T1w and FLAIR, but not the T2w, are taken to
show as cortex has 0.4 of it."""
KEPT = (0.15, 1.25)
"""Range of the factor on that contrast from place to place, before the deep layers lose theirs."""


def myelinated(rng: np.random.Generator, labels: np.ndarray, fine: np.ndarray, white: float) -> None:
    """Vary the intensities of the cortex in place: some of it, and its deep layers, come near those of white matter.

    Motor and sensory cortex hold more myelin and iron than others, deep layers more than those at the surface. A
    network that knows an even cortex alone takes what is darker on T2w for white matter.

    Parameters
    ----------
    rng : Generator
    labels, fine : ndarray
        (X, Y, Z) at `SPACING_MM`.
    white : float
        Intensity of white matter.

    References
    ----------
    Glasser & Van Essen 2011, doi:10.1523/JNEUROSCI.2180-11.2011.
    """
    knots, lost = draw_myelin(rng)
    kept = np.exp(fields.smooth_field(knots, labels.shape))
    kept = np.clip(kept, *KEPT).astype(np.float32)
    kept[ndimage.binary_dilation(np.isin(labels, (2, 41)))] *= np.float32(1 - lost)
    cortex = np.isin(labels, CORTEX)
    fine[cortex] = white + kept[cortex] * (fine[cortex] - white)


def draw_myelin(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Knots of the logarithm of what the cortex keeps of its contrast, and the share that its deep layers lose."""
    amount, lost = rng.uniform(0, MYELIN), float(rng.uniform(0, DEEP_LAYERS))
    return rng.normal(0, amount, (6, 7, 6)), lost


def draw_protocol(rng: np.random.Generator) -> tuple[Protocol, int]:
    """A protocol and the axis across its slices: half isotropic, half with slices of 2-8 mm, mostly axial."""
    side = float(rng.uniform(0.8, 1.2))
    distance = side if rng.random() < 0.45 else float(rng.uniform(2.0, 8.0))
    axis = int(rng.choice([2, 2, 2, 2, 1, 0]))
    return (
        Protocol(
            spacing=(side, side, distance),
            thickness=distance * float(rng.uniform(0.7, 1.0)),
            matrix=float(rng.uniform(0.5, 1.0)),
            snr=float(rng.uniform(6, 40)),
            bias=float(rng.uniform(0, 0.12)),
            motion_mm=float(rng.exponential(0.5) * (rng.random() < 0.3)),
        ),
        axis,
    )


DrawProtocol = Callable[[np.random.Generator], tuple[Protocol, int]]


def crop_head(rng: np.random.Generator, head: Anatomy) -> np.ndarray:
    """The labels that are imaged: without skull, without face, or cut at the neck or the vertex, now and then."""
    labels = head.labels
    chance = rng.random()
    if chance < 0.25:  # skull-stripped, tightly or loosely
        inside = in_skull()[labels]
        reach = int(rng.integers(0, 6))
        near = inside & (labels != 24)
        near = ndimage.binary_dilation(near, iterations=reach) if reach else near
        labels = np.where(near & (inside | (reach > 3)), labels, 0)
    elif chance < 0.4:  # defaced: everything before and below a plane
        y, z = np.arange(labels.shape[1]), np.arange(labels.shape[2])
        brain = np.isin(labels, (2, 41, 3, 42))
        front, low = np.flatnonzero(brain.any(axis=(0, 2)))[-1], np.flatnonzero(brain.any(axis=(0, 1)))[0]
        labels = np.where(~in_skull()[labels] & face_plane(rng, y, z, front, low)[None], 0, labels)
    return labels


def face_plane(rng: np.random.Generator, y: np.ndarray, z: np.ndarray, front: float, low: float) -> np.ndarray:
    """What is removed with the face, (Y, Z); the brain ends in front at `front` and begins below at `low`."""
    height = low + rng.uniform(0, 30)
    face = (y[:, None] - front + 25) + (height - z[None]) * rng.uniform(0.5, 1.5) > 20
    face &= (z[None] < height + 15) & (y[:, None] > front - 35)
    return face


@cache
def in_skull() -> np.ndarray:
    """Label -> whether it lies inside the skull."""
    table = np.zeros(1024, bool)
    table[[i for i, e in ATLAS_LABELS.items() if e.brain]] = True
    table[[*mimics.CODES[1], *mimics.CODES[2], *mimics.CODES[3]]] = True
    return table


def imaged(
    rng: np.random.Generator,
    head: Anatomy,
    look: Look,
    labels: np.ndarray,
    filled: np.ndarray,
    draw: DrawProtocol | None = None,
) -> nib.Nifti1Image:
    """One acquisition of the head, float32, in the head's millimetres, its field of view cut now and then."""
    protocol, axis = (draw or draw_protocol)(rng)
    order = planes.order(axis)
    turned = np.ascontiguousarray(np.transpose(labels, order))
    fine = look.table[turned]
    myelinated(rng, turned, fine, look.white)
    fine += np.transpose(filled, order) * np.float32(look.step / 255)
    step = SPACING_MM
    spacing = np.array(protocol.spacing)
    x, y, z = (int(v) for v in np.ceil(np.array(turned.shape) * step / spacing))
    weights = contrast.weights(turned.shape, step, (x, y, z), protocol, np.zeros(3))
    out = finish(contrast.average(fine, weights), rng, look, protocol)
    first, last = covered(rng, z)
    back = np.eye(4)[[*np.argsort(order), 3]]
    return nib.Nifti1Image(out[:, :, first:last], back @ scan_affine(head.affine, order, spacing, first))


def covered(rng: np.random.Generator, slices: int) -> tuple[int, int]:
    """First slice and the one after the last: neck, vertex (or sides) are not covered now and then."""
    if rng.random() >= 0.35:
        return 0, slices
    first = int(rng.uniform(0, 0.25 if rng.random() < 0.7 else 0.4) * slices)
    return first, slices - int(rng.uniform(0, 0.12) * slices * (rng.random() < 0.4))


def scan_affine(head: np.ndarray, order: list[int], spacing: np.ndarray, first: int) -> np.ndarray:
    """4 x 4, voxels of an image with the head's axes in `order` to the head's millimetres in that order."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = head[:3, 3][order] - SPACING_MM / 2 + spacing / 2
    affine[2, 3] += first * spacing[2]
    return affine


def acquired(
    rng: np.random.Generator,
    head: Anatomy,
    draw: DrawProtocol | None = None,
    contrasts: Mapping[str, str] | None = None,
) -> tuple[dict[str, nib.Nifti1Image], np.ndarray, nib.Nifti1Image]:
    """A new deformation of a head: images of it, their inexact pose, and its labels.

    Parameters
    ----------
    rng : Generator
    head : Anatomy
    draw : callable, optional
        Draws the protocol of each image.
    contrasts : mapping, optional
        Name of each image and its contrast, by default one of each of `parcellation.CONTRASTS`.

    Returns
    -------
    images : dict
    pose : ndarray
        4 x 4, millimetres of the images to (about) those of the template.
    labels : Nifti1Image
        FreeSurfer indices at `SPACING_MM`, in the millimetres of the images; lacunes are lesions.
    """
    made, filled = draw_head(rng, head)
    pose = pose_error(rng) @ made.to_template
    images = {}
    for name, kind in (contrasts or {c: c for c in parcellation.CONTRASTS}).items():
        labels = crop_head(rng, made)
        images[name] = imaged(rng, made, draw_look(rng, kind), labels, filled, draw)
    return images, pose, nib.Nifti1Image(anatomy.taught(made.labels), made.affine)


def codes(labels: nib.Nifti1Image, pose: np.ndarray) -> np.ndarray:
    """`parcellation.codes` of a head at half the voxel size of the network, as targets are shares of a voxel."""
    target = parcellation.grid()
    fine = target.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = target.affine[:3, 3] - parcellation.SPACING_MM / 4
    shape = tuple(2 * n for n in parcellation.SHAPE)
    there = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), np.linalg.inv(pose) @ fine)
    return parcellation.codes()[np.asarray(resample(labels, there, order=0).dataobj)]


def example(rng: np.random.Generator, head: Anatomy) -> dict[str, Any]:
    """Evidence (uint8, 255 = 1) of an image of each of `parcellation.CONTRASTS`; ``codes`` (uint8), see `codes`."""
    images, pose, labels = acquired(rng, head)
    seen = {n: np.rint(parcellation.evidence(i, pose) * 255).astype(np.uint8) for n, i in images.items()}
    return {**seen, "codes": codes(labels, pose)}


@cache
def read_head(path: Path) -> Anatomy:
    """A label map without what lies far below the brain."""
    return near_brain(anatomy.read_labelmap(path), 45.0)  # what may come near when the head is tilted and scaled


Make = Callable[[np.random.Generator, Anatomy], dict[str, Any]]


def write_example(task: Task, make: Make = example, stream: int = 0) -> Path:
    """Write one example, unless it is there."""
    target = task.path(task.number)
    return target if target.exists() else write.arrays(target, make(task.rng(stream), read_head(task.head)))


def generate(
    heads: tuple[Path, ...],
    out: Path,
    *,
    number: int,
    seed: int = 0,
    nprocs: int = 2,
    make: Make = example,
    stream: int = 0,
) -> None:
    """Write `number` examples of the heads in turn; those that exist are kept. Raises as `examples.generate`.

    A network that is told what another one found has a `stream` of its own: the heads that the other was trained on
    are those it knows by heart, and what it says of them is better than what it will ever say again.
    """
    one = partial(write_example, make=make, stream=stream)
    examples.generate(one, heads, out, number=number, seed=seed, nprocs=nprocs)
