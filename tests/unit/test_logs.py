import io
import json
import logging
import os

import pytest

from bids_epvs import logs
from bids_epvs.records import Outcome
from bids_epvs.settings import Settings


def test_a_clock_times_stages_even_when_they_fail():
    clock = logs.Clock("sub-01")
    with clock.stage("one") as note:
        note["reused"] = True
    with pytest.raises(ZeroDivisionError), clock.stage("two"):
        1 / 0  # noqa: B018
    assert [(r[0], r[3]) for r in clock.rows()] == [("one", True), ("two", False)]
    assert all(r[1] >= 0 and r[2] > 1 for r in clock.rows())


def test_the_manifest_records_versions_hashes_and_errors(tmp_path):
    run = logs.start(Settings(output_dir=tmp_path))
    crash = logs.crash(run, "sub-02", "Traceback")
    assert (tmp_path / crash).read_text() == "Traceback"
    outcomes = [
        Outcome("sub-01", stages=(("inputs", 1.0, 2.0, False),), hashes={"T2w": "ab"}),
        Outcome("sub-02", "bad", crash),
    ]
    content = json.loads(logs.finish(run, outcomes, ["sub-03"]).read_text())
    assert content["versions"]["bids_epvs"]
    assert content["sessions"][0]["inputs_sha256"] == {"T2w": "ab"}
    assert content["sessions"][1]["error"] == "bad"
    assert content["skipped_without_t2w"] == ["sub-03"]
    assert (run.folder / "settings.toml").is_file()


def test_plain_lines_without_a_terminal(caplog):
    with caplog.at_level("INFO", "bids_epvs"), logs.progress(Settings()) as watch:
        watch.begin(2)
        watch.stage("sub-01", "inputs")
        watch.done(Outcome("sub-01"))
        watch.done(Outcome("sub-02", "bad"))
    assert [r.getMessage() for r in caplog.records] == ["sub-01 done", "sub-02 failed: bad"]


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with logs.progress(Settings()) as watch:
        watch.begin(1)
        watch.stage("sub-01", "preparation")
        watch.done(Outcome("sub-01"))
    assert "sub-01 done" in terminal.getvalue() and "1/1" in terminal.getvalue()


@pytest.fixture
def loggers():
    """Loggers as they were, afterwards."""
    root, own = logging.getLogger(), logging.getLogger("bids_epvs")
    before = root.handlers[:], root.level, own.handlers[:], own.level
    yield
    logs.close()
    root.handlers[:], root.level, own.handlers[:], own.level = before


@pytest.mark.parametrize(("device", "visible"), [("cpu", "-1"), ("cuda", "0"), ("cuda:3", "3"), ("auto", None)])
def test_a_worker_sees_the_device_and_threads_asked_for(loggers, tmp_path, monkeypatch, device, visible):
    for name in ("CUDA_VISIBLE_DEVICES", *logs.THREADS):
        monkeypatch.setenv(name, "untouched")  # so that they are restored afterwards
        monkeypatch.delenv(name)
    settings = Settings(output_dir=tmp_path, device=device, omp_nthreads=3)
    logs.configure_worker(settings, logs.start(settings))
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    assert all(os.environ[name] == "3" for name in logs.THREADS)


@pytest.mark.parametrize(
    ("verbose", "terminal", "shown"),
    [
        (-1, False, "failed"),
        (-1, True, "failed"),
        (0, True, "warned failed"),
        (0, False, "stage warned failed"),
        (1, True, "stage warned failed"),
        (2, False, "detail stage warned failed"),
        (3, True, "detail stage warned failed"),
    ],
)
def test_what_is_said_on_the_screen_and_kept_in_the_file(loggers, tmp_path, monkeypatch, verbose, terminal, shown):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", screen)
    for name in logs.THREADS:
        monkeypatch.setenv(name, "1")
    settings = Settings(output_dir=tmp_path, verbose=verbose)
    run = logs.start(settings)
    logs.configure(verbose)
    logs.configure_worker(settings, run)
    logger = logging.getLogger("bids_epvs.stages")
    for say, text in ((logger.debug, "detail"), (logger.info, "stage"), (logger.warning, "warned")):
        say(text)
    logger.error("failed")
    assert [line.split(": ")[1] for line in screen.getvalue().splitlines()] == shown.split()
    logs.close()
    logger.error("of another run")
    kept = (run.folder / "run.log").read_text().splitlines()
    assert [line.split(": ")[1] for line in kept] == ["stage", "warned", "failed"]
