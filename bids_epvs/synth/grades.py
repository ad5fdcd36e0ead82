"""Training examples of the networks that rate: T2w scans of the basal ganglia with any number of EPVS.

`generate` (called by ``bids_epvs-train rating2d`` and ``resnet152``) writes ``example-00000.npz`` and on. A head is
deformed once for several draws of EPVS; of each draw there are two scans, isotropic and with thick slices.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bids_epvs.derivatives import write
from bids_epvs.measure.lesions import VISIBLE
from bids_epvs.models import rating2d, resnet152
from bids_epvs.prepare.regions import ANTERIOR_COMMISSURE
from bids_epvs.prepare.resample import bounding_box
from bids_epvs.synth import anatomy, examples, scene, tubes, volumes
from bids_epvs.synth.examples import Task
from bids_epvs.synth.scene import Scene

DRAWS = 4
"""Draws of EPVS in each deformed head."""
ATROPHIED = 0.5
"""Share of heads whose ventricles and sulci are widened."""
MARGIN_MM = 24.0
"""Around the basal ganglia; what the networks see lies inside."""
NONE = 0.08
"""Share of draws without EPVS in the basal ganglia."""
FEWEST, MANY, MOST = 6, 60, 420
"""EPVS in the basal ganglia, both sides: log-uniform from the first to the last, or uniform from the second to it, so
that every grade is common."""
SIDES = rating2d.SIDES


def slab(made: Scene) -> Scene:
    """The part of a scene around its basal ganglia."""
    half = 2 * made.head.spacing[0]
    margin = int(np.ceil(MARGIN_MM / half))
    box = bounding_box(np.isin(made.regions, SIDES), margin)
    low = np.array([b.start for b in box])
    labels = made.head.labels[tuple(slice(2 * b.start, 2 * b.stop) for b in box)]
    affine = made.head.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (2 * low)
    head = replace(made.head, labels=np.ascontiguousarray(labels), affine=affine)
    return Scene(head, np.ascontiguousarray(made.regions[box]), (), np.zeros(labels.shape, np.uint8), made.parameters)


def filled(rng: np.random.Generator, made: Scene) -> Scene:
    """A scene with new EPVS."""
    often = float(np.exp(rng.uniform(np.log(FEWEST), np.log(MOST)))) if rng.random() < 0.5 else rng.uniform(MANY, MOST)
    counts = {
        "BasalGanglia": 0 if rng.random() < NONE else round(often),
        "Thalamus": int(rng.integers(0, 5)),
        "OtherWhiteMatter": int(rng.integers(0, 60)),
        "CentrumSemiovale": int(rng.integers(0, 30)),
    }
    drawn = tubes.sample(rng, made.head, made.regions, counts)
    share, _ = tubes.occupancy(drawn, made.head.labels.shape, made.head.affine, sub_mm=0.17)
    return replace(made, tubes=tuple(drawn), filled=np.rint(share * 255).astype(np.uint8))


def example(rng: np.random.Generator, made: Scene, kind: str) -> dict[str, Any]:
    """One scan as both networks see it.

    Returns
    -------
    dict
        ``plain``, ``sharp``, ``inside`` and ``marks`` (uint8, images of `rating2d.views` and the share of EPVS in
        them; 255 = 1.5, 1.5, 1 and 1) and ``counts`` (int16, visible EPVS in each), ``box`` (uint8,
        `resnet152.volume`), ``basal`` and ``epvs`` (bool, on its grid), ``fullest`` (visible EPVS in the fullest slice
        of a hemisphere), ``spacing``.
    """
    shot = volumes.t2w(rng, made, kind)
    image, regions, spacing = np.maximum(shot.image, 0), shot.regions, shot.protocol.spacing
    share, index = made.fraction(spacing)
    visible = np.where(share >= VISIBLE, index, 0)
    shown = {
        side: [len(np.unique(s[s > 0])) for s in np.moveaxis(np.where(regions == side, visible, 0), 2, 0)]
        for side in SIDES
    }
    height = (np.linalg.inv(made.head.to_template @ shot.affine) @ [*ANTERIOR_COMMISSURE, 1.0])[2]
    commissure = round(float(height + rng.normal(0, 2.0) / spacing[2]))
    seen = rating2d.views(image, shot.brain, regions, spacing, commissure)
    found = resnet152.volume(image, shot.brain, regions, spacing)
    if found is None or not seen:
        raise ValueError("no basal ganglia in a scene made around them")
    box, where = found
    marks = rating2d.views(share, shot.brain, regions, spacing, commissure, with_haar=False, top=1.0)
    return {
        "plain": np.stack([_bytes(v.plain, 1.5) for v in seen]),
        "sharp": np.stack([_bytes(v.sharp, 1.5) for v in seen]),
        "inside": np.stack([_bytes(v.inside, 1.0) for v in seen]),
        "marks": np.stack([_bytes(v.plain, 1.0) for v in marks]),
        "counts": np.array([shown[v.side][v.slice] for v in seen], np.int16),
        "box": _bytes(box, 1.0),
        "basal": where.cut(np.isin(regions, SIDES)) >= 0.5,
        "epvs": where.cut(np.where(np.isin(regions, SIDES), share, 0)) >= 0.15,
        "fullest": np.int16(max(max(n) for n in shown.values())),
        "spacing": np.array(spacing, np.float32),
    }


def _bytes(values: np.ndarray, top: float) -> np.ndarray:
    """0 to `top` as 0 to 255."""
    return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)


def write_examples(task: Task) -> None:
    """Write the 2 * `DRAWS` examples of a head, unless they are there."""
    targets = [task.path(2 * DRAWS * task.number + k) for k in range(2 * DRAWS)]
    if all(path.exists() for path in targets):
        return
    rng = task.rng()
    age = float(rng.uniform(45, 92))
    head = volumes.fine_head(task.head)
    if rng.random() < ATROPHIED:
        head = anatomy.widened(rng, head)
    made = slab(scene.build(rng, head, counts={}, age=age, fine_mm=volumes.FINE_MM))
    for k in range(DRAWS):
        full = filled(rng, made)
        for path, kind in zip(targets[2 * k : 2 * k + 2], ("research", "clinical"), strict=True):
            write.arrays(path, example(rng, full, kind))


generate = partial(examples.generate, write_examples)
"""As `examples.generate`, of deformed heads."""
