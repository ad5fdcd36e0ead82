"""What a second sequence adds to the regions of a T2w, on simulated heads that no network was made from.

``python benchmarks/sequences.py LABELMAPS OUT.tsv`` images each deformed head, with EPVS and lesions, as T2w of
0.5 x 0.5 x 5 mm and of 1 mm, and as T1w of 1 mm after the head has moved (up to 3 mm and 2 degrees), and prepares the
T2w alone, with the T1w, and with a T1w that ends within the brain (``--further``: with other sequences, pixels of 1 mm
and slices as given, the head moved anew for each). Dice of each structure and region with what fills most of each voxel
of the T2w (mean of left and right), seconds of the whole preparation on one core: one row a head and set. Whether a
sequence was looked at is in the last column (`records.SHOWING` decides).
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


def kind(text: str) -> tuple[str, float]:
    """``FLAIR:3`` or ``T1w``: a sequence, and the distance of its slices (mm)."""
    name, _, slices_mm = text.partition(":")
    return name, float(slices_mm or 1)


def main() -> None:
    """Write the table, print its means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["05", "20"])
    parser.add_argument("--resolutions", nargs="+", default=list(RESOLUTIONS), choices=list(RESOLUTIONS))
    parser.add_argument("--further", nargs="+", type=kind, default=[("T1w", 1.0)], metavar="NAME:MM")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    for subject in args.subjects:
        rng = np.random.default_rng([int(subject), 2026])
        made = scene.build(rng, anatomy.from_labelmap(args.labelmaps / f"sub-{subject}_dseg.nii.gz"), age=75)
        sets: dict[str, dict] = {"T2w": {}}
        for name, slices_mm in args.further:
            image = scan(rng, made, name, (1.0, 1.0, slices_mm))
            image = nib.Nifti1Image(image.dataobj, moved(rng, image.affine, image.shape))
            label = name if slices_mm == 1 else f"{name} of {slices_mm:g} mm"
            sets[f"T2w, {label}"] = {name: image}
            if name == "T1w" and slices_mm == 1:
                sets[f"T2w, part of {label}"] = {name: image.slicer[:, :, int(ENDS * image.shape[2]) :]}
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
                row["seconds"] = time.monotonic() - start
                rows.append({**row, "looked_at": " ".join(found.looked_at)})
                pd.DataFrame(rows).to_csv(args.out, sep="\t", index=False, float_format="%.3f")
                print(subject, resolution, given, found.looked_at, round(row["seconds"]), flush=True)
    table = pd.DataFrame(rows).drop(columns=["head", "looked_at"])
    print(table.groupby(["resolution", "given"], sort=False).mean().round(3).T.to_string())


if __name__ == "__main__":
    main()
