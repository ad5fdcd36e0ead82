"""Training examples of the network that draws borders in the plane of thick slices: heads of `synth.parcels`.

`generate` (called by ``bids_epvs-train slices``) writes ``example-00000.npz`` and on: heads as for the parcellation
network, all with slices of 2 to 7 mm, and what that network and the one for the nuclei (packaged weights) say of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.models import nuclei, parcellation, slices
from bids_epvs.prepare import brain, structures
from bids_epvs.prepare.resample import resample
from bids_epvs.synth import parcels
from bids_epvs.synth.anatomy import Anatomy
from bids_epvs.synth.contrast import Protocol

DEPTHS = (-0.4, -0.2, 0.0, 0.2, 0.4)
"""Where the labels of a slice are read, in shares of the distance of slices."""


def draw_protocol(rng: np.random.Generator) -> tuple[Protocol, int]:
    """`parcels.draw_protocol` with slices of `slices.THICK_MM` to 7 mm."""
    protocol, axis = parcels.draw_protocol(rng)
    side, distance = protocol.spacing[0], float(rng.uniform(slices.THICK_MM, 7.0))
    share = protocol.thickness / protocol.spacing[2]
    return replace(protocol, spacing=(side, side, distance), thickness=distance * share), axis


def example(rng: np.random.Generator, head: Anatomy, contrast: str = "") -> dict[str, Any]:
    """For each of `parcellation.CONTRASTS`: intensities, those of the tissues, what is known and what is true.

    With `contrast` as many images of that one, such as FLAIR1, FLAIR2.

    All (X, Y, Z, ...) in a window around the brain, slices along Z: ``NAME`` is uint8 (127.5 = the top of the brain),
    ``NAME_fit`` float32 (2, tissues) mean and variance, ``NAME_known`` uint8 (255 = 1), ``NAME_codes`` uint8 class
    numbers at `DEPTHS` and ``NAME_distance`` mm.
    """
    own = {f"{contrast}{k}": contrast for k in range(1, len(parcellation.CONTRASTS) + 1)} if contrast else None
    images, pose, labels = parcels.acquired(rng, head, draw_protocol, own)
    out: dict[str, Any] = {}
    for name, image in images.items():
        turned = nib.as_closest_canonical(image)
        grid = brain.work_grid(turned)
        found = nuclei.predict([turned], pose)
        prior, _ = structures.placed(found, found.to_template, grid)
        axis = slices.across(grid)
        values = np.asarray(resample(turned, grid).dataobj)
        values, prior = np.moveaxis(values, axis, 2), np.moveaxis(prior, axis, 2)
        box = slices.window(prior, 8)
        known = slices.known_classes(prior[box])
        fit = slices.fitted(values[box], known)
        out[name] = np.rint(np.clip(values[box] / fit.top, 0, 2) * 127.5).astype(np.uint8)
        out[f"{name}_fit"] = np.stack(fit[1:]).astype(np.float32)
        out[f"{name}_known"] = np.rint(known * 255).astype(np.uint8)
        out[f"{name}_codes"] = np.stack([true_classes(labels, grid, axis, depth)[box] for depth in DEPTHS], axis=-1)
        out[f"{name}_distance"] = np.float32(np.linalg.norm(grid.affine[:3, axis]))
    return out


def true_classes(labels: Nifti1Image, grid: Nifti1Image, axis: int, depth: float) -> np.ndarray:
    """Class numbers (sides together, uint8) at the pixels of a grid, slices last, at a depth of each slice."""
    affine = grid.affine.copy()
    affine[:3, 3] += depth * affine[:3, axis]
    there = nib.Nifti1Image(np.broadcast_to(np.uint8(0), grid.shape[:3]), affine)
    found = np.asarray(resample(labels, there, order=0).dataobj)
    return np.moveaxis(parcellation.codes()[found] % parcellation.RIGHT, axis, 2)


generate = partial(parcels.generate, make=example, stream=2)
"""As `parcels.generate`, of slices, and of other deformations than there."""
