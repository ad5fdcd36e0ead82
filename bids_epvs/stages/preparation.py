"""Stage 2 of a session: bias, registration, brain and regions, in one or two processes."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from itertools import tee
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs import __version__, logs, process
from bids_epvs.derivatives import paths, write
from bids_epvs.inputs.load import load_image
from bids_epvs.inputs.query import find_segmentation
from bids_epvs.models import default, device, load, looks, nuclei, parcellation, slices, weights
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.prepare.resample import to_native, voxel_spacing
from bids_epvs.records import Scan
from bids_epvs.settings import Settings
from bids_epvs.stages import disk

logger = logging.getLogger(__name__)


def compute(
    scan: Scan, settings: Settings, keys: Mapping[str, str], note: dict, second_process: Executor | None = None
) -> str:
    """Stage 2: bias, registration, brain, regions; `second_process` aligns the other sequences (see `helper`)."""
    disk.forget()  # of the session before
    content = {"stage": "prepare", "version": __version__, "inputs": keys, "registration": settings.registration}
    segmentation = find_segmentation(scan, settings.derivatives)
    network = settings.regions_from == "network" and not segmentation
    if network:
        used = (parcellation, nuclei, slices)
        known = (weights.identities(n.WEIGHTS, settings.weights_of(n.NAME)).values() for n in used)
        content["network"] = [sha256 for own in known for sha256 in own]
    key = write.digest(content)
    files = [*disk.images(scan, settings).values(), *disk.anatomy(scan, settings).values()]
    files.append(disk.transform(scan, settings))
    if settings.resume and write.is_current(files, key):
        note["reused"] = True
        logger.info("%s: preparation found, not computed again", scan.label)
        return key
    if second_process:  # takes long
        second_process.submit(ready, "bids_epvs.prepare.ants")
    from bids_epvs.prepare.sequences import begun
    from bids_epvs.prepare.session import prepare

    loaded = {name: load_image(path) for name, path in scan.files.items()}
    native = loaded[scan.reference].image
    written: list[Future[None]] = []

    def settled(alignment: Any) -> None:
        made = disk.transform(scan, settings), alignment.transform, native.shape[:3], native.affine
        written.append(begun(second_process, _write_transform, *made))

    logger.info("%s: computing preparation", scan.label)
    result = prepare(
        {name: item.image for name, item in loaded.items()},
        work_dir=disk.work_dir(scan, settings),
        registration=settings.registration,
        segmentation=nib.load(segmentation) if segmentation else None,
        segmentation_space="T2w" if segmentation and "space-T2w" in segmentation.name else "T1w",
        helper=second_process,
        settled=settled,
        **(_networks(settings, second_process) if network else {}),
    )
    notes = [f"{scan.files[n].name}: {text}" for n, item in loaded.items() for text in item.notes] + list(result.notes)
    _write_preparation(scan, settings, result, key, notes, native, written[0])
    if settings.work_dir is None:
        disk.clean(scan, settings)
    return key


def ready(module: str) -> None:
    """Import a module that takes long.

    Nothing is returned: who receives a module imports it, in a thread of its own, while the main thread imports
    others, and now and then one of the two found a package half imported.
    """
    importlib.import_module(module)


@contextmanager
def helper(settings: Settings, run: logs.Run) -> Iterator[Executor | None]:
    """A second process for the sessions of a subject, where it may use two threads; results are the same.

    A worker of a Dask cluster that a nanny looks after may begin no process: it works alone.
    """
    if settings.omp_nthreads < 2 or current_process().daemon:
        yield None
        return
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1, initializer=_begin_helper, initargs=(settings, run, os.getpid())) as pool:
        try:
            yield pool
        except (KeyboardInterrupt, SystemExit):
            pool.shutdown(kill_workers=True)
            raise


def _begin_helper(settings: Settings, run: logs.Run, parent: int) -> None:
    process.end_quickly()
    process.end_with(parent)
    logs.configure_worker(settings, run)


def _networks(settings: Settings, second_process: Executor | None) -> dict[str, Callable[..., Any]]:
    """What `prepare` needs to find brain and regions with networks."""

    def each() -> list[Any]:
        found = [n.network(settings.weights_of(n.NAME)) for n in (parcellation, nuclei, slices)]
        device.check(settings.device)
        return found

    def parcellate(images_: Iterable[Any], to_template: np.ndarray) -> Any:
        first, second, _ = each()
        twice = list(tee(images_))
        return device.with_room("regions", lambda: nuclei.predict(twice.pop(), to_template, first=first, second=second))

    def outline(images_: Sequence[Any], prior: np.ndarray) -> Any:
        if second_process:  # it has all that preparation wants of it, and gets ready for the methods
            second_process.submit(_ready_for_methods, settings)
        own = each()[2] if settings.weights_of(slices.NAME) else None
        return device.with_room("borders in slices", lambda: slices.outline(images_, prior, model=own))

    def meanwhile() -> None:
        each()
        ready("bids_epvs.prepare.ants")
        parcellation.tissue_priors()
        looks.prior_landmarks()

    if not second_process:
        each()  # what is missing is said at once
    return {"parcellate": parcellate, "outline": outline, "meanwhile": meanwhile}


def _ready_for_methods(settings: Settings) -> None:
    """Read the networks of the methods, those first that the second process begins with."""
    weights.backend()
    for name in reversed(settings.models or default()):
        spec = load(name)
        if spec.network:
            spec.network(settings.weights_of(name))


def _write_preparation(
    scan: Scan,
    settings: Settings,
    result: Any,
    key: str,
    notes: list[str],
    native: Any,
    written: Future[None],
) -> None:
    """Images first, then what says that the transform is `written`, the regions with what later stages need last."""
    files, target = disk.anatomy(scan, settings), disk.transform(scan, settings)
    reference = disk.sources(scan, settings, scan.reference)[0]
    source = {"Sources": [reference], "SpatialReference": reference, write.KEY: key}
    anatomy_source = {**source, "Sources": disk.sources(scan, settings, *result.looked_at)}

    def keep(name: str, path: Path) -> None:
        used = disk.sources(scan, settings, *dict.fromkeys((name, scan.reference)))
        about = "" if name == scan.reference else f", rigidly resampled onto the {scan.reference}"
        done = "Bias-corrected (N4, then the smooth field under which each tissue has one intensity)"
        meta = {**source, "Sources": used, "SkullStripped": False, "Description": done + about}
        data = np.asarray(result.images[name].dataobj, dtype=np.float32)
        write.image(path, to_native(data, native), native, meta=meta)

    def keep_mask(path: Path, mask: np.ndarray, about: str) -> None:
        meta = {**anatomy_source, "Type": "Brain", "Description": about}
        write.image(path, to_native(mask, native), native, meta=meta)

    jobs = [partial(keep, *item) for item in disk.images(scan, settings).items()]
    jobs.append(partial(keep_mask, files["brain"], result.anatomy.brain, "inside the skull: brain and its fluid"))
    about = "Ventricles, cisterns and sulci, left out of the search"
    jobs.append(partial(keep_mask, files["csf"], result.csf, about))
    write.together(jobs, settings.omp_nthreads)
    written.result()
    write.as_json(paths.sidecar(target), {"Sources": source["Sources"], write.KEY: key})
    spacing = voxel_spacing(result.images[scan.reference])
    table = pd.DataFrame(
        [
            {"index": i, "name": r.full_name, "abbreviation": r.abbreviation, "color": r.color}
            for i, r in REGIONS.items()
        ]
    )
    write.table(files["regions"].with_name(files["regions"].name.replace(".nii.gz", ".tsv")), table)
    write.image(
        files["regions"],
        to_native(result.regions, native),
        native,
        meta={
            **anatomy_source,
            "Manual": False,
            "Description": "regions in which EPVS are counted, by hemisphere",
            "Atlas": "given with -d" if find_segmentation(scan, settings.derivatives) else settings.regions_from,
            "CanonicalVoxelToTemplate": result.to_template.round(6).tolist(),
            "RatingSlices": dict(result.slices),
            "BrainVolume_mm3": float(result.anatomy.brain.sum() * np.prod(spacing)),
            "TemplateCorrelation": round(result.alignment.similarity, 4),
            "TemplateMargin": round(result.alignment.margin, 3),
            "RegionConfidence": {k: round(v, 3) for k, v in result.confidence.items()},
            "QualityNotes": notes,
        },
    )


def _write_transform(target: Path, made: Any, shape: tuple[int, ...], affine: np.ndarray) -> None:
    """The transform to the template, as `ants.write_world_transform`; the grid of the scan by shape and affine."""
    from bids_epvs.prepare import ants
    from bids_epvs.prepare.template import icbm152

    native = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine)
    write.atomically(target, lambda p: ants.write_world_transform(made, native, icbm152("T1w"), p))
