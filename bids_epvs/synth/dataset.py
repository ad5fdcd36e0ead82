"""A raw BIDS dataset of simulated heads, and the truth about their EPVS in ``derivatives/truth``.

``bids_epvs-simulate OUT --subjects 4 --seed 0`` needs no data: without ``--labelmaps`` heads come from the packaged
atlas. Every number depends on the seed and on the subject's number alone, so the same call writes the same files.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs import __version__
from bids_epvs.derivatives import paths, write
from bids_epvs.errors import DataError, EpvsError, UsageError
from bids_epvs.prepare.regions import REGIONS, from_labels
from bids_epvs.prepare.resample import resample
from bids_epvs.records import Scan
from bids_epvs.synth import anatomy, contrast, tubes

PROTOCOLS: Mapping[str, tuple[contrast.Protocol, ...]] = {
    "research": (contrast.Protocol((0.8, 0.8, 0.8), snr=30, bias=0.08),),
    "clinical": (
        contrast.Protocol((0.45, 0.45, 4.0), snr=30, bias=0.08),
        contrast.Protocol((0.6, 0.6, 3.0), snr=25, bias=0.12),
    ),
}
PROTOCOLS = {**PROTOCOLS, "mixed": PROTOCOLS["clinical"] + PROTOCOLS["research"]}
_SUFFIX = {"T2w": "T2w", "T1w": "T1w", "FLAIR": "FLAIR", "SWI": "swi"}
_NOTE = "simulated: no person was scanned"


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Attributes
    ----------
    out : Path
    subjects : int
    seed : int
    protocol : str
        Key of `PROTOCOLS`; subjects take its acquisitions in turn.
    contrasts : tuple of str
        T2w first.
    burden : str, optional
        Key of `tubes.BURDENS`; by default low, mid and high in turn.
    labelmaps : tuple of Path
        Label maps used in turn; the packaged atlas without.
    head_mm : float
        Voxel size at which tissue is drawn before it is averaged to the acquired voxels.
    """

    out: Path
    subjects: int = 4
    seed: int = 0
    protocol: str = "clinical"
    contrasts: tuple[str, ...] = ("T2w",)
    burden: str | None = None
    labelmaps: tuple[Path, ...] = ()
    head_mm: float = 0.8


@dataclass(frozen=True)
class Sample:
    """One simulated head.

    Attributes
    ----------
    images : mapping
        Contrast -> float32 array.
    fraction : ndarray of float32
        Share of each voxel filled by EPVS.
    instances : ndarray of int32
        Number of the tube in each voxel that a tube touches.
    regions : ndarray of uint8
        Indices of `REGIONS`.
    affine : ndarray
        4 x 4.
    tubes : tuple of Tube
    parameters : mapping
        What was drawn.
    """

    images: Mapping[str, np.ndarray]
    fraction: np.ndarray
    instances: np.ndarray
    regions: np.ndarray
    affine: np.ndarray
    tubes: tuple[tubes.Tube, ...]
    parameters: Mapping[str, Any]


def sample(
    rng: np.random.Generator,
    head: anatomy.Anatomy,
    *,
    protocol: contrast.Protocol,
    contrasts: Sequence[str] = ("T2w",),
    burden: str = "mid",
    head_mm: float = 0.8,
) -> Sample:
    """Simulate one head in memory.

    Parameters
    ----------
    rng : Generator
    head : Anatomy
        Undeformed.
    protocol : Protocol
    contrasts : sequence of str
    burden : str
        Key of `tubes.BURDENS`.
    head_mm : float
        See `Plan`.
    """
    moved = anatomy.deformed(head, rng, spacing=head_mm)
    regions = from_labels(moved.labels, moved.spacing, moved.to_template @ moved.affine)
    counts = tubes.sample_counts(rng, burden)
    drawn = tubes.sample(rng, moved, regions, counts)
    shape, affine = contrast.grid_of(moved, protocol.spacing)
    fraction, index = tubes.occupancy(drawn, shape, affine)
    grid = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine)
    on_grid = np.asarray(resample(anatomy.as_image(regions, moved), grid, order=0).dataobj)
    strength = float(rng.uniform(0.6, 1.0))
    images = {
        name: contrast.scan(rng, moved, fraction, affine, contrast=name, protocol=protocol, strength=strength)
        for name in contrasts
    }
    used = {"Protocol": asdict(protocol), "TubeSignal": strength, "CountsWanted": counts, "Burden": burden}
    return Sample(images, fraction, index, on_grid, affine, tuple(drawn), used)


def simulate(plan: Plan, *, nprocs: int = 1) -> None:
    """Write the dataset.

    Raises
    ------
    UsageError
        The output exists and is not empty.
    DataError
        A label map cannot be used.
    """
    if plan.out.exists() and any(plan.out.iterdir()):
        raise UsageError("the output directory is not empty.", where=plan.out, remedy="Choose a new one.")
    for path in plan.labelmaps:
        anatomy.from_labelmap(path)
    numbers = range(plan.subjects)
    if nprocs == 1:
        rows = [one_subject(plan, n) for n in numbers]
    else:
        with ProcessPoolExecutor(nprocs, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(one_subject, [plan] * plan.subjects, numbers))
    _top(plan, pd.DataFrame(rows))


def one_subject(plan: Plan, number: int) -> dict[str, Any]:
    """Simulate and write one subject; its row of participants.tsv."""
    rng = np.random.default_rng([plan.seed, number])
    burden = plan.burden or list(tubes.BURDENS)[number % len(tubes.BURDENS)]
    acquisitions = PROTOCOLS[plan.protocol]
    protocol = acquisitions[number % len(acquisitions)]
    head = anatomy.from_labelmap(plan.labelmaps[number % len(plan.labelmaps)]) if plan.labelmaps else anatomy.packaged()
    age = int(rng.integers(*{"low": (45, 60), "mid": (55, 75), "high": (65, 90)}[burden]))
    sex = "FM"[int(rng.integers(2))]
    found = sample(rng, head, protocol=protocol, contrasts=plan.contrasts, burden=burden, head_mm=plan.head_mm)
    scan = Scan(f"{number + 1:02d}", None, {})
    for name, data in found.images.items():
        folder = "swi" if name == "SWI" else "anat"
        stem = f"sub-{scan.subject}_{_SUFFIX[name]}.nii.gz"
        meta = {"Simulated": True, "Description": _NOTE, "Seed": [plan.seed, number], **found.parameters}
        grid = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), found.affine)
        write.image(plan.out / f"sub-{scan.subject}" / folder / stem, np.rint(data).astype(np.int16), grid, meta=meta)
    _truth(plan.out / "derivatives" / "truth", scan, found)
    return {"participant_id": f"sub-{scan.subject}", "age": age, "sex": sex}


def _truth(root: Path, scan: Scan, found: Sample) -> None:
    """Fractions, masks, instances, regions and the table of tubes."""
    grid = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), found.affine)
    meta = {"Sources": [f"bids:raw:sub-{scan.subject}/anat/sub-{scan.subject}_T2w.nii.gz"], "Description": _NOTE}

    def save(data: np.ndarray, **entities: str) -> None:
        more = {"Type": "Lesion"} if entities["suffix"] == "mask" else {"Manual": False}
        write.image(paths.derivative(root, scan, **entities), data, grid, meta={**meta, **more})

    save(found.fraction, label="EPVS", suffix="probseg")
    save(found.fraction >= 0.5, label="EPVS", suffix="mask")
    save(found.instances, label="EPVS", suffix="dseg")
    save(found.regions, seg="epvs", suffix="dseg")
    write.table(paths.derivative(root, scan, desc="truth", suffix="epvs", extension=".tsv"), truth_table(found))


def truth_table(found: Sample) -> pd.DataFrame:
    """A row per tube: where, how long, how wide, how much."""
    voxel = float(abs(np.linalg.det(found.affine[:3, :3])))
    volume = np.bincount(found.instances.ravel(), found.fraction.ravel(), minlength=len(found.tubes) + 1) * voxel
    rows = []
    for index, tube in enumerate(found.tubes, start=1):
        region = REGIONS[tube.region]
        x, y, z = tube.points.mean(axis=0).round(3)
        rows.append(
            {
                **{"index": index, "region": region.name, "hemisphere": region.side.lower()},
                **{"x_mm": x, "y_mm": y, "z_mm": z},
                "volume_mm3": round(float(volume[index]), 4),
                "length_mm": round(tube.length_mm, 3),
                "width_mean_mm": round(tube.diameter_mm, 3),
            }
        )
    names = ["index", "region", "hemisphere", "x_mm", "y_mm", "z_mm", "volume_mm3", "length_mm", "width_mean_mm"]
    return pd.DataFrame(rows, columns=names)


def _top(plan: Plan, participants: pd.DataFrame) -> None:
    """Files at the top of the dataset and of the truth."""
    made_by = [{"Name": "bids_epvs-simulate", "Version": __version__}]
    about = {"Name": "Simulated enlarged perivascular spaces", "BIDSVersion": "1.10.0", "License": "CC0"}
    write.as_json(plan.out / "dataset_description.json", {**about, "DatasetType": "raw", "GeneratedBy": made_by})
    write.text(plan.out / "README", _README.format(version=__version__, seed=plan.seed))
    write.table(plan.out / "participants.tsv", participants)
    columns = {
        "age": {"Description": "age", "Units": "years"},
        "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    }
    write.as_json(plan.out / "participants.json", columns)
    truth = plan.out / "derivatives" / "truth"
    links = {"DatasetType": "derivative", "GeneratedBy": made_by, "DatasetLinks": {"raw": "../.."}}
    write.as_json(truth / "dataset_description.json", {**about, **links})
    write.text(truth / ".bidsignore", "*_epvs.tsv\n")
    write.text(plan.out / ".bidsignore", "derivatives/\n")


_README = """Simulated MRI of heads with enlarged perivascular spaces (EPVS), made by
bids_epvs-simulate {version}, seed {seed}.
No person was scanned. What is known about every EPVS is in derivatives/truth.
"""


def parser() -> argparse.ArgumentParser:
    """The command line of ``bids_epvs-simulate``."""
    p = argparse.ArgumentParser(prog="bids_epvs-simulate", description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("out", type=Path, help="new directory for the dataset")
    p.add_argument("--subjects", type=int, default=4, metavar="N")
    p.add_argument("--seed", type=int, default=0, metavar="S")
    p.add_argument("--protocol", choices=sorted(PROTOCOLS), default="clinical")
    p.add_argument("--contrasts", nargs="+", choices=list(contrast.MEANS), default=["T2w"], metavar="C")
    p.add_argument("--burden", choices=list(tubes.BURDENS), help="by default low, mid and high in turn")
    p.add_argument("--labelmaps", type=Path, metavar="DIR", help="folder of *_dseg.nii.gz (default: packaged atlas)")
    p.add_argument("--nprocs", type=int, default=1, metavar="N")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bids_epvs-simulate``; the exit code."""
    args = parser().parse_args(argv)
    try:
        found = tuple(sorted(args.labelmaps.glob("*_dseg.nii.gz"))) if args.labelmaps else ()
        if args.labelmaps and not found:
            raise DataError("no *_dseg.nii.gz in this folder.", where=args.labelmaps)
        if args.subjects < 1 or args.nprocs < 1:
            raise UsageError("--subjects and --nprocs must be at least 1.")
        names = tuple(dict.fromkeys(["T2w", *args.contrasts]))
        plan = Plan(args.out, args.subjects, args.seed, args.protocol, names, args.burden, found)
        simulate(plan, nprocs=min(args.nprocs, args.subjects, os.cpu_count() or 1))
    except EpvsError as error:
        print(f"bids_epvs-simulate: {error.message}", file=sys.stderr)
        return error.exit_code
    print(f"{args.subjects} simulated subject(s) in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
