"""How well sequences of real sessions are aligned with each other, without a known answer: there and back, and around.

``python benchmarks/loops.py BIDS OUT.tsv`` aligns each pair of T2w, T1w and FLAIR of a session, in both directions, and
follows points in the middle of the T2w from one sequence to the next and back: two alignments (there and back), or
three (around). Right alignments bring them back to where they were; the table has the mean distance in mm. Errors that
an image makes in each of its alignments do not show.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from itertools import pairwise, permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs.inputs.load import load_image
from bids_epvs.inputs.query import find_scans
from bids_epvs.prepare import ants, bias, register
from bids_epvs.prepare.sequences import in_frame

REACH_MM = (50.0, 65.0, 45.0)
"""Points lie as far as this from the middle of the T2w."""


def main() -> None:
    """Write the table, print its means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bids", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    for scan in find_scans(args.bids).scans:
        native = {n: load_image(p).image for n, p in scan.files.items() if n in ("T2w", "T1w", "FLAIR")}
        images = {n: bias.correct(in_frame(image, native["T2w"]))[0] for n, image in native.items()}
        base = images["T2w"]
        middle = nib.affines.apply_affine(base.affine, (np.array(base.shape) - 1) / 2)
        points = middle + np.array(REACH_MM) * (np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3))
        step = {}
        for first, second in permutations(images, 2):
            with tempfile.TemporaryDirectory() as work:
                _, transform = register.onto(images[first], images[second], work_dir=Path(work))
                step[first, second] = ants.linear_matrix(transform)
        ways = [(*way, way[0]) for number in (2, 3) for way in permutations(images, number)]
        for way in ways:
            there = np.eye(4)
            for first, second in pairwise(way):
                there = step[first, second] @ there
            away = np.linalg.norm(nib.affines.apply_affine(there, points) - points, axis=1).mean()
            kind = "there and back" if len(way) == 3 else "around"
            rows.append({"session": scan.label, "kind": kind, "way": " ".join(way), "mm": away})
        pd.DataFrame(rows).to_csv(args.out, sep="\t", index=False, float_format="%.3f")
    print(pd.DataFrame(rows).groupby(["session", "kind"])["mm"].mean().round(2).to_string())


if __name__ == "__main__":
    main()
