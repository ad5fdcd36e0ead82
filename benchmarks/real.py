"""``unet`` on real scans without truth: white matter lesions marked with and without FLAIR, repeated sessions.

``python benchmarks/real.py BIDS OUT TABLE.tsv`` reads what ``bids_epvs BIDS OUT participant`` prepared, predicts from
the T2w alone, with FLAIR, and from all sequences, and writes a row for each session and combination:

- ``lesions_marked``: share of the voxels of white matter lesions that are marked as EPVS. Lesions are found on the
  FLAIR: white matter brighter than its median by more than 3.5 standard deviations (1.4826 MAD), 26-connected pieces
  of at least 10 mm3 that stay after an opening in the plane; an approximation, as these scans have no masks;
- ``marked``: the same share for the other white matter;
- counts by region. Two sessions of one patient should agree better than two patients.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from bids_epvs import pipeline
from bids_epvs.measure.lesions import instances
from bids_epvs.models import unet
from bids_epvs.prepare.regions import NAMES, WHITE_MATTER, indices
from bids_epvs.records import Prepared
from bids_epvs.settings import Settings
from bids_epvs.stages import disk


def lesions(prepared: Prepared) -> np.ndarray:
    """White matter lesions by their brightness on FLAIR."""
    flair = prepared.images["FLAIR"]
    white = np.isin(prepared.regions, WHITE_MATTER) & ~prepared.csf
    middle = float(np.median(flair[white]))
    spread = 1.4826 * float(np.median(np.abs(flair[white] - middle)))
    bright = white & (flair > middle + 3.5 * spread)
    plane = np.zeros((3, 3, 3), bool)
    plane[1, :, 1] = plane[:, 1, 1] = True
    return instances(ndimage.binary_opening(bright, plane), prepared.voxel_mm3, minimum=10, maximum=np.inf) > 0


def main() -> None:
    """Write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    settings = Settings(bids_dir=args.bids, output_dir=args.out)
    rows = []
    for scan in pipeline.select(settings).scans:
        whole = disk.read_prepared(scan, settings)
        sick = lesions(whole) if "FLAIR" in whole.images else np.zeros(whole.brain.shape, bool)
        white = np.isin(whole.regions, WHITE_MATTER) & ~sick & ~whole.csf
        every = tuple(n for n in unet.SEQUENCES if n in whole.images)
        for names in dict.fromkeys([("T2w",), ("T2w", "FLAIR"), every]):
            if not set(names) <= set(every):
                continue
            shown = replace(whole, images={n: whole.images[n] for n in names})
            found = unet.predict(shown, {**unet.SPEC.parameters, "weights": args.weights})
            labels = instances(
                found.mask, whole.voxel_mm3, minimum=settings.min_volume_mm3, maximum=settings.max_volume_mm3
            )
            row = {
                "session": scan.label,
                "sequences": "+".join(names),
                "lesion_mL": sick.sum() * whole.voxel_mm3 / 1000,
            }
            row["lesions_marked"] = (labels > 0)[sick].mean() if sick.any() else np.nan
            row["marked"] = (labels > 0)[white].mean()
            for name in NAMES:
                inside = np.isin(whole.regions, indices(name))
                row[name] = len(np.unique(labels[inside & (labels > 0)]))
            rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(args.table, sep="\t", index=False, float_format="%.5f")
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
