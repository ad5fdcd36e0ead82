"""What makes a process of the program quick: memory that is kept for the next arrays, and an end without ceremony."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of ``mallopt(3)``."""


def keep_memory() -> None:
    """Keep the memory of large arrays for the next ones instead of handing it back each time (GNU C library).

    Pages that were handed back are cleared by the kernel when they are asked for again: a tenth of a session's time.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    tell(_M_MMAP_MAX, 0)
    tell(_M_TRIM_THRESHOLD, 2**31 - 1)


def end_quickly() -> Callable[[int], None]:
    """From now on this process ends when all its exit functions have run, without taking the interpreter apart.

    That takes two seconds once TensorFlow is loaded. To be called before other modules register exit functions.

    Returns
    -------
    callable
        Says with which status the process ends; 0 until then.
    """
    status = [0]

    def end() -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status[0])

    def say(code: int) -> None:
        status[0] = code

    atexit.register(end)
    return say
