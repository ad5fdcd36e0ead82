"""How the methods of a session are divided between two processes."""

import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import dying
import pytest

from bids_epvs import logs, pipeline
from bids_epvs.errors import EpvsError, UsageError
from bids_epvs.models import load
from bids_epvs.records import Scan, Transform
from bids_epvs.settings import Settings
from bids_epvs.stages import methods, preparation, results

NAMES = ("unet", "gpunet", "cnn", "frangi")


@pytest.fixture
def divided(tmp_path, monkeypatch):
    """`run_models` with methods that only say where they ran; the first here waits until one was done elsewhere."""
    scan = Scan("01", None, {"T2w": Path("a.nii.gz")})
    settings = Settings(output_dir=tmp_path, models=NAMES)
    ran, elsewhere = {}, threading.Event()

    def here(_scan, _settings, name, key, note, read):
        assert elsewhere.wait(10)
        ran[name] = "here"
        return f"{key}-{name}"

    def apart(_scan, _settings, name, key):
        ran[name] = "apart"
        elsewhere.set()
        if name in broken:
            raise ValueError(name)
        return f"{key}-{name}", (f"model {name}", 1.0, 2.0, False)

    broken = set()
    monkeypatch.setattr(methods, "compute", here)
    monkeypatch.setattr(methods, "compute_apart", apart)

    def go(helper):
        if helper is None:
            elsewhere.set()
        clock = logs.Clock()
        return pipeline.run_models(scan, settings, "k", clock, lambda: None, helper), clock.rows(), ran

    go.broken = broken
    return go


def test_two_processes_share_the_methods_and_keys_keep_their_order(divided):
    with ThreadPoolExecutor(1) as helper:
        keys, rows, ran = divided(helper)
    assert list(keys.items()) == [(n, f"k-{n}") for n in NAMES]
    assert ran["unet"] == "here"
    assert ran["frangi"] == "apart"
    assert sorted(r[0] for r in rows) == sorted(f"model {n}" for n in NAMES)


def test_one_process_does_all(divided):
    keys, rows, ran = divided(None)
    assert list(keys) == list(NAMES)
    assert [r[0] for r in rows] == [f"model {n}" for n in NAMES]
    assert set(ran.values()) == {"here"}


def test_what_fails_in_the_other_process_fails_the_session(divided):
    divided.broken.add("frangi")
    with ThreadPoolExecutor(1) as helper, pytest.raises(ValueError, match="frangi"):
        divided(helper)


def test_no_module_comes_back_from_the_helper(tmp_path):
    answers = []

    class Here(Executor):
        def submit(self, function, *given):
            answers.append(function(*given))
            return Future()

    scan = Scan("01", None, {"T2w": tmp_path / "missing.nii.gz"})
    with pytest.raises(EpvsError):
        preparation.compute(scan, Settings(bids_dir=tmp_path, output_dir=tmp_path / "out"), {}, {}, Here())
    assert answers
    assert not any(isinstance(answer, ModuleType) for answer in answers), "who unpickles a module imports it"


def test_an_interruption_does_not_wait_for_the_helper(tmp_path):
    settings = Settings(output_dir=tmp_path, omp_nthreads=2)
    run = logs.start(settings)
    try:
        with pytest.raises(KeyboardInterrupt), preparation.helper(settings, run) as helper:
            number = helper.submit(os.getpid).result()
            helper.submit(time.sleep, 60)
            begun = time.monotonic()
            raise KeyboardInterrupt
    finally:
        logs.close()
    assert time.monotonic() - begun < 30
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_what_the_helper_finds_is_read_without_ants():
    program = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1])); assert 'ants' not in sys.modules"
    found = pickle.dumps(Transform((Path("affine.mat"),), (), ()))
    subprocess.run([sys.executable, "-c", program, found.hex()], check=True)


def test_the_helper_reads_those_networks_first_that_it_begins_with(tmp_path, monkeypatch):
    read = []
    specs = {n: replace(load(n), network=partial(lambda n, file: read.append((n, file)), n)) for n in NAMES[:3]}
    monkeypatch.setattr(preparation, "load", lambda name: specs.get(name) or load(name))
    mine = tmp_path / "mine.npz"
    preparation._ready_for_methods(Settings(output_dir=tmp_path, models=NAMES, weights={"cnn": mine}))
    assert read == [("cnn", mine), ("gpunet", None), ("unet", None)], "frangi has none"


@pytest.mark.parametrize(("threads", "enough"), [(1, True), (2, False)])
def test_memory_counts_the_second_process(skeleton, tmp_path, threads, enough):
    skeleton.add("sub-01_T2w.nii.gz")
    settings = Settings(
        bids_dir=skeleton.root, output_dir=tmp_path / "out", mem_gb=13.0, nprocs=2, omp_nthreads=threads
    )
    if enough:
        pipeline.check(settings)
    else:
        with pytest.raises(UsageError, match="17 GB") as caught:
            pipeline.check(settings)
        assert "--nprocs to 1" in caught.value.remedy


@pytest.mark.parametrize("fails", [False, True])
def test_a_helper_that_may_have_died_makes_no_report(tmp_path, monkeypatch, fails):
    settings = Settings(output_dir=tmp_path, omp_nthreads=2)
    given = []

    def session(*_):
        if fails:
            raise ValueError("broken")

    monkeypatch.setattr(pipeline, "run_session", session)
    monkeypatch.setattr(results, "report", lambda scans, errors, settings, helper: given.append(helper))
    scans = [Scan("01", None, {"T2w": Path("a.nii.gz")})]
    (outcome,) = pipeline.run_subject(scans, settings, logs.start(settings))
    assert bool(outcome.error) is fails
    assert [helper is None for helper in given] == [fails], "the report is made either way"


def test_a_process_that_may_have_no_children_works_alone(tmp_path):
    """As a worker of a Dask cluster under a nanny is."""
    settings = Settings(output_dir=tmp_path, omp_nthreads=2)
    told = get_context("spawn").Queue()
    worker = get_context("spawn").Process(
        target=dying.told_helper, args=(told, settings, logs.start(settings)), daemon=True
    )
    worker.start()
    assert told.get(timeout=60) is None
    worker.join()
