"""The stages of one session: each computes what is missing, writes it, and returns the key of what is on disk."""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_epvs import __version__, explain, logs, process
from bids_epvs.derivatives import columns, paths, write
from bids_epvs.inputs.load import load_image
from bids_epvs.inputs.query import find_segmentation
from bids_epvs.measure import lesions as measure_lesions
from bids_epvs.measure import ratings, spread
from bids_epvs.models import MODELS, default, load, looks, nuclei, parcellation, slices, weights
from bids_epvs.models.spec import ModelSpec
from bids_epvs.prepare.regions import NAMES, REGIONS
from bids_epvs.prepare.resample import canonical, thickness, to_canonical, to_native, voxel_spacing
from bids_epvs.prepare.template import SPACE
from bids_epvs.records import Prediction, Prepared, Scan
from bids_epvs.report import boilerplate, subject
from bids_epvs.report.subject import View
from bids_epvs.settings import Settings

logger = logging.getLogger(__name__)


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


def work_dir(scan: Scan, settings: Settings) -> Path:
    """Scratch directory of one session."""
    base = settings.work_dir or Path(tempfile.gettempdir()) / "bids_epvs_work"
    return base / write.digest(str(settings.output_dir.resolve()))[:12] / scan.label


def clean(scan: Scan, settings: Settings) -> None:
    """Remove the scratch directory of one session."""
    shutil.rmtree(work_dir(scan, settings), ignore_errors=True)


def preparation(
    scan: Scan, settings: Settings, keys: Mapping[str, str], note: dict, second_process: Executor | None = None
) -> str:
    """Stage 2: bias, registration, brain, regions; `second_process` aligns the other sequences (see `helper`)."""
    _LAST.clear()  # of the session before
    content = {"stage": "prepare", "version": __version__, "inputs": keys, "registration": settings.registration}
    segmentation = find_segmentation(scan, settings.derivatives)
    network = settings.regions_from == "network" and not segmentation
    if network:
        used = (parcellation, nuclei, slices)
        content["network"] = [weights.identity(n.WEIGHTS, settings.weights_of(n.NAME)) for n in used]
    key = write.digest(content)
    files = [*images(scan, settings).values(), *anatomy(scan, settings).values(), transform(scan, settings)]
    if settings.resume and write.is_current(files, key):
        note["reused"] = True
        logger.info("%s: preparation found, not computed again", scan.label)
        return key
    if second_process:  # takes long
        second_process.submit(ready, "bids_epvs.prepare.ants")
    from bids_epvs.prepare.session import begun, prepare

    loaded = {name: load_image(path) for name, path in scan.files.items()}
    native = loaded[scan.reference].image
    written: list[Future[None]] = []

    def settled(alignment: Any) -> None:
        made = transform(scan, settings), alignment.transform, native.shape[:3], native.affine
        written.append(begun(second_process, _write_transform, *made))

    logger.info("%s: computing preparation", scan.label)
    result = prepare(
        {name: item.image for name, item in loaded.items()},
        work_dir=work_dir(scan, settings),
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
        clean(scan, settings)
    return key


def ready(module: str) -> None:
    """Import a module that takes long.

    Nothing is returned: who receives a module imports it, in a thread of its own, while the main thread imports
    others, and now and then one of the two found a package half imported.
    """
    importlib.import_module(module)


@contextmanager
def helper(settings: Settings, run: logs.Run) -> Iterator[Executor | None]:
    """A second process for the sessions of a subject, where it may use two threads; results are the same."""
    if settings.omp_nthreads < 2:
        yield None
        return
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1, initializer=_begin_helper, initargs=(settings, run)) as pool:
        yield pool


def _begin_helper(settings: Settings, run: logs.Run) -> None:
    process.end_quickly()
    logs.configure_worker(settings, run)


def _networks(settings: Settings, second_process: Executor | None) -> dict[str, Callable[..., Any]]:
    """What `prepare` needs to find brain and regions with networks."""

    def each() -> list[Any]:
        return [n.network(settings.weights_of(n.NAME)) for n in (parcellation, nuclei, slices)]

    def parcellate(images_: Iterable[Any], to_template: np.ndarray) -> Any:
        first, second, _ = each()
        return nuclei.predict(images_, to_template, first=first, second=second)

    def outline(images_: Sequence[Any], prior: np.ndarray) -> Any:
        if second_process:  # it has all that preparation wants of it, and gets ready for the methods
            second_process.submit(_ready_for_methods, settings)
        return slices.outline(images_, prior, model=each()[2])

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


def _sources(scan: Scan, settings: Settings, *names: str) -> list[str]:
    return [paths.bids_uri(scan.files[n], settings.bids_dir, "raw") for n in names]


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
    files, target = anatomy(scan, settings), transform(scan, settings)
    reference = _sources(scan, settings, scan.reference)[0]
    source = {"Sources": [reference], "SpatialReference": reference, write.KEY: key}
    anatomy_source = {**source, "Sources": _sources(scan, settings, *result.looked_at)}

    def keep(name: str, path: Path) -> None:
        used = _sources(scan, settings, *dict.fromkeys((name, scan.reference)))
        about = "" if name == scan.reference else f", rigidly resampled onto the {scan.reference}"
        done = "Bias-corrected (N4, then the smooth field under which each tissue has one intensity)"
        meta = {**source, "Sources": used, "SkullStripped": False, "Description": done + about}
        data = np.asarray(result.images[name].dataobj, dtype=np.float32)
        write.image(path, to_native(data, native), native, meta=meta)

    def keep_mask(path: Path, mask: np.ndarray, about: str) -> None:
        meta = {**anatomy_source, "Type": "Brain", "Description": about}
        write.image(path, to_native(mask, native), native, meta=meta)

    jobs = [partial(keep, *item) for item in images(scan, settings).items()]
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


def model(
    scan: Scan, settings: Settings, name: str, prepared_key: str, note: dict, read: Callable[[], Prepared]
) -> str:
    """Stage 3: prediction and instances of one method; `read` gives what stage 2 wrote."""
    spec = load(name)
    limits = (settings.min_volume_mm3, settings.max_volume_mm3)
    parameters = {**spec.parameters, **settings.parameters.get(name, {})}
    content = {"stage": "model", "name": name, "prepared": prepared_key, "parameters": parameters}
    if spec.weights:
        content["weights"] = weights.identity(spec.weights, settings.weights_of(name))
    key = write.digest({**content, "limits": limits, "regions": settings.regions})
    files = model_files(scan, settings, name)
    if settings.resume and write.is_current(files.values(), key):
        note["reused"] = True
        logger.info("%s: %s found, not computed again", scan.label, name)
        return key
    logger.info("%s: computing %s", scan.label, name)
    prepared = read()
    if spec.weights:
        parameters["weights"] = settings.weights_of(name)
    prediction = explain.added(spec, prepared, spec.predict(prepared, parameters), parameters)
    used = paths.bids_uri(images(scan, settings)[scan.reference], settings.output_dir, "")
    meta: dict[str, Any] = {
        "Sources": [used],
        "Parameters": dict(prediction.parameters),
        "Model": name,
        "DOI": spec.doi,
    }
    meta |= {"Notes": list(prediction.notes), "Calibrated": spec.calibrated, write.KEY: key}
    if spec.weights:
        meta["WeightsSHA256"] = content["weights"]
    _write_maps(files, prediction, prepared, spec, meta)
    if "instances" in files:
        _write_instances(files, prediction, prepared, settings, meta)
    if "findings" in files:
        wanted = [f for f in prediction.findings if not settings.regions or f.region in settings.regions]
        write.table(files["findings"], ratings.from_findings(wanted, name), meta={**columns.SUMMARY, **meta})
    return key


def model_apart(
    scan: Scan, settings: Settings, name: str, prepared_key: str
) -> tuple[str, tuple[str, float, float, bool]]:
    """Stage 3 in a process of its own: the key, and the row of `logs.Clock`."""
    clock = logs.Clock(scan.label)
    with clock.stage(f"model {name}") as note:
        key = model(scan, settings, name, prepared_key, note, partial(kept, scan, settings, prepared_key))
    return key, clock.rows()[0]


_LAST: dict[tuple[str, str], Prepared] = {}
"""The last session that `kept` has read, by its label and key."""


def kept(scan: Scan, settings: Settings, prepared_key: str) -> Prepared:
    """`read_prepared`, once for all methods and the report of a session; the files are large."""
    key = scan.label, prepared_key
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = read_prepared(scan, settings)
    return _LAST[key]


def _write_maps(files: Mapping[str, Path], made: Prediction, prepared: Prepared, spec: ModelSpec, meta: dict) -> None:
    """Probability and saliency map of a method, where it has them."""
    text = "probability of EPVS" if spec.calibrated else "response of the method, 0.5 at its threshold; no probability"
    for kind, data, about in (
        ("probability", made.probability, text),
        ("saliency", made.saliency, spec.saliency),
    ):
        if kind in files:
            values = np.zeros(prepared.regions.shape, np.float32) if data is None else data
            write.image(
                files[kind], to_native(values, prepared.native), prepared.native, meta={**meta, "Description": about}
            )


def _write_instances(
    files: Mapping[str, Path], made: Prediction, prepared: Prepared, settings: Settings, meta: dict
) -> None:
    """Mask and instances of a method inside the regions asked for."""
    wanted = [i for i, r in REGIONS.items() if not settings.regions or r.name in settings.regions]
    inside = np.isin(prepared.regions, wanted)
    if made.instances is not None:
        own = np.where(inside, made.instances, 0)
        there = np.bincount(own.ravel()) > 0
        there[0] = False
        labels = measure_lesions.renumbered(own, there)
    else:
        mask = inside & (made.mask if made.mask is not None else False)
        limits = {"minimum": settings.min_volume_mm3, "maximum": settings.max_volume_mm3}
        labels = measure_lesions.instances(mask, prepared.voxel_mm3, **limits)
    native = prepared.native
    about = {"Type": "Lesion", "Description": f"EPVS found by {meta['Model']}"}
    write.image(files["mask"], to_native(labels > 0, native), native, meta={**meta, **about})
    small = labels.astype(np.uint16 if labels.max() < 65536 else np.int32)
    write.image(
        files["instances"],
        to_native(small, native),
        native,
        meta={**meta, "Manual": False, "Description": "one index per EPVS"},
    )


def tables(scan: Scan, settings: Settings) -> dict[str, Path]:
    """Paths of the two tables of a session."""
    out = settings.output_dir
    return {
        kind: paths.derivative(out, scan, desc=kind, suffix="epvs", extension=".tsv") for kind in ("lesions", "summary")
    }


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
    files = tables(scan, settings)
    if settings.resume and write.is_current(files.values(), key):
        note["reused"] = True
        return key
    prepared = read()
    rows, summaries = [], []
    for name in model_keys:
        lesion, summary = _measure(scan, settings, name, prepared)
        rows.append(lesion)
        summaries.append(summary)
    common = {"Sources": [paths.bids_uri(anatomy(scan, settings)["regions"], settings.output_dir, "")], write.KEY: key}
    about = write.read_json(paths.sidecar(anatomy(scan, settings)["regions"]))
    extra = {"BrainVolume_mm3": about["BrainVolume_mm3"], "QualityNotes": about["QualityNotes"]}
    write.table(files["lesions"], pd.concat(rows), meta={**columns.LESIONS, **common})
    write.table(files["summary"], pd.concat(summaries), meta={**columns.SUMMARY, **extra, **common})
    return key


def _measure(scan: Scan, settings: Settings, name: str, prepared: Prepared) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lesions (none for methods that mark none) and summary of one model from its files on disk."""
    files, native = model_files(scan, settings, name), prepared.native
    labels = np.zeros(prepared.regions.shape, np.int32)
    lesion = pd.DataFrame(columns=measure_lesions.LESION_COLUMNS)
    if "instances" in files:
        labels = to_canonical(nib.load(files["instances"]), native).astype(np.int32)
        response = files.get("probability", files.get("saliency"))
        turned = nib.as_closest_canonical(native)
        lesion = measure_lesions.describe(
            labels,
            prepared.regions,
            prepared.spacing,
            to_world=turned.affine,
            to_native_voxel=np.linalg.inv(native.affine) @ turned.affine,
            probability=to_canonical(nib.load(response), native) if response else None,
            model=name,
        )
    chosen = [r for r in load(name).regions if not settings.regions or r in settings.regions]
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
    )
    if "findings" in files:
        summary = ratings.merged(summary, write.read_table(files["findings"]), marks="instances" in files)
    if not find_segmentation(scan, settings.derivatives):  # errors were measured with regions of the app
        errors = spread.known(name, about.get("WeightsSHA256", ""), thickness(prepared.spacing))
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
        route = to_space(space, transform(scan, settings), work_dir=work_dir(scan, settings) / space)
        for name in due:
            mask = model_files(scan, settings, name)["mask"]
            image = nib.load(mask)
            found = nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine)
            warped = ants.apply(found, grid, route, interpolation="nearestNeighbor")  # linear would lose thin EPVS
            meta = {"Sources": [paths.bids_uri(mask, settings.output_dir, "")], "Type": "Lesion"}
            meta[write.KEY] = model_keys[name]
            write.image(targets[name], np.asarray(warped.dataobj) > 0.5, grid, meta=meta)


def view(scan: Scan, settings: Settings, error: str) -> View:
    """What is on disk of one session, for the report; after a failure, what there is."""
    sources = {name: str(path.relative_to(settings.bids_dir)) for name, path in scan.files.items()}
    ready = [*images(scan, settings).values(), *anatomy(scan, settings).values()]
    if error or not all(path.is_file() for path in ready):
        return View(scan, error or "no results: run the participant level", sources=sources)
    about = write.read_json(paths.sidecar(anatomy(scan, settings)["regions"]))
    prepared = kept(scan, settings, about.get(write.KEY, ""))
    masks, maps, details = {}, {}, {}
    for name in settings.models or tuple(MODELS):
        own = model_files(scan, settings, name)
        if "instances" in own and own["instances"].is_file():
            masks[name] = to_canonical(nib.load(own["instances"]), prepared.native).astype(np.int32)
        if "saliency" in own and own["saliency"].is_file():
            maps[name] = to_canonical(nib.load(own["saliency"]), prepared.native).astype(np.float32)
        if "findings" in own:
            details[name] = write.read_json(paths.sidecar(own["findings"])).get("Parameters", {})
    files = tables(scan, settings)
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
        "tables": [write.read_json(paths.sidecar(tables(s, settings)["summary"])).get(write.KEY) for s in scans],
    }
    key = write.digest(known)
    folder = paths.figures(settings.output_dir, scans[0].subject)
    if settings.resume and not settings.reports_only and target.is_file() and folder.is_dir():
        with target.open(encoding="utf-8") as stream:
            if key in stream.read(2000):
                logger.info("sub-%s: report found, not made again", scans[0].subject)
                return False
    views = [view(s, settings, errors.get(s.label, "")) for s in scans]
    _LAST.clear()  # the files may change before the next report
    html, pictures = subject.render(views, methods=text, versions=logs.versions(), key=key, helper=second_process)
    for name, content in pictures.items():
        write.binary(folder / name, content)
    folder.mkdir(parents=True, exist_ok=True)
    write.text(target, html)
    return True
