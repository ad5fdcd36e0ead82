"""What runs in other processes, or dies there; a module of its own, so that a spawned process can import it."""

import os
import signal
import time
from pathlib import Path


def run_subject(scans, settings, run, watch=None):
    """Leave without a word, as the kernel does with a process that takes too much memory."""
    os._exit(9)


def at_work(number, seconds):
    """Which task it was, where it ran, when it began and ended."""
    start = time.time()
    time.sleep(seconds)
    return number, os.getpid(), start, time.time()


def unless(number):
    """The number; 2 kills the process."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def touch(path, seconds):
    """Write a file, then wait so long."""
    Path(path).touch()
    time.sleep(seconds)
    return seconds


def told_helper(queue, settings, run):
    """Tell which helper `preparation` would use here."""
    from bids_epvs.stages import preparation

    with preparation.helper(settings, run) as helper:
        queue.put(helper)
