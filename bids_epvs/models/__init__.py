"""The methods: one file each, and one line here. Nothing is imported until a method is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bids_epvs.errors import UsageError

if TYPE_CHECKING:
    from bids_epvs.models.spec import ModelSpec

MODELS: dict[str, str] = {
    "unet": "bids_epvs.models.unet:SPEC",
    "gpunet": "bids_epvs.models.gpunet:SPEC",
    "cnn": "bids_epvs.models.count:SPEC",
    "rating2d": "bids_epvs.models.rating2d:SPEC",
    "resnet152": "bids_epvs.models.resnet152:SPEC",
    "frangi": "bids_epvs.models.frangi:SPEC",
}
"""Name on the command line -> where its ModelSpec is."""


def default() -> tuple[str, ...]:
    """The methods that run unless others are asked for."""
    return tuple(MODELS)


def load(name: str) -> ModelSpec:
    """The ModelSpec of a method.

    Raises
    ------
    UsageError
        There is no such method.
    """
    if name not in MODELS:
        raise UsageError(f"no model {name!r}.", where="--models", remedy=f"Choose from: {', '.join(MODELS)}.")
    module, _, attribute = MODELS[name].partition(":")
    return getattr(import_module(module), attribute)
