"""Anatomy from the network against the atlas, on simulated scans of heads that neither was made from.

``python benchmarks/parcellation.py LABELMAPS OUT.tsv`` deforms each head of `bids_epvs.train.HELD_OUT_SUBJECTS`, adds
EPVS and lesions, images it as T2w, T1w and FLAIR at 1 mm and at 0.5 x 0.5 x 5 mm, and runs the preparation with each
method: Dice of each structure (mean of left and right), one row a scan and method, with the seconds of the whole
preparation and of the network in it, and the peak memory of the process so far.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs.evaluate.metrics import dice
from bids_epvs.models import nuclei, parcellation, slices
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
    """Label and region at the centre of each acquired voxel."""
    shape, affine = made.grid(spacing)
    at = [
        np.minimum(np.rint((affine[a, 3] + np.arange(shape[a]) * spacing[a] - made.head.affine[a, 3]) * 2), n - 1)
        for a, n in enumerate(made.head.labels.shape)
    ]
    labels = anatomy.plain(made.head.labels)[np.ix_(*(v.astype(int) for v in at))]
    half = anatomy.every_second(made.head)
    to_template = half.to_template @ half.affine
    regions = from_labels(anatomy.plain(half.labels), half.spacing, to_template)
    near = [np.minimum(v.astype(int) // 2, n - 1) for v, n in zip(at, regions.shape, strict=True)]
    return labels, regions[np.ix_(*near)]


def scans(
    labelmaps: Path, subjects: list[str], contrasts: list[str]
) -> Iterator[tuple[dict, nib.Nifti1Image, np.ndarray, np.ndarray]]:
    """What it is, the image, the labels and the regions."""
    for subject in subjects:
        rng = np.random.default_rng(int(subject))
        made = scene.build(rng, anatomy.from_labelmap(labelmaps / f"sub-{subject}_dseg.nii.gz"), age=75)
        for resolution, spacing in RESOLUTIONS.items():
            labels, regions = truth(made, spacing)
            for name in contrasts:
                look = scene.draw_look(rng, name, strength=0.7)
                protocol = contrast.Protocol(spacing, spacing[2], matrix=0.8, snr=25, bias=0.08)
                image = made.scan(rng, look, protocol)
                about = {"head": subject, "resolution": resolution, "contrast": name}
                yield about, nib.Nifti1Image(image, made.grid(spacing)[1]), labels, regions


def main() -> None:
    """Write the table, print its means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", default=["atlas", "network"], choices=METHODS)
    parser.add_argument("--subjects", nargs="+", default=list(HELD_OUT_SUBJECTS))
    parser.add_argument("--contrasts", nargs="+", default=["T2w", "T1w", "FLAIR"])
    parser.add_argument("--weights", type=Path, help="of the parcellation network, other than the packaged ones")
    parser.add_argument("--nuclei", type=Path, help="of the second network, other than the packaged ones")
    parser.add_argument("--slices", type=Path, help="of the third network, other than the packaged ones")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    first = parcellation.network(args.weights) if set(args.methods) - {"atlas"} else None
    second = nuclei.network(args.nuclei) if set(args.methods) & {"second", "network"} else None
    third = slices.network(args.slices) if "network" in args.methods else None
    rows = []
    for about, image, labels, regions in scans(args.labelmaps, args.subjects, args.contrasts):
        for method in args.methods:
            spent = [0.0]

            def timed(function, *given, spent=spent):
                start = time.monotonic()
                found = function(*given)
                spent[0] += time.monotonic() - start
                return found

            networks = {}
            if method == "first":
                networks["parcellate"] = partial(timed, partial(parcellation.predict, model=first))
            elif method != "atlas":
                networks["parcellate"] = partial(timed, partial(nuclei.predict, first=first, second=second))
            if method == "network":
                networks["outline"] = partial(timed, partial(slices.outline, model=third))
            with tempfile.TemporaryDirectory() as work:
                start = time.monotonic()
                result = prepare({about["contrast"]: image}, work_dir=Path(work), **networks)
                seconds = time.monotonic() - start
            found = result.anatomy.labels
            row = {**about, "method": method, "Brain": dice(np.isin(labels, INSIDE), result.anatomy.brain)}
            for name, sides in STRUCTURES.items():
                row[name] = float(np.mean([dice(np.isin(labels, s), np.isin(found, s)) for s in sides]))
            for name in NAMES:
                own = indices(name)
                row[f"Region{name}"] = float(np.mean([dice(regions == i, result.regions == i) for i in own]))
            row["seconds"], row["network_seconds"] = seconds, spent[0]
            row["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append(row)
            pd.DataFrame(rows).to_csv(args.out, sep="\t", index=False, float_format="%.3f")
            print(about, method, f"{seconds:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    print(table.drop(columns="head").groupby(["resolution", "contrast", "method"]).mean().round(2).T.to_string())


if __name__ == "__main__":
    main()
