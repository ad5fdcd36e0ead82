"""Which files of a BIDS dataset are used: chosen subjects only, one file per sequence, by a written rule.

The rule among several files of one sequence in one session, each step only where the one before leaves a tie:

1. files that `--bids-filter-file` selects (all, where it says nothing), magnitude only;
2. fields of view of a whole head (at least 100 mm along two axes and 80 mm along the third) before slabs;
3. the smallest voxel volume;
4. the highest run number;
5. the first file name in alphabetical order.

Only the header is read for this.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_epvs.errors import InvalidDatasetError, NoFileSelectedError, NothingToDoError, UsageError
from bids_epvs.records import Scan

logger = logging.getLogger(__name__)

SEQUENCES: dict[str, dict[str, Any]] = {
    "T2w": {"suffix": "T2w"},
    "T1w": {"suffix": "T1w"},
    "FLAIR": {"suffix": "FLAIR"},
    "SWI": {"suffix": ["swi", "SWI"]},
}
"""Query of each sequence; `--bids-filter-file` calls the last one ``swi``."""

IGNORED_INPUTS = "sub-*/swi\nsub-*/ses-*/swi\n*_swi.nii.gz\n*_swi.json\n"
"""What the validator is told to pass over: BIDS has no susceptibility-weighted images yet."""
_FILTER_KEYS = {"T2w": "T2w", "T1w": "T1w", "FLAIR": "FLAIR", "swi": "SWI", "SWI": "SWI"}


@dataclass(frozen=True)
class Selection:
    """What a query found.

    Attributes
    ----------
    scans : tuple of Scan
        Sessions with one of the sequences needed, in order.
    without_t2w : tuple of str
        Sessions chosen by the filters that have none of them.
    """

    scans: tuple[Scan, ...]
    without_t2w: tuple[str, ...] = ()


def strip(labels: Iterable[str], prefix: str) -> list[str]:
    """Labels without ``sub-`` or ``ses-``.

    >>> strip(["sub-01", "02"], "sub-")
    ['01', '02']
    """
    return [label.removeprefix(prefix) for label in labels]


def check_dataset(root: Path) -> None:
    """Refuse what is no BIDS dataset at all.

    Raises
    ------
    InvalidDatasetError
        No directory, or no readable dataset_description.json with Name and BIDSVersion.
    """
    if not root.is_dir():
        raise InvalidDatasetError("expected a BIDS dataset, found no such directory.", where=root)
    path = root / "dataset_description.json"
    remedy = "Create it; see https://bids-specification.readthedocs.io, 'Dataset description'."
    if not path.is_file():
        raise InvalidDatasetError("a BIDS dataset must contain dataset_description.json.", where=root, remedy=remedy)
    try:
        text = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidDatasetError(f"not readable as JSON ({error}).", where=path, remedy=remedy) from error
    missing = [k for k in ("Name", "BIDSVersion") if not isinstance(text, dict) or k not in text]
    if missing:
        raise InvalidDatasetError(f"required fields are missing: {', '.join(missing)}.", where=path, remedy=remedy)


def subjects(root: Path, *, wanted: Iterable[str] = (), excluded: Iterable[str] = ()) -> list[str]:
    """Labels of the chosen subjects, from directory names alone.

    Raises
    ------
    NoFileSelectedError
        A wanted subject does not exist, or nothing is left.
    """
    present = sorted(p.name[4:] for p in root.glob("sub-*") if p.is_dir())
    wanted, excluded = strip(wanted, "sub-"), strip(excluded, "sub-")
    absent = sorted(set(wanted) - set(present))
    shown = ", ".join(present[:50]) + (" ..." if len(present) > 50 else "") or "none"
    if absent:
        raise NoFileSelectedError(
            f"no such subject: {', '.join(absent)}. Present: {shown}.", where="--participant-label"
        )
    chosen = [s for s in present if (not wanted or s in wanted) and s not in excluded]
    if not chosen:
        raise NoFileSelectedError(f"no subject is selected. Present: {shown}.", where=root)
    return chosen


def read_filters(path: Path | None) -> dict[str, dict[str, Any]]:
    """Queries per sequence from a `--bids-filter-file`; null means absent and ``"*"`` any value.

    Raises
    ------
    UsageError
        Not JSON, not an object of objects, or a name that is no sequence.
    """
    from bids.layout import Query

    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"not readable as JSON ({error}).", where=path) from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise UsageError("expected an object of objects, such as {'T2w': {'acquisition': 'tse'}}.", where=path)
    special = {None: Query.NONE, "*": Query.ANY}
    out: dict[str, dict[str, Any]] = {}
    for key, query in content.items():
        if key not in _FILTER_KEYS:
            logger.warning("%s: %s is not used by this app (it uses %s)", path, key, ", ".join(_FILTER_KEYS))
            continue
        out[_FILTER_KEYS[key]] = {
            k: special[v] if v is None or v == "*" else v for k, v in query.items() if k != "datatype"
        }
    return out


def index(root: Path, chosen: list[str], *, database: Path | None = None) -> Any:
    """A pybids layout of the chosen subjects, without metadata.

    With `database` the whole dataset is indexed once and the index reused, as a saved index must serve other choices.
    """
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    skipped = [re.compile(r"^/(derivatives|code|sourcedata|stimuli|models|phenotype)\b"), re.compile(r"/\.")]
    if database is None:
        labels = "|".join(re.escape(s) for s in chosen)
        skipped.append(re.compile(rf"^/sub-(?!(?:{labels})(?:/|$))"))
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=skipped)
    return BIDSLayout(root, validate=False, indexer=indexer, database_path=database)


def header_rank(path: Path) -> tuple[int, float]:
    """(0 for whole-head and 1 for slab or unreadable, voxel volume in mm3); smaller is better."""
    try:
        header = nib.load(path).header
        zooms = np.asarray(header.get_zooms()[:3], float)
        extent = np.sort(zooms * np.asarray(header.get_data_shape()[:3]))
    except Exception:  # an unreadable file is last; loading it says why
        return (2, float("inf"))
    whole = extent.size == 3 and extent[0] >= 80 and extent[1] >= 100
    return (0 if whole else 1, round(float(np.prod(zooms)), 4))


def choose(files: list[Any]) -> tuple[Path | None, list[str]]:
    """The file to use among several of one sequence and session, and notes on the others."""
    files = [f for f in files if f.entities.get("part") in (None, "mag")]
    if not files:
        return None, []
    ranked = sorted(
        files, key=lambda f: (*header_rank(Path(f.path)), -int(f.entities.get("run") or 0), Path(f.path).name)
    )
    best = Path(os.path.abspath(ranked[0].path))
    return best, [f"{Path(f.path).name} found, not used ({best.name} preferred)" for f in ranked[1:]]


def find_scans(
    root: Path,
    *,
    participant_label: Iterable[str] = (),
    exclude_participant_label: Iterable[str] = (),
    session_label: Iterable[str] = (),
    filter_file: Path | None = None,
    database: Path | None = None,
    needed: Sequence[str] = ("T2w",),
) -> Selection:
    """Sessions to process: those with at least one of the sequences `needed`.

    Raises
    ------
    InvalidDatasetError, NoFileSelectedError, UsageError
        See `check_dataset`, `subjects` and `read_filters`; also sessions that no subject has.
    NothingToDoError
        Subjects and sessions are there, but none has a sequence that is needed.
    """
    check_dataset(root)
    chosen = subjects(root, wanted=participant_label, excluded=exclude_participant_label)
    filters = read_filters(filter_file)
    layout = index(root, chosen, database=database)
    wanted = set(strip(session_label, "ses-"))
    pairs = [(s, e) for s in chosen for e in (layout.get_sessions(subject=s) or [None])]
    kept = [(s, e) for s, e in pairs if not wanted or e in wanted]
    if not kept:
        there = sorted({e for _, e in pairs if e}) or ["none"]
        raise NoFileSelectedError(
            f"no session {', '.join(sorted(wanted))}. Present: {', '.join(there)}.", where="--session-label"
        )
    scans, without = [], []
    for subject, session in kept:
        scan = _scan(layout, subject, session, filters)
        if not set(needed) & set(scan.files):
            without.append(f"sub-{subject}" + (f"_ses-{session}" if session else ""))
        else:
            scans.append(scan)
    if not scans:
        _raise_nothing(layout, chosen, filters, without, needed)
    for label in without:
        logger.warning("%s has no %s: skipped", label, " or ".join(needed))
    return Selection(tuple(scans), tuple(without))


def _scan(layout: Any, subject: str, session: str | None, filters: Mapping[str, dict[str, Any]]) -> Scan:
    """The Scan of one session."""
    files: dict[str, Path] = {}
    notes: list[str] = []
    for sequence, base in SEQUENCES.items():
        query = {**base, "subject": subject, "extension": [".nii.gz", ".nii"], **filters.get(sequence, {})}
        if session is not None:
            query.setdefault("session", session)
        found = [f for f in layout.get(**query) if f.entities.get("session") == session]
        best, others = choose(found)
        notes += others
        if best is not None:
            files[sequence] = best
        else:
            notes.append(f"no {sequence} found")
    return Scan(subject, session, files, tuple(notes))


def _raise_nothing(
    layout: Any, chosen: list[str], filters: Mapping[str, Any], without: list[str], needed: Sequence[str]
) -> None:
    """Nothing to work on: say what there is; filters that remove every such image are a different error."""
    every = [Path(f.path).name for f in layout.get(subject=chosen, extension=[".nii.gz", ".nii"])]
    shown = ", ".join(sorted(every)[:20]) or "no image"
    wanted = " or ".join(needed)
    removed = [n for n in needed if n in filters]
    if removed and layout.get(subject=chosen, suffix=removed, extension=[".nii.gz", ".nii"]):
        raise NoFileSelectedError(f"the filters select no {wanted}. Present: {shown}.", where="--bids-filter-file")
    raise NothingToDoError(
        f"no {wanted} in {len(without)} session(s). Present: {shown}.", remedy=f"This needs a {wanted} in anat/."
    )


def find_segmentation(scan: Scan, derivatives: Mapping[str, Path]) -> Path | None:
    """An anatomical segmentation of this session among the folders given with ``-d``.

    Looks for ``sub-01[_ses-1]*_dseg.nii.gz`` (BIDS derivatives; ``space-T2w`` preferred) and for FreeSurfer's
    ``sub-01[_ses-1]/mri/{synthseg,aparc+aseg,aseg}.mgz``.
    """
    for root in derivatives.values():
        folder = root / f"sub-{scan.subject}"
        session = folder / f"ses-{scan.session}" if scan.session else folder
        found = sorted(session.glob(f"**/{scan.label}*_dseg.nii.gz"), key=lambda p: ("space-T2w" not in p.name, p.name))
        freesurfer = [
            root / base / "mri" / f"{kind}.mgz"
            for base in dict.fromkeys((scan.label, f"sub-{scan.subject}"))
            for kind in ("synthseg", "aparc+aseg", "aseg")
        ]
        found += [p for p in freesurfer if p.is_file()]
        if found:
            return found[0]
    return None


def validate(root: Path, chosen: Iterable[str]) -> None:
    """Run bids-validator on the chosen subjects and the files at the top of the dataset.

    Raises
    ------
    InvalidDatasetError
        It reports errors.
    """
    import shutil
    import subprocess
    import sys
    import tempfile

    program = shutil.which("bids-validator-deno", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        logger.warning("bids-validator-deno is not installed: the dataset is not validated")
        return
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder) / "view"
        view.mkdir()
        for item in root.iterdir():
            if item.name != ".bidsignore" and (item.is_file() or item.name in {f"sub-{s}" for s in chosen}):
                (view / item.name).symlink_to(item.resolve())
        ignored = root / ".bidsignore"
        given = ignored.read_text() if ignored.is_file() else ""
        (view / ".bidsignore").write_text(f"{given}\n{IGNORED_INPUTS}")
        environment = {**os.environ, "DENO_DIR": folder, "HOME": folder}
        command = [program, str(view), "--format", "json", "--ignoreWarnings", "--ignoreNiftiHeaders"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        issues = json.loads(result.stdout)["issues"]["issues"]
    except (ValueError, KeyError):
        logger.warning("bids-validator did not answer (%s): the dataset is not validated", result.stderr.strip()[-300:])
        return
    errors = [i for i in issues if i.get("severity") == "error"]
    if errors:
        shown = "; ".join(f"{i.get('code')} at {i.get('location', '/')}" for i in errors[:5])
        raise InvalidDatasetError(
            f"bids-validator reports {len(errors)} error(s): {shown}.",
            where=root,
            remedy="Correct them, or pass --skip-bids-validation.",
        )
