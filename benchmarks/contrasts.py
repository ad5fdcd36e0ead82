"""Regions of the same head found in its T2w, T1w and FLAIR, each alone: how far they overlap.

``python benchmarks/contrasts.py BIDS OUT.tsv`` prepares each sequence of each session by itself, brings the regions of
T1w and FLAIR onto the T2w (rigid registration of the images, nearest label) and writes the Dice of each region. Rows
``same, T1w grid`` and ``same, FLAIR grid`` are what two grids cost: the T2w's own regions, carried onto the grid of the
other sequence and back.
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

from bids_epvs.evaluate.metrics import dice
from bids_epvs.inputs.load import load_image
from bids_epvs.inputs.query import find_scans
from bids_epvs.models import nuclei, slices
from bids_epvs.prepare import ants, bias, register
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.prepare.resample import canonical, to_native
from bids_epvs.prepare.session import in_frame, prepare


def main() -> None:
    """Write the table, print its means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bids", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
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
        for name in (n for n in images if n != "T2w"):
            with tempfile.TemporaryDirectory() as work:
                _, transform = register.onto(base, in_frame(images[name], native), work_dir=Path(work))
                own = nib.Nifti1Image(to_native(found[name][0], images[name]).astype(np.float32), images[name].affine)
                own = in_frame(own, native)
                of_t2w = nib.Nifti1Image(found["T2w"][0].astype(np.float32), base.affine)
                carried = ants.apply(of_t2w, own, transform, inverse=True, interpolation="genericLabel")
                ways = {name: own, f"same, {name} grid": carried}
                ways = {k: ants.apply(v, base, transform, interpolation="genericLabel") for k, v in ways.items()}
            for sequence, moved in ways.items():
                there = np.rint(np.asarray(moved.dataobj)).astype(np.uint8)
                covered = there.any(axis=(0, 1))
                row = {"session": scan.label, "sequence": sequence, "seconds": found[name][1]}
                for index, region in REGIONS.items():
                    row[region.full_name] = dice(found["T2w"][0][..., covered] == index, there[..., covered] == index)
                rows.append(row)
                print(
                    scan.label, sequence, {k: round(v, 2) for k, v in row.items() if isinstance(v, float)}, flush=True
                )
            pd.DataFrame(rows).to_csv(args.out, sep="\t", index=False, float_format="%.3f")
    print(pd.DataFrame(rows).drop(columns="session").groupby("sequence").mean().round(2).T.to_string())


if __name__ == "__main__":
    main()
