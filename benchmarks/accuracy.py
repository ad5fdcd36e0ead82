"""Regions and EPVS of the app against the truth, on simulated scans of heads that nothing was made from or tuned on.

``python benchmarks/accuracy.py LABELMAPS`` simulates one clinical or research T2w for each of the heads in
`bids_epvs.train.HELD_OUT_SUBJECTS`, runs the participant level, and prints for each head the Dice of every region (both
hemispheres), and for each model sensitivity (EPVS that fill at least 30 % of a voxel) and precision.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_epvs import pipeline
from bids_epvs.evaluate.metrics import dice
from bids_epvs.measure.lesions import VISIBLE
from bids_epvs.models import default
from bids_epvs.prepare.regions import NAMES, indices
from bids_epvs.settings import Settings
from bids_epvs.synth.dataset import Plan, simulate
from bids_epvs.train import HELD_OUT_SUBJECTS


def voxels(path: Path) -> np.ndarray:
    """The array of an image."""
    return np.asarray(nib.load(path).dataobj)


def detection(found: np.ndarray, fraction: np.ndarray, index: np.ndarray) -> tuple[int, int, int, int]:
    """(EPVS expected, of these hit, instances found, of these within a voxel in plane of an EPVS)."""
    peak = ndimage.maximum(fraction, index, np.arange(1, index.max() + 1))
    expected = np.flatnonzero(peak >= VISIBLE) + 1
    hit = np.isin(expected, np.unique(index[(found > 0) & (fraction > 0.1)])).sum()
    near = ndimage.binary_dilation(fraction > 0.1, np.ones((3, 3, 1)))
    return len(expected), int(hit), int(found.max()), len(np.unique(found[near & (found > 0)]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    args = parser.parse_args()
    heads = tuple(args.labelmaps / f"sub-{s}_dseg.nii.gz" for s in HELD_OUT_SUBJECTS)
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "bids", Path(folder) / "out"
        simulate(Plan(raw, len(heads), 12, "mixed", labelmaps=heads), nprocs=2)
        pipeline.participant(Settings(bids_dir=raw, output_dir=out, nprocs=2, skip_bids_validation=True))
        for number, head in enumerate(heads, start=1):
            stem = f"sub-{number:02d}/anat/sub-{number:02d}_"
            truth, result = raw / "derivatives" / "truth" / stem, out / stem
            true, found = (voxels(Path(f"{p}seg-epvs_dseg.nii.gz")) for p in (truth, result))
            sizes = nib.load(f"{truth}seg-epvs_dseg.nii.gz").header.get_zooms()
            print(f"{head.name}, voxels {' x '.join(f'{v:.2f}' for v in sizes)} mm")
            for name in NAMES:
                index = indices(name)
                print(f"  {name:18s} Dice {dice(np.isin(true, index), np.isin(found, index)):.2f}")
            fraction = voxels(Path(f"{truth}label-EPVS_probseg.nii.gz"))
            tubes = voxels(Path(f"{truth}label-EPVS_desc-instances_dseg.nii.gz"))
            for model in default():
                labels = voxels(Path(f"{result}label-EPVS_desc-{model}instances_dseg.nii.gz"))
                expected, hit, made, right = detection(labels, fraction, tubes)
                print(f"  {model}: {hit} of {expected} EPVS found, {right} of {made} instances right")


if __name__ == "__main__":
    main()
