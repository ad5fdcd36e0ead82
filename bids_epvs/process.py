"""Processes of the program: memory that is kept for the next arrays, an end without ceremony, and pools of them."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context

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


def heed_termination() -> None:
    """From now on SIGTERM, with which clusters and containers end a program, is what Ctrl-C is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """New processes (spawned) to share work, which end with this one, whatever ends it.

    When the block is left by an exception, what has not begun is dropped; by an interruption, what runs is stopped too.
    """
    others = set(active_children())
    executor = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    )
    try:
        yield executor
    except (KeyboardInterrupt, SystemExit):
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(active_children()) - others:
            child.terminate()
        raise
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


def end_with(parent: int) -> None:
    """Make this process end a second after `parent`, which began it; Ctrl-C is for the parent to answer.

    A process of a pool would else wait for work for ever, with all its memory, once the program is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
