"""Anatomy from the network against the atlas, on simulated scans of heads that neither was made from.

``python benchmarks/parcellation.py LABELMAPS OUT.tsv`` deforms each head of `bids_epvs.train.HELD_OUT_SUBJECTS`, adds
EPVS and lesions, images it as T2w, T1w and FLAIR at 1 mm and at 0.5 x 0.5 x 5 mm, and runs the preparation with each
method: Dice of each structure (of each side, and the mean of both) with what fills most of each acquired voxel, one row
a scan and method, with the seconds of the whole preparation and of the networks in it, and its peak memory. Each method
runs in a process of its own, which keeps the networks from scan to scan and never holds the simulated head; its first
scan takes longer. (Peak memory: Linux. The process that draws the heads takes 7 to 8.5 GB beside those of the methods:
two calls at a time were more than 24 GB.)
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache, partial
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs import process
from bids_epvs.evaluate.metrics import dice
from bids_epvs.models import looks, nuclei, parcellation, slices
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.regions import NAMES, from_labels, indices
from bids_epvs.prepare.session import prepare
from bids_epvs.synth import anatomy, contrast, scene
from bids_epvs.train import HELD_OUT_SUBJECTS

STRUCTURES = {
    "WhiteMatter": ((2,), (41,)),
    "Cortex": ((3,), (42,)),
    "LateralVentricle": ((4,), (43,)),
    "Caudate": ((11,), (50,)),
    "Putamen": ((12,), (51,)),
    "PallidumAccumbens": ((13, 26), (52, 58)),
    "Thalamus": ((10,), (49,)),
    "ThalamusVentralDC": ((10, 28), (49, 60)),
    "Hippocampus": ((17,), (53,)),
    "Amygdala": ((18,), (54,)),
    "Brainstem": ((16,),),
    "Cerebellum": ((7, 8), (46, 47)),
}
RESOLUTIONS = {"1mm": (1.0, 1.0, 1.0), "5mm": (0.5, 0.5, 5.0)}
METHODS = ("atlas", "first", "second", "network")
"""The atlas; one network, two of them, and all three (which differs from two where slices are thick)."""
INSIDE = [i for i, e in ATLAS_LABELS.items() if e.brain]


def truth(made: scene.Scene, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Label and region that fill most of each acquired voxel."""
    fine = anatomy.plain(made.head.labels)
    block = np.rint(np.array(spacing) / made.head.spacing).astype(int)
    regions = from_labels(fine, made.head.spacing, made.head.to_template @ made.head.affine)
    return anatomy.commonest(fine, block), anatomy.commonest(regions, block)


def scans(
    labelmaps: Path, subjects: list[str], contrasts: list[str], resolutions: list[str], repeats: int
) -> Iterator[tuple[dict, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """What it is, the image with its affine, the labels and the regions."""
    for subject, repeat in product(subjects, range(repeats)):
        rng = np.random.default_rng([int(subject), repeat] if repeat else int(subject))
        made = scene.build(rng, anatomy.from_labelmap(labelmaps / f"sub-{subject}_dseg.nii.gz"), age=75)
        for resolution, spacing in RESOLUTIONS.items():
            if resolution in resolutions:
                labels, regions = truth(made, spacing)
            for name in contrasts:  # also those left out draw their random numbers: others stay what they are
                look = scene.draw_look(rng, name, strength=0.7)
                protocol = contrast.Protocol(spacing, spacing[2], matrix=0.8, snr=25, bias=0.08)
                image = made.scan(rng, look, protocol)
                if resolution not in resolutions:
                    continue
                about = {"head": subject, "repeat": repeat, "resolution": resolution, "contrast": name}
                yield about, image, made.grid(spacing)[1], labels, regions


@cache
def networks(first: Path | None, second: Path | None, third: Path | None) -> tuple:
    """The three of them, loaded once; without a third file it is left to the app."""
    return parcellation.network(first), nuclei.network(second), slices.network(third) if third else None


def prepared(
    method: str, name: str, data: np.ndarray, affine: np.ndarray, weights: tuple[Path | None, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """Labels, brain and regions, and what they took."""
    spent = [0.0]

    def timed(function, *given):
        start = time.monotonic()
        found = function(*given)
        spent[0] += time.monotonic() - start
        return found

    use = {}
    if method != "atlas":
        first, second, third = networks(*weights)
        look = partial(nuclei.predict, first=first, second=second)
        if method == "first":
            look = partial(looks.predict, model=first)
        use["parcellate"] = partial(timed, look)
        if method == "network":
            use["outline"] = partial(timed, partial(slices.outline, model=third))
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # peak memory begins anew
    with tempfile.TemporaryDirectory() as work:
        start = time.monotonic()
        result = prepare({name: nib.Nifti1Image(data, affine)}, work_dir=Path(work), **use)
        took = {"seconds": time.monotonic() - start, "network_seconds": spent[0]}
    peak = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
    took["peak_MiB"] = int(peak[1]) / 1024 if peak else np.nan
    return result.anatomy.labels, result.anatomy.brain, result.regions, took


def main() -> None:
    """Write the table, print its means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", default=["atlas", "network"], choices=METHODS)
    parser.add_argument("--subjects", nargs="+", default=list(HELD_OUT_SUBJECTS))
    parser.add_argument("--contrasts", nargs="+", default=["T2w", "T1w", "FLAIR"])
    parser.add_argument("--repeats", type=int, default=1, help="scenes (deformation, EPVS, looks) of each head")
    parser.add_argument("--resolutions", nargs="+", default=list(RESOLUTIONS), choices=list(RESOLUTIONS))
    parser.add_argument("--weights", type=Path, help="of the parcellation network, other than the packaged ones")
    parser.add_argument("--nuclei", type=Path, help="of the second network, other than the packaged ones")
    parser.add_argument("--slices", type=Path, help="of the third network, other than the packaged ones")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    weights = args.weights, args.nuclei, args.slices
    rows = []
    with ExitStack() as stack:
        pools = {m: stack.enter_context(process.pool(1)) for m in args.methods}
        for about, image, affine, labels, regions in scans(
            args.labelmaps, args.subjects, args.contrasts, args.resolutions, args.repeats
        ):
            for method, pool in pools.items():
                done = pool.submit(prepared, method, about["contrast"], image, affine, weights)
                found, brain, found_regions, took = done.result()
                row = {**about, "method": method, "Brain": dice(np.isin(labels, INSIDE), brain)}
                for name, sides in STRUCTURES.items():
                    each = [dice(np.isin(labels, s), np.isin(found, s)) for s in sides]
                    row[name] = float(np.mean(each))
                    row |= {f"{name}_{side}": d for side, d in zip("LR", each, strict=True)} if len(each) == 2 else {}
                for name in NAMES:
                    own = indices(name)
                    row[f"Region{name}"] = float(np.mean([dice(regions == i, found_regions == i) for i in own]))
                rows.append({**row, **took})
                pd.DataFrame(rows).to_csv(args.out, sep="\t", index=False, float_format="%.3f")
                print(about, method, {k: round(v) for k, v in took.items()}, flush=True)
    table = pd.DataFrame(rows).drop(columns=["head", "repeat"])
    table = table.drop(columns=[c for c in table if c.endswith(("_L", "_R"))])
    print(table.groupby(["resolution", "contrast", "method"]).mean().round(2).T.to_string())


if __name__ == "__main__":
    main()
