"""Training examples of the counting networks: regions of simulated T2w scans with the EPVS in them.

`generate` (called by ``bids_epvs-train cnn`` and ``gpunet``) writes ``example-00000.npz`` and on: every counted region
and hemisphere of one scan as the app hands it to the network, isotropic and with thick slices in turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bids_epvs.derivatives import write
from bids_epvs.models import count
from bids_epvs.prepare import crops
from bids_epvs.prepare.crops import Crop
from bids_epvs.synth import examples, scene, tubes, volumes
from bids_epvs.synth.examples import Task
from bids_epvs.synth.scene import Scene

BURDENS = {"any": 0.6, "elderly": 0.15, "low": 0.1, "high": 0.15}
"""How often each of `tubes.BURDENS` is drawn."""


def example(rng: np.random.Generator, made: Scene, kind: str) -> dict[str, Any]:
    """Regions of one T2w.

    Returns
    -------
    dict
        For each index of `REGIONS` that is counted: ``image_<i>`` (uint8, `crops.as_bytes`),
        ``soft_<i>`` (uint8), ``mask_<i>`` (bool), ``at_<i>`` (int16, (n, 3) voxels) and ``share_<i>`` (float32, (n,)):
        points of EPVS and the part of one EPVS that each stands for; ``spacing``.
    """
    shot = volumes.t2w(rng, made, kind)
    spacing = shot.protocol.spacing
    fraction, index = made.fraction(spacing)
    peak = ndimage.maximum(fraction, index, np.arange(1, len(made.tubes) + 1)) if made.tubes else []
    seen = [t for t, p in zip(made.tubes, np.atleast_1d(peak), strict=True) if p >= volumes.VISIBLE]
    out: dict[str, Any] = {"spacing": np.array(spacing, np.float32)}
    for number, own in count.sides(shot.regions, shot.image, spacing).items():
        at, share = points([t for t in seen if t.region == number], own, shot.affine[:3, 3])
        out[f"image_{number}"] = crops.as_bytes(own.image)
        out[f"soft_{number}"] = np.rint(own.soft * 255).astype(np.uint8)
        out[f"mask_{number}"], out[f"at_{number}"], out[f"share_{number}"] = own.mask, at, share
    return out


def points(found: list[tubes.Tube], own: Crop, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (n, 3) along the EPVS inside a crop, and the share of one EPVS that each point stands for."""
    at, share = [np.zeros((0, 3), np.int16)], [np.zeros(0, np.float32)]
    for tube in found:
        voxels = crops.voxel_of(tube.points - origin, own)
        voxels = np.clip(voxels, 0, np.array(own.image.shape) - 1)
        at.append(voxels.astype(np.int16))
        share.append(np.full(len(voxels), 1 / len(voxels), np.float32))
    return np.concatenate(at), np.concatenate(share)


def write_examples(task: Task) -> None:
    """Write the two examples of a scene, unless they are there."""
    targets = volumes.targets(task)
    if all(path.exists() for path in targets.values()):
        return
    rng = task.rng()
    burden = str(rng.choice(list(BURDENS), p=list(BURDENS.values())))
    made = scene.build(
        rng, volumes.fine_head(task.head), burden=burden, age=float(rng.uniform(45, 92)), fine_mm=volumes.FINE_MM
    )
    for kind, path in targets.items():
        write.arrays(path, example(rng, made, kind), compressed=False)


def generate(heads: tuple[Path, ...], out: Path, *, number: int, seed: int = 0, nprocs: int = 2) -> None:
    """Write two examples (isotropic, thick slices) of each of `number` scenes; raises as `examples.generate`."""
    examples.generate(write_examples, heads, out, number=number, seed=seed, nprocs=nprocs)
