"""A process that ends without taking the interpreter apart."""

import os
import subprocess
import sys

import pytest

from bids_epvs import process
from bids_epvs.models import weights


@pytest.mark.parametrize("status", [0, 3])
def test_exit_functions_run_and_the_status_is_kept(status):
    script = (
        "import atexit, sys\n"
        "from bids_epvs import process\n"
        "say = process.end_quickly()\n"
        "atexit.register(print, 'last')\n"
        "class Never:\n"
        "    def __del__(self): print('taken apart', flush=True)\n"
        "kept = Never()\n"
        "print('first')\n"
        f"say({status})\n"
        f"sys.exit({status})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n"), done.stderr) == (status, ["first", "last", ""], "")


def test_the_program_ends_with_the_code_of_its_error(tmp_path):
    command = [sys.executable, "-m", "bids_epvs", str(tmp_path / "none"), str(tmp_path / "out"), "participant"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 16
    assert "expected a BIDS dataset" in done.stderr


def test_memory_is_asked_to_stay(monkeypatch):
    told = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda *given: told.append(given)

    monkeypatch.setattr(process.ctypes, "CDLL", Library)
    process.keep_memory()
    assert told == [(-4, 0), (-1, 2**31 - 1)]
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())  # a C library without it
    process.keep_memory()
    assert len(told) == 2


def test_what_the_user_says_to_keras_counts(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "untouched")  # so that it is restored afterwards
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    weights.configure()
    assert (os.environ["KERAS_BACKEND"], os.environ["TF_ENABLE_ONEDNN_OPTS"]) == ("torch", "1")
