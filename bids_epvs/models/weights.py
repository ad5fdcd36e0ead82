"""Parameters of networks on disk: float16 arrays in one .npz, in the order of the Keras model, with a checksum."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_epvs.errors import DataError, UsageError

if TYPE_CHECKING:
    import keras

    from bids_epvs.models.spec import Weights


_WORDS = ("architecture", "calibration")
"""Entries of a file that are JSON."""


def save(
    model: keras.Model,
    path: Path,
    architecture: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> str:
    """Write the parameters of a model, the arguments it was built with and what makes its output probabilities.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    arrays: dict[str, Any] = {f"{k:03d}": np.asarray(v, np.float16) for k, v in enumerate(model.get_weights())}
    for name, content in zip(_WORDS, (architecture, calibration), strict=True):
        if content:
            arrays[name] = np.array(json.dumps(dict(content)))
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
    found = _read(path)[1].get("architecture", {})
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def calibration(path: Path) -> dict[str, Any]:
    """What was measured on held-out data after training; empty where there is nothing. Raises like `architecture`."""
    return _read(path)[1].get("calibration", {})


def _read(path: Path) -> tuple[list[np.ndarray], dict[str, dict[str, Any]]]:
    """Parameters (float32) and words of a file."""
    try:
        with np.load(path) as stored:
            arrays = [np.asarray(stored[name], np.float32) for name in sorted(stored.files) if name not in _WORDS]
            return arrays, {name: json.loads(str(stored[name])) for name in _WORDS if name in stored.files}
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
        There are none, the file is missing, or its checksum is not the recorded one.
    """
    if not weights.sha256:
        raise DataError("there are no packaged weights.", where=weights.file, remedy="Train with bids_epvs-train.")
    with as_file(files("bids_epvs.data.weights").joinpath(weights.file)) as path:
        if not path.is_file():
            raise DataError("packaged weights are missing.", where=path, remedy="Install bids_epvs again.")
        if digest(path) != weights.sha256:
            raise DataError("packaged weights are damaged (checksum differs).", where=path, remedy="Install again.")
        return path


def restored(
    build: Callable[..., keras.Model], packaged: Weights, file: Path | None, *, what: str, instead: str
) -> tuple[keras.Model, Path]:
    """A network with its packaged parameters, or those of a file (of any width); TensorFlow unless told otherwise.

    Parameters
    ----------
    build : callable
        Arguments of the architecture to a model.
    packaged : Weights
    file : Path, optional
    what, instead : str
        The network, and what the user can do without TensorFlow, in words.

    Returns
    -------
    model : keras.Model
    path : Path
        Where its parameters came from.

    Raises
    ------
    UsageError
        Keras or its backend is not installed.
    DataError
        The parameters are missing, damaged, or of another kind of network.
    """
    path = file or shipped(packaged)
    try:
        backend()
        model = build(**architecture(path))
    except ImportError as error:
        raise UsageError(
            f"{what} cannot run ({error}).",
            remedy=f"Install TensorFlow (pip install 'bids_epvs[cpu]'), or {instead}.",
        ) from error
    load(model, path)
    return model, path


def configure() -> None:
    """Say to Keras and TensorFlow by the environment what the user does not; before they are imported.

    oneDNN halves the time of 3-D convolutions; without AVX-512 TensorFlow leaves it out unless it is told. Of a GPU
    each process takes the memory it needs; unless told so, the first one would take all.
    """
    defaults = {
        **{"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"},
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def backend() -> None:
    """Import Keras, with `configure`: it takes seconds."""
    configure()
    importlib.import_module("keras")


def network_of(
    name: str, build: Callable[..., keras.Model], packaged: Weights
) -> Callable[..., tuple[keras.Model, Mapping[str, Any]]]:
    """A function from a file (or nothing: the packaged one) to a method's network and its calibration; see `restored`.

    What it has read once it keeps. ``slices`` (`planes.kind`) asks for the packaged parameters for such slices.
    """

    @cache
    def read(file: Path | None, scan: str) -> tuple[keras.Model, Mapping[str, Any]]:
        own = packaged.of(scan)
        model, path = restored(build, own, file, what=f"the network {name}", instead="choose --models frangi")
        return model, calibration(path)

    def network(file: Path | None = None, *, slices: str = "") -> tuple[keras.Model, Mapping[str, Any]]:
        return read(file, slices if file is None and slices in packaged.own else "")

    return network


def identities(weights: Weights, file: Path | None = None) -> dict[str, str]:
    """SHA-256 of the parameters a network uses, by kind of scan (`Weights.own`); ``""``: all others, or `file`."""
    if file:
        return {"": digest(file)}
    return {"": weights.sha256, **{scan: own.sha256 for scan, own in weights.own.items()}}
