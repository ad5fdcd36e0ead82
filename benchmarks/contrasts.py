"""Regions of the same head found in its T2w, T1w and FLAIR, each alone: how far they overlap.

``python benchmarks/contrasts.py BIDS OUT.tsv LABELMAP ...`` prepares each sequence of each session by itself, brings
the regions of T1w and FLAIR onto the T2w (rigid registration of the images, nearest label) and writes the Dice of each
region. Rows ``registered, T1w`` and ``registered, FLAIR``: the image is brought onto the grid of the T2w before its
regions are looked for (splines), so that the two grids do not count. Rows ``perfect, T1w`` and ``perfect, FLAIR`` are
the most that two grids of thick slices allow: heads whose structures are known (deformed from label maps) lie in the
middle of the T2w, and regions of what fills most of each voxel of one grid are compared with those of what fills most
of the other's (mean Dice of the heads).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from bids_epvs.evaluate.metrics import dice
from bids_epvs.inputs.load import load_image
from bids_epvs.inputs.query import find_scans
from bids_epvs.models import nuclei, slices
from bids_epvs.prepare import ants, bias, register
from bids_epvs.prepare.regions import REGIONS, from_labels
from bids_epvs.prepare.resample import canonical, resample, to_native
from bids_epvs.prepare.sequences import in_frame
from bids_epvs.prepare.session import prepare
from bids_epvs.synth import anatomy, scene

PARTS = 8
"""Places along each voxel, across the slices, at which the known structures are read."""


def known(labelmap: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Labels of a deformed head with EPVS and lesions, at 1 mm, its middle at 0, and what leads to the template."""
    head = scene.build(np.random.default_rng(0), anatomy.from_labelmap(labelmap), age=75).head
    block = [round(1 / s) for s in head.spacing]
    labels = anatomy.commonest(anatomy.plain(head.labels), block)
    affine = head.affine @ np.diag([*block, 1.0])
    affine[:3, 3] += (np.diag(affine)[:3] - head.spacing) / 2
    middle = np.eye(4)
    middle[:3, 3] = (affine @ [*np.argwhere(np.isin(labels, (2, 41))).mean(axis=0), 1])[:3]
    return nib.Nifti1Image(labels, np.linalg.inv(middle) @ affine), head.to_template @ middle


def perfect(labels: nib.Nifti1Image, to_template: np.ndarray, grid: nib.Nifti1Image) -> nib.Nifti1Image:
    """Regions of what fills most of each voxel of a grid."""
    axis = slices.across(grid)
    shape, affine = list(grid.shape[:3]), grid.affine.copy()
    shape[axis] *= PARTS
    affine[:3, axis] /= PARTS
    affine[:3, 3] -= grid.affine[:3, axis] / 2 - affine[:3, axis] / 2
    fine = resample(labels, nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine), order=0)
    block = [PARTS if a == axis else 1 for a in range(3)]
    found = anatomy.commonest(np.asarray(fine.dataobj), block)
    x, y, z = voxel_sizes(grid.affine)
    return nib.Nifti1Image(from_labels(found, (x, y, z), to_template @ grid.affine), grid.affine)


def moved_to_middle(grid: nib.Nifti1Image, of: nib.Nifti1Image) -> nib.Nifti1Image:
    """A grid, its millimetres counted from the middle of another one."""
    affine = grid.affine.copy()
    affine[:3, 3] -= (of.affine @ [*((n - 1) / 2 for n in of.shape[:3]), 1])[:3]
    return nib.Nifti1Image(grid.dataobj, affine)


def array(image: nib.Nifti1Image) -> np.ndarray:
    """Region numbers."""
    return np.rint(np.asarray(image.dataobj)).astype(np.uint8)


def overlap(first: Iterable[np.ndarray], second: Iterable[nib.Nifti1Image]) -> dict[str, float]:
    """Mean Dice of each region over pairs of volumes, on slices that the second covers."""
    each: dict[str, list[float]] = {region.full_name: [] for region in REGIONS.values()}
    for a, b in zip(first, map(array, second), strict=True):
        covered = b.any(axis=(0, 1))
        for index, region in REGIONS.items():
            each[region.full_name].append(dice(a[..., covered] == index, b[..., covered] == index))
    return {name: float(np.mean(found)) for name, found in each.items()}


def main() -> None:
    """Write the table, print its means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("labelmaps", type=Path, nargs="+")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    heads = [known(path) for path in args.labelmaps]
    networks = {"parcellate": nuclei.predict, "outline": slices.outline}
    for scan in find_scans(args.bids).scans:
        images = {n: load_image(p).image for n, p in scan.files.items() if n != "SWI"}
        found = {}
        for name, image in images.items():
            with tempfile.TemporaryDirectory() as work:
                start = time.monotonic()
                result = prepare({name: image}, work_dir=Path(work), **networks)
                found[name] = result.regions, time.monotonic() - start
        native = images["T2w"]
        base = bias.correct(canonical(native))[0]
        middle = moved_to_middle(base, base)
        best = [perfect(*head, middle) for head in heads]
        for name in (n for n in images if n != "T2w"):
            with tempfile.TemporaryDirectory() as work:
                image, transform = register.onto(base, in_frame(images[name], native), work_dir=Path(work))
                own = nib.Nifti1Image(to_native(found[name][0], images[name]).astype(np.float32), images[name].affine)
                moved = ants.apply(in_frame(own, native), base, transform, interpolation="genericLabel")
            other = moved_to_middle(in_frame(images[name], native), base)
            carried = [resample(perfect(*head, other), middle, order=0) for head in heads]
            with tempfile.TemporaryDirectory() as work:
                result = prepare({name: image}, work_dir=Path(work), **networks)
            ways = {
                name: overlap([found["T2w"][0]], [moved]),
                f"registered, {name}": overlap([found["T2w"][0]], [nib.Nifti1Image(result.regions, base.affine)]),
                f"perfect, {name}": overlap(map(array, best), carried),
            }
            for sequence, each in ways.items():
                rows.append({"session": scan.label, "sequence": sequence, "seconds": found[name][1], **each})
                print(scan.label, sequence, {k: round(v, 2) for k, v in each.items()}, flush=True)
            pd.DataFrame(rows).to_csv(args.out, sep="\t", index=False, float_format="%.3f")
    print(pd.DataFrame(rows).drop(columns="session").groupby("sequence").mean().round(2).T.to_string())


if __name__ == "__main__":
    main()
