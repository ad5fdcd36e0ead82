"""A subject whose process is killed; a module of its own, so that a spawned process can import it."""

import os


def run_subject(scans, settings, run, watch=None):
    """Leave without a word, as the kernel does with a process that takes too much memory."""
    os._exit(9)
