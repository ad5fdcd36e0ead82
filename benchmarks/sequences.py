"""What a T1w adds to the regions of a T2w, on simulated heads that no network was made from.

``python benchmarks/sequences.py LABELMAPS OUT.tsv`` images each deformed head, with EPVS and lesions, as T2w of
0.5 x 0.5 x 5 mm and of 1 mm, and as T1w of 1 mm after the head has moved (up to 3 mm and 2 degrees), and prepares the
T2w alone, with the T1w, and with a T1w that ends within the brain. Dice of each structure and region with what fills
most of each voxel of the T2w (mean of left and right), seconds of the whole preparation on one core: one row a head
and set.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from parcellation import INSIDE, RESOLUTIONS, STRUCTURES, truth
from scipy.spatial.transform import Rotation

from bids_epvs.evaluate.metrics import dice
from bids_epvs.models import nuclei, slices
from bids_epvs.prepare.regions import NAMES, indices
from bids_epvs.prepare.session import prepare
from bids_epvs.synth import anatomy, contrast, scene

T1W_MM = (1.0, 1.0, 1.0)
ENDS = 0.55
"""Share of the T1w, from below, that is missing where it ends within the brain."""


def moved(rng: np.random.Generator, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An affine after the head has turned about the middle of the volume, and moved."""
    middle = (affine @ [*((n - 1) / 2 for n in shape), 1])[:3]
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-2, 2, 3), degrees=True).as_matrix()
    out[:3, 3] = middle - out[:3, :3] @ middle + rng.uniform(-3, 3, 3)
    return out @ affine


def scan(
    rng: np.random.Generator, made: scene.Scene, name: str, spacing: tuple[float, float, float]
) -> nib.Nifti1Image:
    """One sequence, where the head was when the simulation began."""
    look = scene.draw_look(rng, name, strength=0.7)
    protocol = contrast.Protocol(spacing, spacing[2], matrix=0.8, snr=25, bias=0.08)
    return nib.Nifti1Image(made.scan(rng, look, protocol), made.grid(spacing)[1])


def main() -> None:
    """Write the table, print its means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["05", "20"])
    parser.add_argument("--resolutions", nargs="+", default=list(RESOLUTIONS), choices=list(RESOLUTIONS))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    for subject in args.subjects:
        rng = np.random.default_rng([int(subject), 2026])
        made = scene.build(rng, anatomy.from_labelmap(args.labelmaps / f"sub-{subject}_dseg.nii.gz"), age=75)
        image = scan(rng, made, "T1w", T1W_MM)
        t1w = nib.Nifti1Image(image.dataobj, moved(rng, image.affine, image.shape))
        part = t1w.slicer[:, :, int(ENDS * t1w.shape[2]) :]
        sets: dict[str, dict] = {"T2w": {}, "T2w, T1w": {"T1w": t1w}, "T2w, part of T1w": {"T1w": part}}
        for resolution in args.resolutions:
            t2w = scan(rng, made, "T2w", RESOLUTIONS[resolution])
            labels, regions = truth(made, RESOLUTIONS[resolution])
            for given, further in sets.items():
                images = {"T2w": t2w, **further}
                start = time.monotonic()
                with tempfile.TemporaryDirectory() as work:
                    found = prepare(images, work_dir=Path(work), parcellate=nuclei.predict, outline=slices.outline)
                row = {"head": subject, "resolution": resolution, "given": given}
                row["Brain"] = dice(np.isin(labels, INSIDE), found.anatomy.brain)
                for name, sides in STRUCTURES.items():
                    each = [dice(np.isin(labels, s), np.isin(found.anatomy.labels, s)) for s in sides]
                    row[name] = float(np.mean(each))
                for name in NAMES:
                    each = [dice(regions == i, found.regions == i) for i in indices(name)]
                    row[f"Region{name}"] = float(np.mean(each))
                rows.append({**row, "seconds": time.monotonic() - start})
                pd.DataFrame(rows).to_csv(args.out, sep="\t", index=False, float_format="%.3f")
                print(subject, resolution, given, round(rows[-1]["seconds"]), flush=True)
    table = pd.DataFrame(rows).drop(columns="head")
    print(table.groupby(["resolution", "given"], sort=False).mean().round(3).T.to_string())


if __name__ == "__main__":
    main()
