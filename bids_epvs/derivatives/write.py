"""The only writer of results. A file appears under its final name whole or not at all.

A stage writes its data first and the sidecar with its key last; `is_current` trusts a stage whose sidecar records
the same key and whose files are all there. Nothing that changes between identical runs (times, host names) is written
outside ``logs``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.nifti1 import Nifti1Image

from bids_epvs.derivatives import paths
from bids_epvs.errors import OutputError

KEY = "StageKey"
_TEMPORARY = ".epvs-tmp-"
_ONE_AT_A_TIME = threading.Lock()


def digest(content: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file in the same directory, then give it its name.

    Raises
    ------
    OutputError
        The directory cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, suffix="".join(path.suffixes[-2:]), dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror}).", where=path) from error
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror}).", where=path) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _umask() -> int:
    with _ONE_AT_A_TIME:  # it can only be read by changing it
        value = os.umask(0)
        os.umask(value)
    return value


def together(jobs: Iterable[Callable[[], object]], threads: int) -> None:
    """Do several things that mostly compress or wait for the disk, at most `threads` at a time.

    Raises
    ------
    Exception
        The first error, when all have ended.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()


def sweep(folder: Path) -> None:
    """Remove what a killed run left half-written under `folder`."""
    for left in folder.rglob(f"{_TEMPORARY}*"):
        left.unlink(missing_ok=True)


def text(path: Path, content: str) -> Path:
    """Write a text file."""
    return atomically(path, lambda p: p.write_text(content, encoding="utf-8"))


def binary(path: Path, content: bytes) -> Path:
    """Write bytes."""
    return atomically(path, lambda p: p.write_bytes(content))


def arrays(path: Path, content: Mapping[str, Any], *, compressed: bool = True) -> Path:
    """Write named arrays to an ``.npz``."""
    save = np.savez_compressed if compressed else np.savez
    return atomically(path, lambda p: save(p, **content))


def as_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write indented JSON; NumPy values become plain ones."""
    return text(path, json.dumps(content, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def image(path: Path, data: np.ndarray, like: Nifti1Image, *, meta: Mapping[str, Any]) -> Path:
    """Write voxels on the grid of `like`, then the sidecar.

    Booleans become uint8; other types are kept. The header is new: codes 1, millimetres, no scaling.
    """
    if data.dtype == bool:
        data = data.astype(np.uint8)
    out = nib.Nifti1Image(data, like.affine)
    out.header.set_xyzt_units("mm")
    out.set_qform(like.affine, 1)
    out.set_sform(like.affine, 1)
    atomically(path, lambda p: nib.save(out, p))
    as_json(paths.sidecar(path), meta)
    return path


def table(path: Path, frame: pd.DataFrame, *, meta: Mapping[str, Any] | None = None) -> Path:
    """Write a TSV with ``n/a`` for missing values, then its JSON dictionary."""
    whole = frame.copy()
    for column in whole.columns:
        values = whole[column]
        if values.dtype.kind == "f" and values.notna().any() and (values.dropna() % 1 == 0).all():
            whole[column] = values.astype("Int64")
        elif values.dtype == object:
            whole[column] = [_cell(v) for v in values]
    text(path, whole.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))
    if meta is not None:
        as_json(paths.sidecar(path), meta)
    return path


def _cell(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_json(path: Path) -> dict[str, Any]:
    """Content of a sidecar; empty where it is absent or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_table(path: Path) -> pd.DataFrame:
    """A TSV written by `table`; labels such as 01 stay strings."""
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False, dtype={"index": int})


def is_current(files: Iterable[Path], key: str) -> bool:
    """Whether every file exists and its sidecar records `key`."""
    return all(f.is_file() and read_json(paths.sidecar(f)).get(KEY) == key for f in files)


def dataset(root: Path, *, source: Path, version: str, citations: str) -> None:
    """Files at the top of the output: description, .bidsignore, README, CITATION.bib."""
    link = os.path.relpath(source, root)
    as_json(
        root / "dataset_description.json",
        {
            "Name": "bids_epvs: enlarged perivascular spaces",
            "BIDSVersion": "1.11.0",
            "DatasetType": "derivative",
            "License": "as the source dataset",
            "GeneratedBy": [{"Name": "bids_epvs", "Version": version}],
            "SourceDatasets": [{"URL": link}],
            "DatasetLinks": {"raw": link},
        },
    )
    text(root / ".bidsignore", "\n".join(paths.IGNORED) + "\n")
    text(root / "README", README)
    text(root / "CITATION.bib", citations)


README = """Enlarged perivascular spaces (EPVS) measured by bids_epvs.

sub-*/[ses-*/]anat/*_label-EPVS_desc-<model>_mask.nii.gz  EPVS on the grid of the T2w
sub-*/[ses-*/]anat/*_desc-summary_epvs.tsv                counts, volumes and ratings by region and hemisphere
sub-*/[ses-*/]anat/*_desc-lesions_epvs.tsv                a row per EPVS
sub-*.html                                                report of a subject
group_epvs.tsv, group.html                                all subjects

Columns are explained in the JSON files beside the tables. For research use: no method here has been validated for
diagnosis.
"""
