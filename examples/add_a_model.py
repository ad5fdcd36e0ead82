"""Add a method: one ModelSpec and one line in MODELS, then the app runs it like the others."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bids_epvs import pipeline
from bids_epvs.models import MODELS
from bids_epvs.models.spec import ModelSpec
from bids_epvs.prepare.intensity import levels
from bids_epvs.prepare.regions import NAMES, WHITE_MATTER
from bids_epvs.records import Prediction, Prepared
from bids_epvs.settings import Settings


def predict(prepared: Prepared, parameters: Mapping[str, Any]) -> Prediction:
    """Every voxel of the regions that is brighter than a share of the way from white matter to fluid."""
    image = prepared.images["T2w"]
    found = levels(image, np.isin(prepared.regions, WHITE_MATTER) & ~prepared.csf, prepared.csf)
    response = np.clip((image - found.white) / (found.fluid - found.white), 0, 1).astype(np.float32)
    mask = (response > parameters["share"]) & (prepared.regions > 0) & ~prepared.csf
    return Prediction("threshold", response, mask, parameters)


SPEC = ModelSpec(
    name="threshold",
    title="Bright voxels (an example, not a method to use)",
    doi="10.0000/example",
    citation="No paper.",
    task="segmentation",
    suffixes=("T2w",),
    regions=NAMES,
    predict=predict,
    parameters={"share": 0.4},
    deviations=("It follows no paper.",),
)

if __name__ == "__main__":
    MODELS["threshold"] = f"{Path(__file__).stem}:SPEC"
    data, out = (sys.argv[1:3]) if len(sys.argv) > 2 else ("demo/bids", "demo/out-threshold")
    settings = Settings(bids_dir=Path(data), output_dir=Path(out), models=("frangi", "threshold"))
    for outcome in pipeline.participant(settings):
        print(outcome.label, outcome.error or "done")
