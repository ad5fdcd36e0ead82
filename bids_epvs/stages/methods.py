"""Stage 3 of a session: what each method predicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_epvs import explain, logs
from bids_epvs.derivatives import columns, paths, write
from bids_epvs.measure import lesions as measure_lesions
from bids_epvs.measure import ratings
from bids_epvs.models import device, load, weights
from bids_epvs.models.spec import ModelSpec, recorded
from bids_epvs.prepare import planes
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.prepare.resample import slice_axis, to_native
from bids_epvs.records import Prediction, Prepared, Scan
from bids_epvs.settings import Settings
from bids_epvs.stages import disk

logger = logging.getLogger(__name__)


def compute(
    scan: Scan, settings: Settings, name: str, prepared_key: str, note: dict, read: Callable[[], Prepared]
) -> str:
    """Stage 3: prediction and instances of one method; `read` gives what stage 2 wrote."""
    spec = load(name)
    limits = (settings.min_volume_mm3, settings.max_volume_mm3)
    parameters = {**spec.parameters, **settings.parameters.get(name, {})}
    content = {"stage": "model", "name": name, "prepared": prepared_key, "parameters": parameters}
    if spec.weights:
        identities = weights.identities(spec.weights, settings.weights_of(name))
        content["weights"] = identities
    key = write.digest({**content, "limits": limits, "regions": settings.regions})
    files = disk.model_files(scan, settings, name)
    if settings.resume and write.is_current(files.values(), key):
        note["reused"] = True
        logger.info("%s: %s found, not computed again", scan.label, name)
        return key
    logger.info("%s: computing %s", scan.label, name)
    prepared = read()
    if spec.weights:
        parameters["weights"] = settings.weights_of(name)
    prediction = _predicted(spec, prepared, parameters, settings.device)
    used = paths.bids_uri(disk.images(scan, settings)[scan.reference], settings.output_dir, "")
    meta: dict[str, Any] = {
        "Sources": [used],
        "Parameters": dict(prediction.parameters),
        "Model": name,
        "DOI": spec.doi,
    }
    meta |= {"Notes": list(prediction.notes), "Calibrated": spec.calibrated, write.KEY: key}
    if spec.weights:
        meta["WeightsSHA256"] = identities.get(planes.kind_of(prepared), identities[""])
    _write_maps(files, prediction, prepared, spec, meta)
    if "instances" in files:
        _write_instances(files, prediction, prepared, settings, meta)
    if "findings" in files:
        wanted = [f for f in prediction.findings if not settings.regions or f.region in settings.regions]
        write.table(files["findings"], ratings.from_findings(wanted, name), meta={**columns.SUMMARY, **meta})
    return key


def compute_apart(
    scan: Scan, settings: Settings, name: str, prepared_key: str
) -> tuple[str, tuple[str, float, float, bool]]:
    """Stage 3 in a process of its own: the key, and the row of `logs.Clock`."""
    clock = logs.Clock(scan.label)
    with clock.stage(f"model {name}") as note:
        key = compute(scan, settings, name, prepared_key, note, partial(disk.kept, scan, settings, prepared_key))
    return key, clock.rows()[0]


def _predicted(spec: ModelSpec, prepared: Prepared, parameters: Mapping[str, Any], wanted: str = "auto") -> Prediction:
    """What a method says of a session, with its map or detections; `wanted` is the device for its network.

    It sees slices as they were acquired; one that needs axial slices says nothing of others.
    """
    axis = slice_axis(prepared.spacing)
    if spec.axial and axis != planes.AXIAL:
        note = f"slices are {planes.NAMES[axis]}, and this method rates axial ones"
        return Prediction(spec.name, parameters=recorded(parameters), notes=(note,))

    def run(seen: Prepared) -> Prediction:
        return explain.added(spec, seen, spec.predict(seen, parameters), parameters)

    if not spec.network:
        return planes.by_slices(prepared, run)
    device.check(wanted)
    return device.with_room(spec.name, lambda: planes.by_slices(prepared, run))


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
    """Mask and instances of a method in the regions asked for; a mask also where they run on in no region."""
    wanted = [i for i, r in REGIONS.items() if not settings.regions or r.name in settings.regions]
    inside = np.isin(prepared.regions, wanted)
    if made.instances is not None:
        labels = measure_lesions.present(np.where(inside, made.instances, 0), inside)
    else:
        mask = (inside | (prepared.regions == 0)) & (made.mask if made.mask is not None else False)
        limits = {"minimum": settings.min_volume_mm3, "maximum": settings.max_volume_mm3}
        labels = measure_lesions.present(measure_lesions.instances(mask, prepared.voxel_mm3, **limits), inside)
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
