"""Where what a session leaves lies on disk, and reading what its preparation left."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_epvs.derivatives import paths, write
from bids_epvs.inputs.query import find_segmentation
from bids_epvs.models import load
from bids_epvs.prepare.resample import canonical, to_canonical, voxel_spacing
from bids_epvs.prepare.template import SPACE
from bids_epvs.records import Prepared, Scan
from bids_epvs.settings import Settings


def input_keys(scan: Scan, settings: Settings) -> dict[str, str]:
    """Content hash of each input file (and of a segmentation given with ``-d``)."""
    keys = {name: write.file_digest(path) for name, path in scan.files.items()}
    found = find_segmentation(scan, settings.derivatives)
    if found:
        keys["segmentation"] = write.file_digest(found)
    return keys


def images(scan: Scan, settings: Settings) -> dict[str, Path]:
    """Paths of the prepared sequences."""
    return {
        name: paths.derivative(
            settings.output_dir,
            scan,
            space=None if name == scan.reference else scan.reference,
            desc="preproc",
            suffix=paths.SUFFIX[name],
        )
        for name in scan.files
    }


def anatomy(scan: Scan, settings: Settings) -> dict[str, Path]:
    """Paths of brain mask, large fluid and regions."""
    out = settings.output_dir
    return {
        "brain": paths.derivative(out, scan, desc="brain", suffix="mask"),
        "csf": paths.derivative(out, scan, label="CSF", desc="large", suffix="mask"),
        "regions": paths.derivative(out, scan, seg="epvs", suffix="dseg"),
    }


def transform(scan: Scan, settings: Settings, space: str = SPACE) -> Path:
    """Path of the transform to a standard space."""
    return paths.derivative(
        settings.output_dir, scan, from_=scan.reference, to=space, mode="image", suffix="xfm", extension=".h5"
    )


def model_files(scan: Scan, settings: Settings, name: str) -> dict[str, Path]:
    """Paths of what one model writes, by its `ModelSpec.outputs`."""
    out = settings.output_dir
    every = {
        "findings": paths.derivative(out, scan, desc=name, suffix="epvs", extension=".tsv"),
        "saliency": paths.derivative(out, scan, desc=name, suffix="saliency"),
        "mask": paths.derivative(out, scan, label="EPVS", desc=name, suffix="mask"),
        "probability": paths.derivative(out, scan, label="EPVS", desc=name, suffix="probseg"),
        "instances": paths.derivative(out, scan, label="EPVS", desc=f"{name}instances", suffix="dseg"),
    }
    return {kind: every[kind] for kind in load(name).outputs}


def tables(scan: Scan, settings: Settings) -> dict[str, Path]:
    """Paths of the two tables of a session."""
    out = settings.output_dir
    return {
        kind: paths.derivative(out, scan, desc=kind, suffix="epvs", extension=".tsv") for kind in ("lesions", "summary")
    }


def work_dir(scan: Scan, settings: Settings) -> Path:
    """Scratch directory of one session."""
    base = settings.work_dir or Path(tempfile.gettempdir()) / "bids_epvs_work"
    return base / write.digest(str(settings.output_dir.resolve()))[:12] / scan.label


def clean(scan: Scan, settings: Settings) -> None:
    """Remove the scratch directory of one session."""
    shutil.rmtree(work_dir(scan, settings), ignore_errors=True)


def sources(scan: Scan, settings: Settings, *names: str) -> list[str]:
    """BIDS URIs of some sequences of the dataset."""
    return [paths.bids_uri(scan.files[n], settings.bids_dir, "raw") for n in names]


def read_prepared(scan: Scan, settings: Settings) -> Prepared:
    """`Prepared` from the derivatives on disk."""
    from bids_epvs.prepare.regions import hemispheres

    files = anatomy(scan, settings)
    native = nib.load(images(scan, settings)[scan.reference])
    about = write.read_json(paths.sidecar(files["regions"]))
    found = to_canonical(nib.load(files["regions"]), native).astype(np.uint8)
    frame = canonical(nib.Nifti1Image(np.zeros(native.shape, np.uint8), native.affine))
    return Prepared(
        images={
            name: to_canonical(nib.load(path), native).astype(np.float32)
            for name, path in images(scan, settings).items()
        },
        brain=to_canonical(nib.load(files["brain"]), native) > 0,
        regions=found,
        csf=to_canonical(nib.load(files["csf"]), native) > 0,
        spacing=voxel_spacing(frame),
        native=nib.Nifti1Image(np.zeros(native.shape, np.uint8), native.affine),
        slices=about["RatingSlices"],
        hemisphere=hemispheres(found.shape, np.asarray(about["CanonicalVoxelToTemplate"])),
        confidence=about["RegionConfidence"],
        notes=tuple(about["QualityNotes"]),
    )


_LAST: dict[tuple[str, str], Prepared] = {}
"""The last session that `kept` has read, by its label and key."""


def kept(scan: Scan, settings: Settings, prepared_key: str) -> Prepared:
    """`read_prepared`, once for all methods and the report of a session; the files are large."""
    key = scan.label, prepared_key
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = read_prepared(scan, settings)
    return _LAST[key]


def forget() -> None:
    """Let go of what `kept` holds."""
    _LAST.clear()
