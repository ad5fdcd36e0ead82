"""Share of true EPVS voxels where a run looks for EPVS: that lie in a region, and not in what it takes for large fluid.

`unet` follows EPVS that it finds there out of the regions too.

``python benchmarks/coverage.py TRUTH OUT``, for example ``demo/bids/derivatives/truth demo/out`` after ``make demo``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from bids_epvs.evaluate import cases


def main() -> None:
    """Print a row a session, and all together."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("truth", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rows = []
    for case in cases.find(args.truth, args.out):
        known = cases.read_truth(case)
        epvs = known.truth.mask & (known.regions > 0)
        stem = case.results / case.label
        regions, fluid = (
            np.asarray(cases._load(Path(f"{stem}_{name}.nii.gz"), known.frame).dataobj) > 0
            for name in ("seg-epvs_dseg", "label-CSF_desc-large_mask")
        )
        rows.append((case.label, epvs.sum(), (epvs & regions).sum(), (epvs & fluid).sum()))
    table = pd.DataFrame(rows, columns=["session", "voxels", "in_region", "in_large_fluid"])
    table.loc[len(table)] = ["all", *table.iloc[:, 1:].sum()]
    for name in ("in_region", "in_large_fluid"):
        table[name] = (table[name] / table["voxels"]).astype(float).round(3)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
