"""Parameters of networks on disk: float16 arrays in one .npz, in the order of the Keras model, with a checksum."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_epvs.errors import DataError

if TYPE_CHECKING:
    import keras

    from bids_epvs.models.spec import Weights


_ARCHITECTURE = "architecture"


def save(model: keras.Model, path: Path, architecture: Mapping[str, Any] | None = None) -> str:
    """Write the parameters of a model, and the arguments it was built with; returns the SHA-256 of the file."""
    arrays: dict[str, Any] = {f"{k:03d}": np.asarray(v, np.float16) for k, v in enumerate(model.get_weights())}
    if architecture:
        arrays[_ARCHITECTURE] = np.array(json.dumps(dict(architecture)))
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
    return digest(path)


def architecture(path: Path) -> dict[str, Any]:
    """Arguments that the network of a file was built with (lists as tuples); empty where the file does not say.

    Raises
    ------
    DataError
        The file is missing or unreadable.
    """
    _, found = _read(path)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def _read(path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Parameters (float32) and architecture of a file."""
    try:
        with np.load(path) as stored:
            names = sorted(name for name in stored.files if name != _ARCHITECTURE)
            found = json.loads(str(stored[_ARCHITECTURE])) if _ARCHITECTURE in stored.files else {}
            return [np.asarray(stored[name], np.float32) for name in names], found
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"not readable as weights ({error}).", where=path, remedy="Train with bids_epvs-train."
        ) from error


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(model: keras.Model, path: Path) -> None:
    """Read parameters into a model of the same architecture.

    Raises
    ------
    DataError
        The file is missing, unreadable, or belongs to another architecture.
    """
    arrays, _ = _read(path)
    expected = [tuple(v.shape) for v in model.get_weights()]
    found = [a.shape for a in arrays]
    if expected != found:
        raise DataError(
            f"the weights belong to another network: expected {len(expected)} arrays, found {len(found)}, "
            f"first difference {_difference(expected, found)}.",
            where=path,
        )
    model.set_weights(arrays)


def _difference(expected: list[tuple[int, ...]], found: list[tuple[int, ...]]) -> str:
    """The first shapes that are not the same."""
    for a, b in zip(expected, found, strict=False):
        if a != b:
            return f"{a} against {b}"
    return "in number"


def shipped(weights: Weights) -> Path:
    """Path of the packaged parameters of a method.

    Raises
    ------
    DataError
        The file is missing, or its checksum is not the recorded one.
    """
    with as_file(files("bids_epvs.data.weights").joinpath(weights.file)) as path:
        if not path.is_file():
            raise DataError("packaged weights are missing.", where=path, remedy="Install bids_epvs again.")
        if digest(path) != weights.sha256:
            raise DataError("packaged weights are damaged (checksum differs).", where=path, remedy="Install again.")
        return path
