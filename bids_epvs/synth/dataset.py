"""A raw BIDS dataset of simulated heads, and the truth about their EPVS in ``derivatives/truth``.

``bids_epvs-simulate OUT --subjects 4 --seed 0`` needs no data: without ``--labelmaps`` heads come from the packaged
atlas. Every number depends on the seed and on the subject's number alone, so the same call writes the same files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs import __version__, process
from bids_epvs.arguments import Parser, status
from bids_epvs.derivatives import paths, write
from bids_epvs.errors import DataError, UsageError
from bids_epvs.group.table import wide_row
from bids_epvs.measure import ratings
from bids_epvs.prepare import fields
from bids_epvs.prepare.regions import ANTERIOR_COMMISSURE, NAMES, REGIONS, rating_slices
from bids_epvs.prepare.resample import slice_axis
from bids_epvs.records import Scan
from bids_epvs.synth import anatomy, contrast, mimics, scene, tubes

PROTOCOLS = ("clinical", "mixed", "research", "coronal", "sagittal")
_NOTE = "simulated: no person was scanned"
VISIBLE = 0.25
"""Share of a voxel that an EPVS must fill to be counted in a slice."""


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Attributes
    ----------
    out : Path
    subjects : int
    seed : int
    protocol : str
        One of `PROTOCOLS`.
    contrasts : tuple of str
        T2w first.
    burden : str, optional
        Key of `tubes.BURDENS`; by default low, mid and high in turn.
    labelmaps : tuple of Path
        Label maps used in turn; the packaged atlas without.
    with_mimics : bool
        Lesions, lacunes and vessels.
    spacing : tuple of float, optional
        Voxel sizes (mm) of every image instead of random ones.
    snr : float, optional
        Of white matter in every image instead of a random one.
    fine_mm : float
        Voxel size at which tissue is drawn before it is averaged to the acquired voxels.
    """

    out: Path
    subjects: int = 4
    seed: int = 0
    protocol: str = "clinical"
    contrasts: tuple[str, ...] = ("T2w",)
    burden: str | None = None
    labelmaps: tuple[Path, ...] = ()
    with_mimics: bool = True
    spacing: tuple[float, float, float] | None = None
    snr: float | None = None
    fine_mm: float = anatomy.FINE_MM


def simulate(plan: Plan, *, nprocs: int = 1) -> None:
    """Write the dataset.

    Raises
    ------
    UsageError
        The output exists and is not empty.
    DataError
        A label map cannot be used.
    """
    require_new(plan.out)
    for path in plan.labelmaps:
        anatomy.read_labelmap(path)
    numbers = range(plan.subjects)
    if nprocs == 1:
        rows = [one_subject(plan, n) for n in numbers]
    else:
        with process.pool(nprocs) as pool:
            rows = list(pool.map(one_subject, [plan] * plan.subjects, numbers))
    _top(plan, pd.DataFrame([r[0] for r in rows]), pd.DataFrame([r[1] for r in rows]))


def require_new(out: Path) -> None:
    """Refuse an output that exists and is not an empty directory.

    Raises
    ------
    UsageError
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output exists and is not empty.", where=out, remedy="Choose a new directory.")


def one_subject(plan: Plan, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Simulate and write one subject; its rows of participants.tsv and of phenotype/epvs.tsv."""
    rng = np.random.default_rng([plan.seed, number])
    burden = plan.burden or ("low", "mid", "high")[number % 3]
    head = _head(plan, number)
    age = int(rng.integers(*AGES.get(burden, (45, 91))))
    sex = "FM"[int(rng.integers(2))]
    made = scene.build(rng, head, burden=burden, age=age, with_mimics=plan.with_mimics, fine_mm=plan.fine_mm)
    scan = Scan(f"{number + 1:02d}", None, {})
    strength = round(float(rng.uniform(0.5, 1.0)), 3)
    first = _protocol(rng, plan)
    tesla = first.tesla
    for name in plan.contrasts:
        protocol = first if name == "T2w" else replace(_protocol(rng, plan), tesla=tesla)
        look = scene.draw_look(rng, name, strength=strength, tesla=tesla)
        data = made.scan(rng, look, protocol)
        _, affine = made.grid(protocol.spacing)
        moved = np.eye(4) if name == "T2w" else between_scans(rng)
        meta = {**sidecar(protocol), "Seed": [plan.seed, number], "EpvsSignal": strength, **made.parameters}
        folder = "swi" if name == "SWI" else "anat"
        path = plan.out / f"sub-{scan.subject}" / folder / f"sub-{scan.subject}_{paths.SUFFIX[name]}.nii.gz"
        grid = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), moved @ affine)
        write.image(path, np.rint(np.clip(data, 0, 32767)).astype(np.int16), grid, meta=meta)
    found = truth(made, first.spacing)
    write_truth(plan.out / "derivatives" / "truth", scan, found, link=f"bids:raw:sub-{scan.subject}/anat/")
    ids = {"participant_id": f"sub-{scan.subject}"}
    return {**ids, "age": age, "sex": sex}, {**ids, **wide_row(found.summary.to_dict("records"))}


AGES: Mapping[str, tuple[int, int]] = {"low": (45, 60), "mid": (55, 75), "high": (65, 91), "elderly": (70, 95)}
"""Range of ages (years) that goes with a burden."""


def _head(plan: Plan, number: int) -> anatomy.Anatomy:
    """The head of a subject, drawn finely."""
    if not plan.labelmaps:
        return anatomy.packaged(plan.fine_mm)
    return anatomy.from_labelmap(plan.labelmaps[number % len(plan.labelmaps)], plan.fine_mm)


def _protocol(rng: np.random.Generator, plan: Plan) -> contrast.Protocol:
    """A random protocol, with the voxels and the noise that the plan asks for."""
    drawn = contrast.draw_protocol(rng, plan.protocol)
    if plan.snr is not None:
        drawn = replace(drawn, snr=plan.snr)
    if plan.spacing is not None:
        drawn = replace(drawn, spacing=plan.spacing, thickness=plan.spacing[slice_axis(plan.spacing)])
    return drawn


def between_scans(rng: np.random.Generator) -> np.ndarray:
    """Rigid movement of a head between two scans (sd 0.5 mm and 0.3 degrees), 4 x 4."""
    out = np.eye(4)
    for axis in range(3):
        out[:3] = fields.rotation(axis, np.deg2rad(rng.normal(0, 0.3))) @ out[:3]
        out[axis, 3] += rng.normal(0, 0.5)
    return out


def sidecar(protocol: contrast.Protocol) -> dict[str, Any]:
    """Acquisition parameters under their BIDS names, and the rest."""
    return {
        "Simulated": True,
        "Description": _NOTE,
        "MagneticFieldStrength": protocol.tesla,
        "SliceThickness": protocol.thickness,
        "SpacingBetweenSlices": protocol.spacing[slice_axis(protocol.spacing)],
        "Protocol": asdict(protocol),
    }


@dataclass(frozen=True)
class Truth:
    """What is known about one T2w, on its grid.

    Attributes
    ----------
    fraction : ndarray of float32
        Share of each voxel filled by EPVS.
    instances : ndarray of int32
        EPVS that fills most of each voxel it touches.
    regions, mimics : ndarray of uint8
    affine : ndarray
        4 x 4.
    table, summary : DataFrame
        A row per EPVS; a row per region and hemisphere.
    """

    fraction: np.ndarray
    instances: np.ndarray
    regions: np.ndarray
    mimics: np.ndarray
    affine: np.ndarray
    table: pd.DataFrame
    summary: pd.DataFrame


def truth(made: scene.Scene, spacing: tuple[float, float, float]) -> Truth:
    """The truth of a scene on the grid of a scan."""
    fraction, instances = made.fraction(spacing)
    _, affine = made.grid(spacing)
    regions = made.regions_on(spacing)
    slices = named_slices(made, regions.shape, affine)
    table = truth_table(made.tubes, instances, fraction, affine)
    return Truth(
        fraction,
        instances,
        regions,
        made.mimics_on(spacing),
        affine,
        table,
        truth_summary(table, instances, fraction, regions, spacing, slices),
    )


def named_slices(made: scene.Scene, shape: tuple[int, ...], affine: np.ndarray) -> dict[str, int]:
    """`regions.rating_slices` of the truth of a scene on an unrotated grid."""
    half = anatomy.every_second(made.head)
    commissure = np.linalg.inv(made.head.to_template @ affine) @ [*ANTERIOR_COMMISSURE, 1.0]
    x, y, z = (float(v) for v in np.diag(affine)[:3])
    return rating_slices(_nearest(anatomy.plain(half.labels), half, shape, affine), (x, y, z), commissure[2])


def _nearest(data: np.ndarray, head: anatomy.Anatomy, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Values of a head's grid at the voxels of another unrotated grid."""
    at = []
    for axis, n in enumerate(shape):
        mm = affine[axis, 3] + np.arange(n) * affine[axis, axis]
        index = np.rint((mm - head.affine[axis, 3]) / head.affine[axis, axis]).astype(int)
        at.append(np.clip(index, 0, data.shape[axis] - 1))
    return data[np.ix_(*at)]


def truth_table(
    drawn: Sequence[tubes.Tube], instances: np.ndarray, fraction: np.ndarray, affine: np.ndarray
) -> pd.DataFrame:
    """A row per tube: where, its course, how long, how wide, how much, how visible."""
    inverse = np.linalg.inv(affine)
    peak = np.zeros(len(drawn) + 1, np.float32)
    np.maximum.at(peak, instances.ravel(), fraction.ravel())
    rows = []
    for index, tube in enumerate(drawn, start=1):
        region = REGIONS[tube.region]
        x, y, z = tube.points.mean(axis=0).round(3)
        rows.append(
            {
                **{"index": index, "region": region.name, "hemisphere": region.side.lower()},
                **{"x_mm": x, "y_mm": y, "z_mm": z},
                "slice": round(float(inverse[2, :3] @ tube.points.mean(axis=0) + inverse[2, 3])),
                "volume_mm3": round(tube.volume_mm3, 4),
                "length_mm": round(tube.length_mm, 3),
                "width_mean_mm": round(tube.diameter_mm, 3),
                "peak_fraction": round(float(peak[index]), 3),
                "course_mm": ";".join(" ".join(f"{v:.2f}" for v in p) for p in tube.points),
            }
        )
    return pd.DataFrame(rows, columns=list(TRUTH_COLUMNS))


TRUTH_COLUMNS: dict[str, dict[str, str]] = {
    "index": {"Description": "value in the instance image"},
    "region": {"Description": "region of its middle"},
    "hemisphere": {"Description": "left or right"},
    "x_mm": {"Description": "mean of the centre line, scanner x (RAS)", "Units": "mm"},
    "y_mm": {"Description": "mean of the centre line, scanner y (RAS)", "Units": "mm"},
    "z_mm": {"Description": "mean of the centre line, scanner z (RAS)", "Units": "mm"},
    "slice": {"Description": "axial slice of that point, from 0 at the bottom"},
    "volume_mm3": {"Description": "volume of the tube", "Units": "mm3"},
    "length_mm": {"Description": "length with the round ends", "Units": "mm"},
    "width_mean_mm": {"Description": "mean diameter", "Units": "mm"},
    "peak_fraction": {"Description": "largest share of a voxel of this scan that it fills"},
    "course_mm": {"Description": "points of the centre line, x y z separated by semicolons", "Units": "mm"},
}


def truth_summary(
    table: pd.DataFrame,
    instances: np.ndarray,
    fraction: np.ndarray,
    regions: np.ndarray,
    spacing: tuple[float, float, float],
    slices: Mapping[str, int],
) -> pd.DataFrame:
    """Counts, volumes and ratings as the app would write them, from the truth."""
    return ratings.summarise(
        table,
        np.where(fraction >= VISIBLE, instances, 0),
        regions,
        voxel_mm3=float(np.prod(spacing)),
        slices=slices,
        names=NAMES,
        model="truth",
        share=fraction,
        depth=ratings.slab(spacing),
    )


def write_truth(root: Path, scan: Scan, found: Truth, *, link: str) -> None:
    """Fractions, masks, instances, mimics, regions and tables of one T2w."""
    stem = scan.label
    grid = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), found.affine)
    source = f"{link}{scan.files['T2w'].name if 'T2w' in scan.files else stem + '_T2w.nii.gz'}"
    meta = {"Sources": [source], "SpatialReference": source}

    def save(data: np.ndarray, text: str, **entities: str) -> None:
        more = {"Type": "Lesion"} if entities["suffix"] == "mask" else {"Manual": False}
        content = {**meta, **more, "Description": text}
        write.image(paths.derivative(root, scan, **entities), data, grid, meta=content)

    save(found.fraction, "share of each voxel filled by EPVS", label="EPVS", suffix="probseg")
    save(found.fraction >= 0.5, "EPVS fill at least half of the voxel", label="EPVS", suffix="mask")
    save(found.fraction > 0, "EPVS touch the voxel", label="EPVS", desc="any", suffix="mask")
    save(found.instances, "one index per EPVS", label="EPVS", desc="instances", suffix="dseg")
    save(found.mimics, "what may be taken for EPVS", desc="mimics", suffix="dseg")
    save(found.regions, "regions by hemisphere", seg="epvs", suffix="dseg")
    kinds = pd.DataFrame([{"index": k, "name": n} for k, n in mimics.KINDS.items()])
    write.table(paths.derivative(root, scan, desc="mimics", suffix="dseg", extension=".tsv"), kinds)
    names = pd.DataFrame(
        [{"index": i, "name": r.full_name, "abbreviation": r.abbreviation} for i, r in REGIONS.items()]
    )
    write.table(paths.derivative(root, scan, seg="epvs", suffix="dseg", extension=".tsv"), names)
    lesions = paths.derivative(root, scan, desc="truth", suffix="epvs", extension=".tsv")
    write.table(lesions, found.table, meta=TRUTH_COLUMNS)
    write.table(paths.derivative(root, scan, desc="summary", suffix="epvs", extension=".tsv"), found.summary)


def _top(plan: Plan, participants: pd.DataFrame, phenotype: pd.DataFrame) -> None:
    """Files at the top of the dataset."""
    about = {"Name": "Simulated enlarged perivascular spaces", "BIDSVersion": "1.10.0", "License": "CC0"}
    made_by = [{"Name": "bids_epvs-simulate", "Version": __version__}]
    write.as_json(plan.out / "dataset_description.json", {**about, "DatasetType": "raw", "GeneratedBy": made_by})
    write.text(plan.out / "README", _README.format(version=__version__, seed=plan.seed))
    write.table(plan.out / "participants.tsv", participants)
    columns = {
        "age": {"Description": "age", "Units": "years"},
        "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    }
    write.as_json(plan.out / "participants.json", columns)
    top_of_truth(plan.out, phenotype)


def top_of_truth(root: Path, phenotype: pd.DataFrame) -> None:
    """phenotype/epvs.tsv (group_epvs.tsv of the truth where there are sessions), and the description of the truth."""
    made_by = [{"Name": "bids_epvs-simulate", "Version": __version__}]
    about = {"Name": "Truth about EPVS that were simulated", "BIDSVersion": "1.11.0", "License": "CC0"}
    meaning: dict[str, Any] = {
        "MeasurementToolMetadata": {"Description": "true counts, volumes and ratings of simulated EPVS"},
        **{
            str(c): {"Description": str(c).removeprefix("truth_").replace("_", " ")}
            for c in phenotype
            if c != "participant_id"
        },
    }
    place = root / "derivatives" / "truth"
    if phenotype["participant_id"].is_unique:
        write.table(root / "phenotype" / "epvs.tsv", phenotype, meta=meaning)
    else:  # BIDS allows one row a participant there
        write.table(place / "group_epvs.tsv", phenotype, meta=meaning)
    links = {"DatasetType": "derivative", "GeneratedBy": made_by, "DatasetLinks": {"raw": "../.."}}
    write.as_json(place / "dataset_description.json", {**about, **links})
    write.text(place / "README", "True perivascular spaces of the simulated scans; see the JSON files.\n")
    write.text(
        place / ".bidsignore",
        "*_epvs.tsv\n*_epvs.json\n*_label-EPVS_desc-instances_dseg.nii.gz\n*instances_dseg.json\n",
    )
    write.text(root / ".bidsignore", "derivatives/\nsub-*/swi\nsub-*/ses-*/swi\n")


_README = """Simulated MRI of heads with enlarged perivascular spaces (EPVS), made by
bids_epvs-simulate {version}, seed {seed}. No person was scanned.
What is known about every EPVS is in derivatives/truth, counts and ratings are in phenotype/epvs.tsv.
"""


SIMULATED_ONLY = ("subjects", "protocol", "contrasts", "no_mimics", "spacing", "snr", "labelmaps")
"""Options that say how simulated heads and scans are made."""


def parser() -> Parser:
    """The command line of ``bids_epvs-simulate``."""
    p = Parser(prog="bids_epvs-simulate", description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("out", type=Path, help="new directory for the dataset")
    p.add_argument("--subjects", type=int, default=4, metavar="N")
    p.add_argument("--seed", type=int, default=0, metavar="S")
    p.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="clinical",
        help="thick axial slices, isotropic, both, or thick coronal or sagittal slices",
    )
    p.add_argument("--contrasts", nargs="+", choices=list(contrast.MEANS), default=["T2w"], metavar="C")
    p.add_argument("--burden", choices=list(tubes.BURDENS), help="by default low, mid and high in turn")
    p.add_argument("--no-mimics", action="store_true", help="no lesions, lacunes and vessels")
    p.add_argument(
        "--spacing", nargs=3, type=float, metavar=("X", "Y", "Z"), help="voxel sizes in mm; 4 0.6 0.6: sagittal slices"
    )
    p.add_argument("--snr", type=float, metavar="X", help="white matter over noise (default: 8 to 45, as scans differ)")
    p.add_argument("--labelmaps", type=Path, metavar="DIR", help="folder of *_dseg.nii.gz (default: packaged atlas)")
    p.add_argument("--implant", type=Path, metavar="BIDS_DIR", help="put EPVS into the real scans of a dataset instead")
    p.add_argument("--nprocs", type=int, default=1, metavar="N")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bids_epvs-simulate``; the exit code."""
    return status("bids_epvs-simulate", lambda: _run(argv), interrupted="what it wrote is not complete")


def _run(argv: Sequence[str] | None) -> int:
    """Do what the command line says."""
    args = parser().parse_args(argv)
    if argv is None:
        process.heed_termination()
    found = tuple(sorted(args.labelmaps.glob("*_dseg.nii.gz"))) if args.labelmaps else ()
    if args.labelmaps and not found:
        raise DataError("no *_dseg.nii.gz in this folder.", where=args.labelmaps)
    if args.subjects < 1 or args.nprocs < 1 or args.seed < 0:
        raise UsageError("--subjects and --nprocs must be at least 1, --seed at least 0.")
    if args.spacing and not all(0.3 <= v <= 10 for v in args.spacing):
        raise UsageError("expected voxel sizes of 0.3 to 10 mm.", where="--spacing")
    if args.snr is not None and not 2 <= args.snr <= 1000:
        raise UsageError("expected a signal-to-noise ratio of 2 to 1000.", where="--snr")
    if args.implant:
        usual = parser()
        useless = [f"--{n.replace('_', '-')}" for n in SIMULATED_ONLY if getattr(args, n) != usual.get_default(n)]
        if useless:
            raise UsageError(
                "no effect with --implant.",
                where=", ".join(useless),
                remedy="EPVS are drawn into real scans as they are.",
            )
        from bids_epvs.synth.implant import implant

        count = implant(args.implant, args.out, seed=args.seed, burden=args.burden or "mid")
        print(f"EPVS implanted into {count} session(s), in {args.out}")
        return 0
    names = tuple(dict.fromkeys(["T2w", *args.contrasts]))
    spacing = tuple(args.spacing) if args.spacing else None
    plan = Plan(
        args.out,
        args.subjects,
        args.seed,
        args.protocol,
        names,
        args.burden,
        found,
        not args.no_mimics,
        spacing,
        args.snr,
    )
    simulate(plan, nprocs=min(args.nprocs, args.subjects, os.cpu_count() or 1))
    print(f"{args.subjects} simulated subject(s) in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
