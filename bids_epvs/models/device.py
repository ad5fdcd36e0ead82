"""Where networks run: on the GPU that was asked for, on any that is there, or on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from bids_epvs.errors import UsageError
from bids_epvs.models import weights

logger = logging.getLogger(__name__)

T = TypeVar("T")
_FULL = ("ResourceExhaustedError", "OutOfMemoryError")
"""Errors of TensorFlow and torch where memory is not enough."""
_SAID_OTHERWISE = ("out of memory", "out_of_memory", "dst tensor is not initialized")
"""What other errors say then: of CUDA, and of TensorFlow where nothing can be copied to the GPU."""


def gpus() -> int:
    """How many GPUs the backend of Keras can use."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return len(tf.config.list_physical_devices("GPU"))
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.device_count()
    return 0


@cache
def check(wanted: str) -> None:
    """Say once in a process where networks run.

    Parameters
    ----------
    wanted : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; which GPUs are visible was settled before the backend was imported
        (`logs.configure_worker`).

    Raises
    ------
    UsageError
        A GPU was asked for, and there is none.
    """
    if wanted == "cpu":
        return
    try:
        weights.backend()
        found = gpus()
    except ImportError:  # who needs it says what is missing
        return
    if found:
        logger.info("networks run on the GPU")
    elif wanted == "auto":
        logger.log(_level(), "no GPU that could be used: networks run on the CPU")
    else:
        raise UsageError(
            f"{wanted} was asked for, and no such GPU can be used.",
            where="--device",
            remedy="Install TensorFlow for it (pip install 'bids_epvs[gpu]'), or choose auto or cpu.",
        )


def _level() -> int:
    """A warning where the backend was built for GPUs, as somebody may expect one."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return logging.INFO
    import tensorflow as tf

    return logging.WARNING if tf.test.is_built_with_cuda() else logging.INFO


def with_room(what: str, call: Callable[[], T]) -> T:
    """What a function returns; computed on the CPU where the GPU has not enough memory for it.

    Parameters
    ----------
    what : str
        Its name, for the log.
    call : callable
        May be called twice.
    """
    try:
        return call()
    except Exception as error:
        if not _full(error) or not gpus():
            raise
        logger.warning("%s: the GPU has not enough memory (%s); computed on the CPU", what, type(error).__name__)
    import keras

    with keras.device("cpu:0"):
        return call()


def _full(error: Exception) -> bool:
    """Whether an error says that memory is not enough."""
    text = str(error).lower()
    return type(error).__name__ in _FULL or any(words in text for words in _SAID_OTHERWISE)
