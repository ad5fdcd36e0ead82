"""Counts of EPVS by region on simulated scans of heads that no method was made from: `cnn` against `gpunet`.

``python benchmarks/counts.py LABELMAPS OUT`` draws T2w scans of the heads given with ``--subjects`` (isotropic, thick
axial slices, thick coronal or sagittal ones, mimics on; kept in OUT/examples), lets both networks count in their true
regions, and writes

- ``numbers.tsv``: a row for each scan, method and region (both hemispheres);
- ``counts.tsv``: Pearson's r, mean absolute error, ICC, concordance, bias, coverage of the 90 % interval, by resolution
  (form of tables 2 and 3 of Dubost et al.);
- ``williams.tsv``: whether one method correlates better with the truth;
- ``speed.tsv``: seconds of each prediction.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from bids_epvs.evaluate import numbers
from bids_epvs.models import count, gpunet
from bids_epvs.prepare import planes
from bids_epvs.synth import counts, volumes
from bids_epvs.train import count as training

NETWORKS = {"cnn": count.network, "gpunet": gpunet.network}


def main() -> None:
    """Write the tables, print the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["05", "20"])
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=volumes.KINDS, choices=volumes.KINDS)
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE")
    args = parser.parse_args()
    heads = tuple(args.labelmaps / f"sub-{s}_dseg.nii.gz" for s in args.subjects)
    make = partial(counts.example, off_mm=(0.0, 0.0))  # in true regions
    counts.generate(heads, args.out / "examples", number=args.scenes, seed=777, kinds=args.kinds, make=make)
    given = {name: Path(file) for name, file in (w.split("=", 1) for w in args.weights)}
    rows, speed = [], []
    for path in sorted((args.out / "examples").glob("example-*.npz")):
        regions = training.read(path)
        first = next(iter(regions.values()))
        kind = planes.kind((0.5, 0.5, first.slice_mm), turned=first.turned)
        for name, network in NETWORKS.items():
            model, stored = network(given.get(name), slices=kind)
            known = planes.of_kind(stored, kind) or {}
            found = {}
            for index, region in regions.items():
                start = time.monotonic()
                found[index] = float(count.calibrated(training.counted(model, region), known.get(region.name, {})))
                voxels = region.mask.size
                speed.append(
                    {"model": name, "region": region.name, "voxels": voxels, "seconds": time.monotonic() - start}
                )
            for told in count.findings(found, known):
                if told.hemisphere == "both":
                    true = sum(r.total for r in regions.values() if r.name == told.region)
                    rows.append(
                        {
                            **dict.fromkeys(numbers.COLUMNS, np.nan),
                            "label": path.stem,
                            "resolution": {"thin": "isotropic"}.get(kind, kind),
                            "model": name,
                            "region": told.region,
                            "count_visible": round(true),
                            "count": told.count,
                            "count_low": told.low,
                            "count_high": told.high,
                        }
                    )
    table = pd.DataFrame(rows)
    result, better, seconds = numbers.counts(table), numbers.williams(table), pd.DataFrame(speed)
    for name, content in (("numbers", table), ("counts", result), ("williams", better), ("speed", seconds)):
        content.to_csv(args.out / f"{name}.tsv", sep="\t", index=False)
    pd.set_option("display.width", 200, "display.max_columns", 20)
    print(result.round(3).to_string(index=False))
    print(better.round(3).to_string(index=False))
    print(seconds.groupby(["model", "region"])["seconds"].describe()[["mean", "max"]].round(2))


if __name__ == "__main__":
    main()
