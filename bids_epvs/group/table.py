"""The tables of the sessions, collected: one row a session, joined with participants.tsv and sessions.tsv, and one
row a session, method, region and hemisphere.

A session counts as finished when its summary table is there and the last run that tried it did not fail. What
failed, was cut off, or has no usable sequence is listed, so that no subject disappears without a word.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bids_epvs.derivatives import columns, paths, write
from bids_epvs.records import Cohort, Failure

logger = logging.getLogger(__name__)

VALUES = ("count", "volume_mm3", "volume_fraction", "volume_expected_mm3", "rating", "adams_count")
"""Columns of the summary that become one column a region."""
TOTALS = ("count", "volume_mm3")
"""Columns that are summed over regions."""
TEXT = ("model", "region", "hemisphere", "rating_scale")
"""Columns of the summary that are no numbers."""
NOTHING = float("nan")

_MEANING: dict[str, tuple[str, str | None]] = {
    "count": ("number of EPVS", None),
    "volume_mm3": ("volume of EPVS", "mm3"),
    "volume_fraction": ("volume of EPVS over volume of the region", None),
    "volume_expected_mm3": ("volume of EPVS by calibrated probability, partial volume in it", "mm3"),
    "rating": ("visual grade, higher hemisphere", None),
    "adams_count": ("EPVS in the slice or structure that Adams' protocol names", None),
}


def collect(root: Path, source: Path) -> Cohort:
    """Read every finished session of an output directory.

    Parameters
    ----------
    root : Path
        Output of the participant level.
    source : Path
        The raw dataset, for participants.tsv.
    """
    failed = last_failures(root)
    rows, parts, notes = [], [], {}
    found = sorted(root.glob("sub-*/**/anat/*_desc-summary_epvs.tsv"))
    for path in found:
        label, ids = _identity(path)
        if label in failed:
            continue
        summary = read_summary(path)
        about = write.read_json(paths.sidecar(path))
        notes[label] = tuple(about.get("QualityNotes", ()))
        rows.append({**ids, **wide_row(summary), **_brain(about), "quality_warnings": len(notes[label])})
        parts += [{**ids, **row, "label": label} for row in summary]
    long, wide = pd.DataFrame(parts), pd.DataFrame(rows)
    meaning = describe(wide.columns)
    wide, covariates, extra = join(wide, source)
    unfinished = _unfinished(root, {_identity(p)[0] for p in found} | set(failed))
    failures = [Failure(label, reason) for label, reason in sorted((failed | unfinished).items())]
    return Cohort(wide, long, {**meaning, **extra}, tuple(covariates), tuple(failures), notes)


def _identity(path: Path) -> tuple[str, dict[str, str]]:
    """Session label and its BIDS identifiers."""
    entities = paths.parse(path)
    ids = {"participant_id": f"sub-{entities['sub']}"}
    if "ses" in entities:
        ids["session_id"] = f"ses-{entities['ses']}"
    return "_".join(ids.values()), ids


def _brain(about: Mapping[str, Any]) -> dict[str, float]:
    """Brain volume where the summary records it."""
    return {"brain_volume_mm3": about["BrainVolume_mm3"]} if "BrainVolume_mm3" in about else {}


def read_summary(path: Path) -> list[dict[str, Any]]:
    """The rows of a summary table, numbers as float, nan where missing (pandas takes ten times as long)."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(stream, delimiter="\t")]


def _value(column: str, text: str) -> Any:
    if column in TEXT:
        return None if text == "n/a" else text
    return NOTHING if text == "n/a" else float(text)


def wide_row(summary: Iterable[Mapping[Any, Any]]) -> dict[str, Any]:
    """One session's summary as ``<model>_<region>[_<hemisphere>]_<value>``, and totals of each model.

    Hemispheres have counts only. A region that the scan does not show adds nothing to a total; without any region the
    total is missing.
    """
    out: dict[str, Any] = {}
    for row in summary:
        model = row["model"]
        for value in TOTALS:
            out.setdefault(f"{model}_{value}", NOTHING)
        stem = f"{model}_{row['region']}"
        if row["hemisphere"] != "both":
            out[f"{stem}_{row['hemisphere']}_count"] = row["count"]
            continue
        out.update({f"{stem}_{v}": row.get(v, NOTHING) for v in VALUES})
        for value in TOTALS:
            before, here = out[f"{model}_{value}"], row[value]
            out[f"{model}_{value}"] = here if before != before else before + (here if here == here else 0.0)
    return out


def describe(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The data dictionary of `wide_row`'s columns."""
    fixed: dict[str, dict[str, Any]] = {
        "participant_id": {"Description": "subject"},
        "session_id": {"Description": "session"},
        "brain_volume_mm3": {"Description": "volume inside the skull: brain and its fluid", "Units": "mm3"},
        "quality_warnings": {"Description": "number of quality warnings; the report of the subject has their text"},
    }
    out = {}
    for column in names:
        out[column] = fixed.get(column) or _described(column)
    return out


def _described(column: str) -> dict[str, Any]:
    """Meaning of ``frangi_BasalGanglia_left_count``."""
    value = next(v for v in sorted(_MEANING, key=len, reverse=True) if column.endswith(f"_{v}"))
    model, *where = column.removesuffix(f"_{value}").split("_")
    text, units = _MEANING[value]
    place = " ".join(where[::-1]) if where else "all regions"
    out: dict[str, Any] = {"Description": f"{text}, {place}, by {model}"}
    if units:
        out["Units"] = units
    return out


def join(wide: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, list[str], dict[str, Any]]:
    """Add the columns of participants.tsv and sessions.tsv after the identifiers.

    Returns
    -------
    wide : DataFrame
    added : list of str
        Names of the added columns; one that clashes gets the prefix ``participants_`` or ``sessions_``.
    entries : dict
        Their entries from participants.json, where given.
    """
    if wide.empty:
        return wide, [], {}
    added: list[str] = []
    entries: dict[str, Any] = {}
    keys = ["participant_id"] + (["session_id"] if "session_id" in wide else [])
    for name, table in (("participants", _participants(source)), ("sessions", _sessions(source))):
        on = [k for k in keys if k in table.columns]
        if table.empty or "participant_id" not in on or (name == "sessions" and "session_id" not in on):
            continue
        table = table.drop_duplicates(on)
        clash = {c: f"{name}_{c}" for c in table.columns if c not in on and c in wide.columns}
        table = table.rename(columns=clash)
        new = [c for c in table.columns if c not in on]
        wide = wide.merge(table, on=on, how="left", validate="many_to_one")
        meaning = write.read_json(source / f"{name}.json")
        entries |= {c: meaning.get(c.removeprefix(f"{name}_"), {"Description": f"from {name}.tsv"}) for c in new}
        added += new
    rest = [c for c in wide.columns if c not in keys and c not in added]
    return wide[[*keys, *added, *rest]], added, entries


def _participants(source: Path) -> pd.DataFrame:
    """participants.tsv; empty where it is absent or unreadable."""
    return _tsv(source / "participants.tsv")


def _sessions(source: Path) -> pd.DataFrame:
    """All sessions.tsv files below each other, with the subject."""
    parts = [
        _tsv(path).assign(participant_id=path.parent.name) for path in sorted(source.glob("sub-*/sub-*_sessions.tsv"))
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _tsv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False, dtype={"participant_id": str})
    except (ValueError, OSError) as error:
        logger.warning("%s cannot be read (%s): not merged", path, error)
        return pd.DataFrame()


def last_failures(root: Path) -> dict[str, str]:
    """Reason of each session whose last try failed, from the manifests of all runs in order."""
    last: dict[str, str] = {}
    for path in sorted(root.glob("logs/*/manifest.json")):
        content = write.read_json(path)
        for label in content.get("skipped_without_t2w", ()):
            last[label] = "no T2w, nor another sequence that could be used"
        for session in content.get("sessions", ()):
            last[session["label"]] = session["error"] or ""
    return {label: reason for label, reason in last.items() if reason}


def _unfinished(root: Path, known: set[str]) -> dict[str, str]:
    """Sessions with some files but no summary: a run that was cut off."""
    out = {}
    for folder in sorted(p for p in root.glob("sub-*/**/anat") if any(p.iterdir())):
        label = "_".join(p for p in folder.relative_to(root).parts if p.startswith(("sub-", "ses-")))
        if label not in known:
            out[label] = "cut off before it was finished; run the participant level again"
    return out


def write_tables(cohort: Cohort, root: Path) -> Path:
    """Write ``group_epvs.tsv``, ``group_epvs_long.tsv`` and their data dictionaries; the first one's path."""
    meta = {c: dict(cohort.columns.get(c, {"Description": c})) for c in cohort.wide.columns}
    long = cohort.long.drop(columns="label", errors="ignore")
    known = {c: entry for c, entry in {**columns.IDENTIFIERS, **columns.SUMMARY}.items() if c in long}
    write.table(root / "group_epvs_long.tsv", long, meta=known)
    return write.table(root / "group_epvs.tsv", cohort.wide, meta=meta)


def thumbnails(root: Path, labels: Iterable[str]) -> dict[str, bytes]:
    """The small picture of each session that the participant level left in ``figures``."""
    out = {}
    for label in labels:
        subject = label.split("_")[0].removeprefix("sub-")
        path = paths.figures(root, subject) / f"{label}_thumbnail.jpg"
        if path.is_file():
            out[label] = path.read_bytes()
    return out
