"""A process that ends without taking the interpreter apart, and pools that end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


SHARING = """
import os, sys, time
from pathlib import Path
from bids_epvs import process

def work(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(120)

if __name__ == "__main__":
    process.heed_termination()
    try:
        with process.pool(2) as pool:
            for future in [pool.submit(work, Path(sys.argv[1])) for _ in range(6)]:
                future.result()
    except KeyboardInterrupt:
        sys.exit(130)
"""


def until(condition, seconds=60):
    """Wait for something, and say whether it came."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


def running(pid):
    """Whether there is such a process that has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    told = Path(f"/proc/{pid}/stat")  # one that has ended is there until its parent asks
    return not told.exists() or told.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_what_runs_in_a_pool_ends_with_the_program(tmp_path, sent, status):
    (tmp_path / "share.py").write_text(SHARING)
    began = tmp_path / "began"
    began.mkdir()
    program = subprocess.Popen([sys.executable, str(tmp_path / "share.py"), str(began)], preexec_fn=_heeds_interrupts)
    try:
        assert until(lambda: len(list(began.iterdir())) == 2)
        workers = [int(p.name) for p in began.iterdir()]
        assert all(map(running, workers))
        program.send_signal(sent)
        assert program.wait(30) == status
        assert until(lambda: not any(map(running, workers)), 30)
        assert len(list(began.iterdir())) == 2  # nothing else was begun
    finally:
        program.kill()


def _heeds_interrupts():
    """Children of a shell's background jobs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_program_takes_sigterm_for_an_interruption():
    script = (
        "import time\n"
        "from bids_epvs import cli\n"
        "cli.settings_from = lambda arguments: None\n"
        "cli.run = lambda settings: (print('begun', flush=True), time.sleep(60))\n"
        "cli.program()\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "begun\n"
    program.terminate()
    _, told = program.communicate(timeout=30)
    assert (program.returncode, told) == (130, "bids_epvs: interrupted; run again to resume\n")


def test_what_waits_is_dropped_when_nobody_asks_for_more(tmp_path):
    futures = []

    def results():
        with process.pool(1) as pool:
            futures.extend(pool.submit(time.sleep, 1) for _ in range(20))
            for future in futures:
                yield future.result()

    asked = results()
    next(asked)
    asked.close()
    assert all(f.done() for f in futures)
    assert futures[-1].cancelled()


def test_an_error_lets_what_runs_finish_and_drops_what_waits(tmp_path):
    with pytest.raises(ValueError, match="enough"), process.pool(1) as pool:
        first = pool.submit(time.sleep, 2)
        rest = [pool.submit((tmp_path / str(n)).touch) for n in range(20)]
        assert until(first.running)
        raise ValueError("enough")
    assert first.done() and not first.cancelled()
    assert rest[-1].cancelled()
    assert len(list(tmp_path.iterdir())) < 20
