"""Stages 4 to 6 of a session: tables, standard spaces and the page of a subject."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs import __version__, logs
from bids_epvs.derivatives import columns, paths, write
from bids_epvs.inputs.query import find_segmentation
from bids_epvs.measure import lesions as measure_lesions
from bids_epvs.measure import ratings, spread
from bids_epvs.models import MODELS, load
from bids_epvs.prepare import planes
from bids_epvs.prepare.regions import NAMES
from bids_epvs.prepare.resample import to_canonical
from bids_epvs.records import Prepared, Scan
from bids_epvs.report import boilerplate, subject
from bids_epvs.report.subject import View
from bids_epvs.settings import Settings
from bids_epvs.stages import disk

logger = logging.getLogger(__name__)


def measures(
    scan: Scan,
    settings: Settings,
    model_keys: Mapping[str, str],
    prepared_key: str,
    note: dict,
    read: Callable[[], Prepared],
) -> str:
    """Stage 4: tables of all models."""
    content = {"stage": "measures", "version": __version__, "models": model_keys, "prepared": prepared_key}
    key = write.digest({**content, "spreads": spread.packaged()})
    files = disk.tables(scan, settings)
    if settings.resume and write.is_current(files.values(), key):
        note["reused"] = True
        return key
    prepared = read()
    rows, summaries = [], []
    for name in model_keys:
        lesion, summary = _measure(scan, settings, name, prepared)
        rows.append(lesion)
        summaries.append(summary)
    regions = disk.anatomy(scan, settings)["regions"]
    common = {"Sources": [paths.bids_uri(regions, settings.output_dir, "")], write.KEY: key}
    about = write.read_json(paths.sidecar(regions))
    extra = {"BrainVolume_mm3": about["BrainVolume_mm3"], "QualityNotes": about["QualityNotes"]}
    write.table(files["lesions"], pd.concat(rows), meta={**columns.LESIONS, **common})
    write.table(files["summary"], pd.concat(summaries), meta={**columns.SUMMARY, **extra, **common})
    return key


def _measure(scan: Scan, settings: Settings, name: str, prepared: Prepared) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lesions (none for methods that mark none) and summary of one model from its files on disk."""
    files, native, spec = disk.model_files(scan, settings, name), prepared.native, load(name)
    labels, share = np.zeros(prepared.regions.shape, np.int32), None
    lesion = pd.DataFrame(columns=measure_lesions.LESION_COLUMNS)
    if "instances" in files:
        labels = to_canonical(nib.load(files["instances"]), native).astype(np.int32)
        response = files.get("probability", files.get("saliency"))
        seen = to_canonical(nib.load(response), native) if response else None
        share = seen if spec.calibrated and "probability" in files else None
        turned = nib.as_closest_canonical(native)
        lesion = measure_lesions.describe(
            labels,
            prepared.regions,
            prepared.spacing,
            to_world=turned.affine,
            to_native_voxel=np.linalg.inv(native.affine) @ turned.affine,
            probability=seen,
            model=name,
        )
    chosen = [r for r in spec.regions if not settings.regions or r in settings.regions]
    about = write.read_json(paths.sidecar(next(iter(files.values()))))
    used = about["Parameters"]
    known = {n: used[f"lesion_{n}"] for n in ("slope", "offset", "missed") if f"lesion_{n}" in used}
    summary = ratings.summarise(
        lesion,
        labels,
        prepared.regions,
        voxel_mm3=prepared.voxel_mm3,
        slices=prepared.slices,
        names=[n for n in NAMES if n in chosen],
        model=name,
        certainty=ratings.Certainty(**known) if known else None,
        share=share,
        depth=ratings.slab(prepared.spacing),
    )
    if "findings" in files:
        summary = ratings.merged(summary, write.read_table(files["findings"]), marks="instances" in files)
    if not find_segmentation(scan, settings.derivatives):  # errors were measured with regions of the app
        errors = spread.known(name, about.get("WeightsSHA256", ""), planes.kind_of(prepared))
        summary = spread.widened(summary, errors)
    return lesion, summary


def spaces(scan: Scan, settings: Settings, model_keys: Mapping[str, str], note: dict) -> None:
    """Stage 5: masks in standard spaces, where asked for."""
    note["reused"] = True
    for space in (s for s in settings.output_spaces if s != "T2w"):
        targets = {
            name: paths.derivative(settings.output_dir, scan, space=space, label="EPVS", desc=name, suffix="mask")
            for name in model_keys
            if "mask" in load(name).outputs
        }
        due = [n for n, t in targets.items() if not (settings.resume and write.is_current([t], model_keys[n]))]
        if not due:
            continue
        from bids_epvs.prepare import ants
        from bids_epvs.prepare.register import to_space
        from bids_epvs.prepare.template import space_grid

        note["reused"] = False
        grid = space_grid(space)
        route = to_space(space, disk.transform(scan, settings), work_dir=disk.work_dir(scan, settings) / space)
        for name in due:
            mask = disk.model_files(scan, settings, name)["mask"]
            image = nib.load(mask)
            found = nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine)
            warped = ants.apply(found, grid, route, interpolation="nearestNeighbor")  # linear would lose thin EPVS
            meta = {"Sources": [paths.bids_uri(mask, settings.output_dir, "")], "Type": "Lesion"}
            meta[write.KEY] = model_keys[name]
            write.image(targets[name], np.asarray(warped.dataobj) > 0.5, grid, meta=meta)


def view(scan: Scan, settings: Settings, error: str) -> View:
    """What is on disk of one session, for the report; after a failure, what there is."""
    sources = {name: str(path.relative_to(settings.bids_dir)) for name, path in scan.files.items()}
    ready = [*disk.images(scan, settings).values(), *disk.anatomy(scan, settings).values()]
    if error or not all(path.is_file() for path in ready):
        return View(scan, error or "no results: run the participant level", sources=sources)
    about = write.read_json(paths.sidecar(disk.anatomy(scan, settings)["regions"]))
    prepared = disk.kept(scan, settings, about.get(write.KEY, ""))
    masks, maps, details, remarks = {}, {}, {}, {}
    for name in settings.models or tuple(MODELS):
        own = disk.model_files(scan, settings, name)
        told = write.read_json(paths.sidecar(next(iter(own.values()))))  # the same beside each of its files
        if "instances" in own and own["instances"].is_file():
            masks[name] = to_canonical(nib.load(own["instances"]), prepared.native).astype(np.int32)
        if "saliency" in own and own["saliency"].is_file():
            maps[name] = to_canonical(nib.load(own["saliency"]), prepared.native).astype(np.float32)
        if "findings" in own:
            details[name] = told.get("Parameters", {})
        remarks[name] = told.get("Notes", [])
    files = disk.tables(scan, settings)
    have = all(path.is_file() for path in files.values())
    return View(
        scan,
        error,
        prepared,
        masks,
        write.read_table(files["summary"]) if have else None,
        sources,
        maps,
        details,
        remarks,
    )


def report(
    scans: list[Scan], errors: Mapping[str, str], settings: Settings, second_process: Executor | None = None
) -> bool:
    """Stage 6: page and pictures of a subject; returns whether they had to be made."""
    target = paths.report(settings.output_dir, scans[0].subject)
    text = boilerplate.methods(settings)
    known = {
        "stage": "report",
        "versions": logs.versions(),
        "methods": text,
        "errors": dict(errors),
        "scans": [(s.label, s.notes, {n: p.name for n, p in s.files.items()}) for s in scans],
        "tables": [write.read_json(paths.sidecar(disk.tables(s, settings)["summary"])).get(write.KEY) for s in scans],
    }
    key = write.digest(known)
    folder = paths.figures(settings.output_dir, scans[0].subject)
    if settings.resume and not settings.reports_only and target.is_file() and folder.is_dir():
        with target.open(encoding="utf-8") as stream:
            if key in stream.read(2000):
                logger.info("sub-%s: report found, not made again", scans[0].subject)
                return False
    views = [view(s, settings, errors.get(s.label, "")) for s in scans]
    disk.forget()  # the files may change before the next report
    html, pictures = subject.render(views, methods=text, versions=logs.versions(), key=key, helper=second_process)
    for name, content in pictures.items():
        write.binary(folder / name, content)
    folder.mkdir(parents=True, exist_ok=True)
    write.text(target, html)
    return True
