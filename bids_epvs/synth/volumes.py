"""Training examples of the segmentation network: T2w, T1w, FLAIR and SWI of simulated heads with their EPVS.

`generate` (called by ``bids_epvs-train unet``) writes ``example-00000.npz`` and on: brains as the app hands them to
the network (aligned to the T2w, normalised, skull-stripped), each a new deformation of a head with its own lesions,
vessels, EPVS and protocols: isotropic, with thick axial slices, and with thick coronal or sagittal ones. Arrays lie
with their slices along the third axis (`prepare.planes`), as the app turns them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.derivatives import write
from bids_epvs.models import unet
from bids_epvs.prepare import planes
from bids_epvs.prepare.intensity import Levels, large_fluid, levels
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.regions import WHITE_MATTER
from bids_epvs.prepare.resample import bounding_box, resample, slice_axis
from bids_epvs.synth import anatomy, contrast, examples, scene
from bids_epvs.synth.anatomy import Anatomy
from bids_epvs.synth.contrast import Protocol
from bids_epvs.synth.examples import KINDS, Task
from bids_epvs.synth.scene import Look, Scene

FINE_MM = 0.5
BURDENS = {"any": 0.7, "elderly": 0.15, "low": 0.15}
"""How often each of `tubes.BURDENS` is drawn."""
CORONAL = 0.6
"""Share of ``turned`` slices (`KINDS`) that are coronal; the others are sagittal."""
VARIATION = 0.08
"""Standard deviation of the logarithm of each tissue's intensity, on top of `contrast.draw_means`."""
RESIDUAL_BIAS = 0.35
"""Share of the coil field that bias correction leaves."""
RESIDUAL_MM = 0.25
"""Standard deviation of what registration between sequences leaves undone, along each axis."""
_CEREBRUM = (2, 41, 3, 42)
BRAIN = [i for i, e in ATLAS_LABELS.items() if e.brain]


def near_brain(head: Anatomy, margin_mm: float = 12.0) -> Anatomy:
    """The head without what is farther than a margin from the cerebrum."""
    margin = round(margin_mm / head.spacing[0])
    labels, affine = anatomy.cut(head.labels, head.affine, np.isin(head.labels, _CEREBRUM), margin)
    return replace(head, labels=np.ascontiguousarray(labels), affine=affine)


@lru_cache(maxsize=2)
def fine_head(path: Path) -> Anatomy:
    return anatomy.refined(near_brain(anatomy.read_labelmap(path)), FINE_MM)


def draw_look(rng: np.random.Generator, name: str, *, strength: float, tesla: float) -> Look:
    """`scene.draw_look` with tissues that differ more between scanners, so that the network relies on none of them."""
    means = {k: v * float(np.exp(rng.normal(0, VARIATION))) for k, v in contrast.draw_means(rng, name, tesla).items()}
    step = scene.epvs_share(rng, name, strength) * (means["CSF"] - means["WM"])
    return Look(name, contrast.intensity_table(rng, means), step, means["WM"])


def draw_protocol(rng: np.random.Generator, kind: str) -> Protocol:
    """A protocol (one of `KINDS`) whose coil field has been corrected, but not quite."""
    drawn = contrast.draw_protocol(rng, "clinical" if kind == "turned" else kind)
    drawn = replace(drawn, bias=drawn.bias * RESIDUAL_BIAS)
    if kind != "turned":
        return drawn
    return contrast.turned(drawn, planes.NAMES.index("coronal" if rng.random() < CORONAL else "sagittal"))


def sequence(
    rng: np.random.Generator, made: Scene, name: str, first: Protocol, grid: Nifti1Image, strength: float
) -> np.ndarray:
    """One image of a scene on the grid of its T2w, float32; other sequences have voxels of their own."""
    drawn = draw_look(rng, name, strength=strength, tesla=first.tesla)
    if name == "T2w":
        return made.scan(rng, drawn, first)
    kind = "research" if rng.random() < (0.75 if name == "T1w" else 0.5) else "clinical"
    protocol = first if rng.random() < 0.3 else replace(draw_protocol(rng, kind), tesla=first.tesla)
    data = made.scan(rng, drawn, protocol)
    _, affine = made.grid(protocol.spacing)
    moved = affine.copy()
    moved[:3, 3] += rng.normal(0, RESIDUAL_MM, 3)
    return np.asarray(resample(nib.Nifti1Image(data, moved), grid).dataobj)


def labels_on(made: Scene, grid: Nifti1Image) -> np.ndarray:
    """Label at the centre of each voxel of a grid, lesions and vessels as `anatomy.plain` has them."""
    half = anatomy.every_second(made.head)
    source = nib.Nifti1Image(anatomy.plain(half.labels), half.affine)
    return np.asarray(resample(source, grid, order=0).dataobj)


class Shot(NamedTuple):
    """A T2w scan of a scene, and what is where on its grid."""

    protocol: Protocol
    affine: np.ndarray
    image: np.ndarray
    brain: np.ndarray
    regions: np.ndarray
    labels: np.ndarray

    @property
    def level(self) -> Levels:
        """Intensities of white matter and fluid."""
        return levels(self.image, np.isin(self.regions, WHITE_MATTER), np.isin(self.labels, (4, 43)))

    @property
    def csf(self) -> np.ndarray:
        """Large fluid, as the app finds it, bool."""
        return large_fluid(self.image, self.labels, self.protocol.spacing, self.level)


def t2w(rng: np.random.Generator, made: Scene, kind: str) -> Shot:
    """One T2w of a scene by a random protocol: bool brain, uint8 indices of `REGIONS`, labels of the brain."""
    protocol = draw_protocol(rng, kind)
    shape, affine = made.grid(protocol.spacing)
    grid = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine)
    look = draw_look(rng, "T2w", strength=float(rng.uniform(0.5, 1.0)), tesla=protocol.tesla)
    image = made.scan(rng, look, protocol)
    found = labels_on(made, grid)
    brain = ndimage.binary_opening(np.isin(found, BRAIN))
    regions = np.where(brain, made.regions_on(protocol.spacing), 0).astype(np.uint8)
    return Shot(protocol, affine, image, brain, regions, np.where(brain, found, 0))


def example(rng: np.random.Generator, made: Scene, kind: str) -> dict[str, Any]:
    """One brain, its slices along the third axis.

    Returns
    -------
    dict
        ``images`` (uint8, X, Y, slices, sequences; `unet.RANGE` over 0-255), ``fraction`` (uint8, 255: full of EPVS),
        ``regions`` (uint8), ``index`` (uint16, the EPVS that fills most of a voxel), ``csf`` (bool), ``spacing``,
        ``turned``, ``diameter_mm`` (of each EPVS).
    """
    first = draw_protocol(rng, kind)
    shape, affine = made.grid(first.spacing)
    grid = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine)
    strength = float(rng.uniform(0.5, 1.0))
    found = labels_on(made, grid)
    brain = ndimage.binary_opening(np.isin(found, BRAIN))
    regions = np.where(brain, made.regions_on(first.spacing), 0).astype(np.uint8)
    white = np.isin(regions, WHITE_MATTER)
    images = {name: sequence(rng, made, name, first, grid, strength) for name in unet.SEQUENCES}
    box = bounding_box(brain, 4)
    labels = np.where(brain, found, 0)
    level = levels(images["T2w"], white, np.isin(labels, (4, 43)))
    csf = large_fluid(images["T2w"], labels, first.spacing, level)
    low, high = unet.RANGE
    stack = []
    for name in unet.SEQUENCES:
        scaled = unet.normalised(images[name][box], brain[box], (white & ~csf)[box], csf[box], name)
        stack.append(np.where(brain[box], scaled * _jitter(rng), low))
    fraction, index = made.fraction(first.spacing)
    axis = slice_axis(first.spacing)
    arrays = {
        "images": np.rint((np.clip(np.stack(stack, axis=-1), low, high) - low) / (high - low) * 255).astype(np.uint8),
        "fraction": np.rint(fraction[box] * 255).astype(np.uint8),
        "index": index[box].astype(np.uint16),
        "regions": regions[box],
        "csf": csf[box],
    }
    return {
        **{name: planes.sliced(array, axis) for name, array in arrays.items()},
        "spacing": np.array(planes.turned_spacing(first.spacing, axis), np.float32),
        "turned": np.bool_(axis != planes.AXIAL),
        "diameter_mm": np.array([t.diameter_mm for t in made.tubes], np.float32),
    }


def _jitter(rng: np.random.Generator) -> np.float32:
    """What a wrong estimate of the fluid's intensity does."""
    return np.float32(np.exp(rng.normal(0, 0.06)))


Make = Callable[[np.random.Generator, Scene, str], dict[str, Any]]


def write_examples(
    task: Task, *, kinds: Sequence[str] = KINDS, make: Make = example, burdens: Mapping[str, float] = BURDENS
) -> None:
    """Write an example of each kind of scan of a scene, unless they are there."""
    targets = {kind: task.path(len(kinds) * task.number + k) for k, kind in enumerate(kinds)}
    if all(path.exists() for path in targets.values()):
        return
    rng = task.rng()
    burden = str(rng.choice(list(burdens), p=list(burdens.values())))
    age = float(rng.uniform(45, 92))
    made = scene.build(rng, fine_head(task.head), burden=burden, age=age, fine_mm=FINE_MM)
    for kind, path in targets.items():
        write.arrays(path, make(rng, made, kind), compressed=False)


generate = partial(examples.generate, write_examples)
"""As `examples.generate`, of scenes; ``kinds`` chooses among `KINDS`."""
