"""What one axial slice shows of the same EPVS on scans whose slices are not axial: the grades that counting gives.

``python benchmarks/slabs.py LABELMAPS OUT.tsv`` draws scenes of the heads and looks at all EPVS that can be seen of
each on slices of 4 mm in each plane and on isotropic voxels: a row for each scan, region and height of the axial slabs
in which they are counted (0: single planes), with the count that decides, its Potter grade, and Adams' count. No
method has a part in it. Prints how the counts and grades compare with those of the axial slices.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from bids_epvs.measure import ratings
from bids_epvs.measure.lesions import VISIBLE
from bids_epvs.synth import dataset, examples, scene, volumes

AXIAL = "axial 4 mm"
SCANS = {
    AXIAL: (0.5, 0.5, 4.0),
    "axial 3 mm": (0.5, 0.5, 3.0),
    "axial 5 mm": (0.5, 0.5, 5.0),
    "coronal 4 mm": (0.5, 4.0, 0.5),
    "sagittal 4 mm": (4.0, 0.5, 0.5),
    "isotropic 1 mm": (1.0, 1.0, 1.0),
    "isotropic 0.7 mm": (0.7, 0.7, 0.7),
}
HEIGHTS_MM = (0, 2, 3, 4, 5)


def rows(made: scene.Scene, number: int) -> list[dict]:
    """Counts and grades of the truth of a scene."""
    out = []
    for name, spacing in SCANS.items():
        true = dataset.truth(made, spacing)
        seen = np.where(true.fraction >= VISIBLE, true.instances, 0)
        slices = dataset.named_slices(made, true.regions.shape, true.affine)
        for height in HEIGHTS_MM if not name.startswith("axial") else (0,):
            depth = max(1, round(height / spacing[2]))
            table = ratings.summarise(
                true.table,
                seen,
                true.regions,
                voxel_mm3=float(np.prod(spacing)),
                slices=slices,
                names=ratings.GRADED,
                depth=depth,
            )
            table = table[table["hemisphere"] == "both"]
            kept = table[["region", "slice_count", "rating", "adams_count"]]
            out += [{"scene": number, "scan": name, "slab_mm": height, **row} for row in kept.to_dict("records")]
    return out


def main() -> None:
    """Write the table, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=777)
    args = parser.parse_args()
    heads, every = tuple(sorted(args.labelmaps.glob("sub-*_dseg.nii.gz"))), []
    for number in range(args.scenes):
        task = examples.Task(heads, args.out.parent, args.seed, number)
        rng = task.rng()
        burden = ("any", "elderly", "elderly", "low")[number % 4]
        made = scene.build(
            rng, volumes.fine_head(task.head), burden=burden, age=float(rng.uniform(45, 92)), fine_mm=volumes.FINE_MM
        )
        every += rows(made, number)
        pd.DataFrame(every).to_csv(args.out, sep="\t", index=False)
    table = pd.DataFrame(every).set_index(["scene", "region"])
    axial = table[table["scan"] == AXIAL]
    for (name, height), own in table.groupby(["scan", "slab_mm"], sort=False):
        for region, part in own.groupby("region"):
            true = axial.loc[part.index]
            ratio = part["slice_count"].sum() / true["slice_count"].sum()
            adams = part["adams_count"].sum() / true["adams_count"].sum()
            away = part["rating"].astype(float) - true["rating"].astype(float)
            print(
                f"{name:17} {height} mm {region:17} count {ratio:.2f}, Adams {adams:.2f}, "
                f"same grade {np.mean(away == 0):.2f}, mean difference {away.mean():+.2f}"
            )


if __name__ == "__main__":
    main()
