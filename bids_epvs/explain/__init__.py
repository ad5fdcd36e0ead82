"""Where a network looked. `added` runs the module that a method names in its `ModelSpec.explain`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bids_epvs.models.spec import ModelSpec
    from bids_epvs.records import Prediction, Prepared


def added(spec: ModelSpec, prepared: Prepared, made: Prediction, parameters: Mapping[str, Any]) -> Prediction:
    """The prediction with its map or detections; unchanged for methods that explain nothing."""
    if not spec.explain:
        return made
    module = import_module(f"bids_epvs.explain.{spec.explain}")
    return module.explain(prepared, made, parameters)
