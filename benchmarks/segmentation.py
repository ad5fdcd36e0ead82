"""Segmentation of EPVS on simulated brains of heads that no method was made from, for each combination of sequences.

``python benchmarks/segmentation.py LABELMAPS OUT`` draws brains of the heads given with ``--subjects`` (isotropic,
thick axial slices, thick coronal or sagittal ones; mimics on), kept in OUT/examples. Each goes with its true regions to
``unet``, with each of the eight combinations of Rashid et al. 2023, and to the other methods (with ``--tune EXAMPLES``,
a folder of training examples of ``bids_epvs-train unet``, also to those of `baselines`). It writes

- ``sessions.tsv``: the measures of `bids_epvs.evaluate`, a row for each brain and method;
- ``summary.tsv``: means, standard errors and agreement, by resolution;
- ``diameters.tsv``: sensitivity by diameter;
- ``speed.tsv``: seconds and voxels of each prediction.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import baselines
import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs.evaluate import cases, metrics, tables
from bids_epvs.measure.lesions import VISIBLE, instances
from bids_epvs.models import load, unet
from bids_epvs.prepare import planes
from bids_epvs.prepare.resample import thickness
from bids_epvs.records import Prepared
from bids_epvs.settings import Settings
from bids_epvs.synth import volumes

LIMITS = {"minimum": Settings().min_volume_mm3, "maximum": Settings().max_volume_mm3}


def prepared(stored: dict[str, np.ndarray], names: tuple[str, ...]) -> Prepared:
    """An example as the app would have prepared it, with its true regions."""
    low, high = unet.RANGE
    values = stored["images"] / np.float32(255) * (high - low) + np.float32(low)
    images = {n: 1 + values[..., k] * np.float32(0.4 if n == "SWI" else 1) for k, n in enumerate(unet.SEQUENCES)}
    brain = (stored["images"] > 0).any(axis=-1)
    x, y, z = (float(v) for v in stored["spacing"])
    hemisphere = np.where(stored["regions"] % 2 == 1, 1, 2).astype(np.uint8)
    shown = {n: images[n] for n in names}
    grid = nib.Nifti1Image(np.broadcast_to(np.uint8(0), brain.shape), np.diag([x, y, z, 1.0]))
    turned = bool(stored["turned"])
    return Prepared(shown, brain, stored["regions"], stored["csf"], (x, y, z), grid, {}, hemisphere, turned=turned)


def truth(stored: dict[str, np.ndarray]) -> metrics.Truth:
    """What is known, inside the regions."""
    inside = stored["regions"] > 0
    lesions = np.where(inside, stored["index"], 0).astype(np.int32)
    shown = (stored["fraction"] >= 255 * VISIBLE) & inside
    expected = np.unique(lesions[shown & (lesions > 0)])
    return metrics.Truth((stored["fraction"] >= 128) & inside, lesions, expected, stored["fraction"] / np.float32(255))


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an example."""
    with np.load(path) as file:
        return dict(file)


def tuned(folder: Path, brains: int) -> dict[str, tuple[baselines.Response, dict[str, float]]]:
    """Baselines with their thresholds, from the first training brains; the forest grows on others."""
    paths = sorted(folder.glob("example-*.npz"))
    stored = [read(p) for p in paths[: 2 * brains]]
    known = [(prepared(s, ("T2w",)), truth(s)) for s in stored]
    first, second = known[:brains], known[brains:]
    methods = {"frangi tuned": baselines.vesselness, "jerman": baselines.jerman, "hrf": baselines.Forest().fit(second)}
    out = {name: (response, baselines.tuned(response, first, LIMITS)) for name, response in methods.items()}
    for name, (_, thresholds) in out.items():
        print(name, thresholds, flush=True)
    return out


def main() -> None:
    """Write the tables, print the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["05", "20"])
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--kinds", nargs="+", default=volumes.KINDS, choices=volumes.KINDS)
    parser.add_argument("--others", nargs="*", default=["frangi"], help="methods beside unet")
    parser.add_argument("--tune", type=Path, metavar="EXAMPLES", help="training examples to tune baselines on")
    parser.add_argument("--tune-brains", type=int, default=8)
    parser.add_argument("--weights", type=Path, help="other weights of unet than the packaged ones")
    parser.add_argument("--combinations", nargs="+", default=["+".join(c) for c in unet.COMBINATIONS])
    args = parser.parse_args()
    heads = tuple(args.labelmaps / f"sub-{s}_dseg.nii.gz" for s in args.subjects)
    volumes.generate(heads, args.out / "examples", number=args.scenes, seed=777, kinds=args.kinds)
    ways = [("unet", tuple(c.split("+"))) for c in args.combinations] + [(m, ("T2w",)) for m in args.others]
    others = tuned(args.tune, args.tune_brains) if args.tune else {}
    ways += [(name, ("T2w",)) for name in others]
    rows, lesions, speed = [], [], []
    for path in sorted((args.out / "examples").glob("example-*.npz")):
        stored = read(path)
        known = truth(stored)
        for model, names in ways:
            session = prepared(stored, names)
            start = time.monotonic()
            if model in others:
                response, thresholds = others[model]
                score = response(session)
                mask = score >= thresholds[thickness(session.spacing)]
            else:
                spec = load(model) if model != "unet" else unet.SPEC
                parameters = {**spec.parameters, **({"weights": args.weights} if model == "unet" else {})}
                found = spec.predict(session, parameters)
                score, mask = found.probability, found.mask
            seconds = time.monotonic() - start
            labels = instances(mask & (session.regions > 0), session.voxel_mm3, **LIMITS)
            seen = metrics.detection(known, labels, session.spacing)
            where = session.regions > 0
            figures = metrics.measures(
                known, labels, score, session.spacing, where, seen=seen, calibrated=model == "unet"
            )
            kind = planes.kind_of(session)
            name = f"unet {'+'.join(names)}" if model == "unet" else model
            about = {"label": path.stem, "model": name, "slice_mm": session.spacing[2]}
            split = {"resolution": {"thin": "isotropic"}.get(kind, kind), "mimics": "with", "contrast": "unknown"}
            rows.append({**about, **split, "region": "all", **figures, "interval_coverage": np.nan})
            for index, hit in seen.inside(where).hit.items():
                row = {"kind": "EPVS", "index": index, "found": hit, "resolution": split["resolution"]}
                lesions.append({**about, **row, "diameter_mm": stored["diameter_mm"][index - 1]})
            speed.append({**about, "seconds": seconds, "voxels": session.regions.size})
            print(path.stem, split["resolution"], name, f"F1 {figures['f1']:.3f}", f"{seconds:.1f} s", flush=True)
    sessions, single = pd.DataFrame(rows), pd.DataFrame(lesions)
    summary = tables.summary(sessions)
    parts = [cases.diameters(own).assign(resolution=r) for r, own in single.groupby("resolution")]
    for label, table in {
        "sessions": sessions,
        "summary": summary,
        "diameters": pd.concat(parts),
        "speed": pd.DataFrame(speed),
    }.items():
        table.to_csv(args.out / f"{label}.tsv", sep="\t", index=False, float_format="%.4f")
    shown = [
        "part",
        "model",
        "n",
        "sensitivity",
        "precision",
        "f1",
        "dice",
        "ece",
        "icc_count",
        "icc_volume",
        "bias_count",
    ]
    print(summary[shown].round(3).to_string(index=False))
    print(pd.concat(parts).to_string(index=False))


if __name__ == "__main__":
    main()
