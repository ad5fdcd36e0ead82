"""Known EPVS put into real scans: real texture, noise and anatomy, with the same truth files as simulated heads.

What EPVS the person has already stays in the scan and is not in the truth.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.nifti1 import Nifti1Image

from bids_epvs import __version__
from bids_epvs.derivatives import paths, write
from bids_epvs.group.table import wide_row
from bids_epvs.inputs.load import load_image
from bids_epvs.inputs.query import find_scans
from bids_epvs.prepare.regions import from_labels
from bids_epvs.prepare.resample import canonical, canonical_to_world, iso_grid, resample, to_native, voxel_spacing
from bids_epvs.records import Scan
from bids_epvs.synth import tubes
from bids_epvs.synth.anatomy import Anatomy, every_second
from bids_epvs.synth.dataset import Truth, require_new, top_of_truth, truth_summary, truth_table, write_truth
from bids_epvs.synth.scene import epvs_share

if TYPE_CHECKING:
    from bids_epvs.prepare.session import Result

logger = logging.getLogger(__name__)

WORK_MM = 0.8


def implant(source: Path, out: Path, *, seed: int = 0, burden: str = "mid") -> int:
    """Copy the sessions of a dataset that have a T2w, with EPVS drawn into every sequence the app uses.

    Parameters
    ----------
    source : Path
        Raw BIDS dataset.
    out : Path
        New directory.
    seed : int
    burden : str
        Key of `tubes.BURDENS`.

    Returns
    -------
    int
        Number of sessions.

    Raises
    ------
    UsageError
        The output exists and is not empty.
    """
    require_new(out)
    source = Path(os.path.abspath(source))  # links kept: files are found by absolute paths
    scans = find_scans(source).scans
    rows = []
    for number, scan in enumerate(scans):
        rng = np.random.default_rng([seed, number])
        rows.append(one_session(rng, scan, source, out, burden))
        logger.info("%s: EPVS implanted", scan.label)
    made_by = [{"Name": "bids_epvs-simulate --implant", "Version": __version__}]
    about = {**write.read_json(source / "dataset_description.json"), "GeneratedBy": made_by}
    write.as_json(out / "dataset_description.json", {**about, "DatasetType": "raw"})
    write.text(out / "README", _README)
    if (source / "participants.tsv").is_file():
        write.binary(out / "participants.tsv", (source / "participants.tsv").read_bytes())
    phenotype = pd.DataFrame(rows)
    top_of_truth(out, phenotype)
    return len(scans)


def one_session(rng: np.random.Generator, scan: Scan, source: Path, out: Path, burden: str) -> dict[str, Any]:
    """Draw EPVS into one session and write it; its row of the phenotype table."""
    from bids_epvs.prepare.session import prepare

    loaded = {name: load_image(path).image for name, path in scan.files.items()}
    with tempfile.TemporaryDirectory(prefix="epvs-implant-") as work:
        found = prepare(loaded, work_dir=Path(work))
        matrices = _matrices(found, loaded)
    head, regions = working_head(found)
    drawn = tubes.sample(rng, head, regions, tubes.sample_counts(rng, burden))
    strength = float(rng.uniform(0.5, 1.0))
    steps = _steps(rng, found, strength)
    native = loaded["T2w"]
    frame = canonical(native)
    fraction, index = tubes.occupancy(drawn, frame.shape, frame.affine)
    for name, image in loaded.items():
        added = fraction if name == "T2w" else _elsewhere(drawn, canonical(image), matrices[name])
        data = np.asarray(image.dataobj) + to_native(added, image) * np.float32(steps[name])
        data = np.maximum(data, min(float(np.asarray(image.dataobj).min()), 0.0))
        path = out / scan.files[name].relative_to(source)
        meta = {
            **write.read_json(paths.sidecar(scan.files[name])),
            "EpvsImplanted": True,
            "EpvsStep": float(steps[name]),
        }
        write.image(path, np.rint(data).astype(np.int16) if data.max() > 200 else data, image, meta=meta)
    known = _truth(drawn, fraction, index, found, frame, native)
    relative = scan.files["T2w"].relative_to(source).parent.as_posix()
    write_truth(out / "derivatives" / "truth", scan, known, link=f"bids:raw:{relative}/")
    ids = {"participant_id": f"sub-{scan.subject}"} | ({"session_id": f"ses-{scan.session}"} if scan.session else {})
    return {**ids, **wide_row(known.summary.to_dict("records"))}


def working_head(found: Result) -> tuple[Anatomy, np.ndarray]:
    """Labels of a prepared scan on an isotropic grid, and regions on every second voxel of it."""
    t2w = found.images["T2w"]
    labels = nib.Nifti1Image(found.anatomy.labels, t2w.affine)
    grid = iso_grid(labels, WORK_MM)
    to_template = found.to_template @ np.linalg.inv(t2w.affine)
    head = Anatomy(np.asarray(resample(labels, grid, order=0).dataobj).astype(np.int16), grid.affine, to_template)
    half = every_second(head)
    regions = from_labels(half.labels, half.spacing, half.to_template @ half.affine)
    return head, regions


def _matrices(found: Result, loaded: Mapping[str, Nifti1Image]) -> dict[str, np.ndarray]:
    """4 x 4 from canonical millimetres of the T2w to canonical millimetres of each other sequence."""
    from bids_epvs.prepare import ants

    out = {}
    for name, transform in found.transforms.items():
        own = np.linalg.inv(canonical_to_world(loaded[name])) @ canonical_to_world(loaded["T2w"])
        out[name] = own @ ants.linear_matrix(transform)
    return out


def _steps(rng: np.random.Generator, found: Result, strength: float) -> dict[str, float]:
    """Intensity that a voxel full of EPVS gains in each sequence: a share of the step from white matter to fluid."""
    white = np.isin(found.anatomy.labels, (2, 41)) & ~found.csf
    fluid = np.isin(found.anatomy.labels, (4, 43)) & found.csf
    fluid = fluid if fluid.sum() > 50 else found.csf
    out = {}
    for name, image in found.images.items():
        data = np.asarray(image.dataobj)
        out[name] = epvs_share(rng, name, strength) * float(np.median(data[fluid]) - np.median(data[white]))
    return out


def _elsewhere(drawn: list[tubes.Tube], frame: Nifti1Image, matrix: np.ndarray) -> np.ndarray:
    """Share of EPVS in the voxels of another sequence; `matrix` leads from T2w millimetres to those of `frame`."""
    moved = [tubes.Tube(t.region, t.points @ matrix[:3, :3].T + matrix[:3, 3], t.radius) for t in drawn]
    return tubes.occupancy(moved, frame.shape, frame.affine)[0]


def _truth(
    drawn: list[tubes.Tube],
    fraction: np.ndarray,
    index: np.ndarray,
    found: Result,
    frame: Nifti1Image,
    native: Nifti1Image,
) -> Truth:
    """The truth on the grid of the T2w as it is stored."""
    spacing = voxel_spacing(frame)
    world = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(native.shape, np.uint8), native.affine)).affine
    to_world = world @ np.linalg.inv(frame.affine)
    table = truth_table(drawn, index, fraction, frame.affine)
    summary = truth_summary(table, index, fraction, found.regions, spacing, found.slices)
    turned = [tubes.Tube(t.region, t.points @ to_world[:3, :3].T + to_world[:3, 3], t.radius) for t in drawn]
    scanner = truth_table(turned, index, fraction, world)
    stored: Mapping[str, np.ndarray] = {
        "fraction": to_native(fraction, native),
        "instances": to_native(index, native),
        "regions": to_native(found.regions, native),
        "mimics": np.zeros(native.shape, np.uint8),
    }
    return Truth(**stored, affine=native.affine, table=scanner, summary=summary)


_README = f"""Real scans into which bids_epvs-simulate {__version__} has put perivascular spaces whose place and
size are known (derivatives/truth). Those that the people have themselves are not in the truth.
"""
