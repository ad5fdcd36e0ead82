"""How often EPVS lie where: masks of all sessions in ICBM152 space, averaged over persons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from bids_epvs import process
from bids_epvs.derivatives import paths, write
from bids_epvs.group.stats import keys
from bids_epvs.prepare.template import SPACE, space_grid
from bids_epvs.records import REFERENCES, Cohort, FrequencyMap, Scan, Transform

FWHM_MM = 4.0
"""Full width at half maximum of the Gaussian that smooths."""


@dataclass(frozen=True)
class Task:
    """The files of one session.

    Attributes
    ----------
    masks : mapping
        Method -> mask on its own grid, or in `SPACE` where ``aligned`` says so.
    aligned : frozenset of str
        Methods whose mask the participant level wrote in `SPACE`.
    transform : Path, optional
        To `SPACE`; needed for methods that are not aligned.
    """

    masks: Mapping[str, Path]
    aligned: frozenset[str]
    transform: Path | None


def task(root: Path, label: str, models: Iterable[str]) -> Task:
    """What is on disk of a session."""
    subject, _, session = label.partition("_")
    scan = Scan(subject.removeprefix("sub-"), session.removeprefix("ses-") or None, {})
    masks, aligned = {}, set()
    for model in models:
        there = paths.derivative(root, scan, space=SPACE, label="EPVS", desc=model, suffix="mask")
        own = paths.derivative(root, scan, label="EPVS", desc=model, suffix="mask")
        if there.is_file():
            aligned.add(model)
            masks[model] = there
        elif own.is_file():
            masks[model] = own
    routes = (
        paths.derivative(root, scan, from_=name, to=SPACE, mode="image", suffix="xfm", extension=".h5")
        for name in REFERENCES
    )
    return Task(masks, frozenset(aligned), next((p for p in routes if p.is_file()), None))


def in_template(one: Task) -> dict[str, np.ndarray]:
    """Method -> flat indices of the template's voxels that hold EPVS; without methods that cannot be aligned."""
    from bids_epvs.prepare import ants

    out = {}
    for model, path in one.masks.items():
        image = nib.load(path)
        if model not in one.aligned:
            if one.transform is None:
                continue
            own = nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine)
            route = Transform((one.transform,), (), ())
            image = ants.apply(own, space_grid(SPACE), route, interpolation="nearestNeighbor")
        out[model] = np.flatnonzero(np.asarray(image.dataobj) > 0.5).astype(np.int32)
    return out


def frequency(
    cohort: Cohort, root: Path, *, by: Sequence[str] = (), nprocs: int = 1
) -> tuple[list[FrequencyMap], list[str]]:
    """Maps of every method, over all persons and over those of each value of the columns `by`.

    A person with several sessions counts once: sessions are averaged.

    Parameters
    ----------
    cohort : Cohort
    root : Path
        Output of the participant level.
    by : sequence of str
    nprocs : int
        Processes.

    Returns
    -------
    maps : list of FrequencyMap
    left_out : list of str
        Sessions without a transform or masks.
    """
    if not len(cohort.long):
        return [], []
    models = list(dict.fromkeys(cohort.long["model"]))
    table = cohort.wide[[*keys(cohort.wide), *by]].copy()
    table["label"] = table[keys(table)].agg("_".join, axis=1)
    tasks = [task(root, label, models) for label in table["label"]]
    shape = space_grid(SPACE).shape
    sums: dict[tuple[str, str, str], np.ndarray] = {}
    people: dict[tuple[str, str, str], set[str]] = {}
    masks: dict[tuple[str, str, str], list[Path]] = {}
    left_out = []
    share = 1 / table.groupby("participant_id")["label"].transform("count").to_numpy(float)
    for number, found in enumerate(_all(tasks, nprocs)):
        row = table.iloc[number]
        if not found:
            left_out.append(str(row["label"]))
        for model, voxels in found.items():
            for key in [(model, "all", "all"), *((model, c, str(row[c])) for c in by if pd.notna(row[c]))]:
                if key not in sums:
                    sums[key] = np.zeros(int(np.prod(shape)), np.float32)
                sums[key][voxels] += np.float32(share[number])
                people.setdefault(key, set()).add(str(row["participant_id"]))
                masks.setdefault(key, []).append(tasks[number].masks[model])
    made = [_map(key, sums[key].reshape(shape), len(people[key]), tuple(masks[key])) for key in sums]
    return made, left_out


def _all(tasks: list[Task], nprocs: int) -> Iterable[dict[str, np.ndarray]]:
    """`in_template` of every task, in order."""
    if nprocs == 1 or len(tasks) < 4:
        yield from map(in_template, tasks)
        return
    with process.pool(nprocs) as pool:
        yield from pool.map(in_template, tasks, chunksize=max(1, min(16, len(tasks) // nprocs)))


def _map(key: tuple[str, str, str], total: np.ndarray, people: int, masks: tuple[Path, ...]) -> FrequencyMap:
    """Share of persons, raw and smoothed (1 mm voxels)."""
    raw = total / np.float32(people)
    sigma = FWHM_MM / np.sqrt(8 * np.log(2))
    return FrequencyMap(*key, people, raw, ndimage.gaussian_filter(raw, sigma), masks)


def save(maps: Iterable[FrequencyMap], root: Path) -> list[Path]:
    """Write every map, raw and smoothed; maps of an earlier run go."""
    for old in root.glob(f"group_*space-{SPACE}*_frequency.*"):
        old.unlink()
    grid, out = space_grid(SPACE), []
    for one in maps:
        for kind, data in (("", one.raw), ("smooth", one.smooth)):
            text = f"share of {one.participants} persons with an EPVS in the voxel, by {one.model}"
            if kind:
                text += f"; smoothed with a Gaussian of {FWHM_MM:g} mm (full width at half maximum)"
            path = paths.group_map(root, one.model + kind, space=SPACE, by=one.by, level=one.level)
            meta: dict[str, Any] = {"Sources": [paths.bids_uri(m, root, "") for m in one.masks], "Description": text}
            meta |= {"Participants": one.participants, "GroupedBy": one.by, "Level": one.level}
            out.append(write.image(path, data, grid, meta=meta))
    return out
