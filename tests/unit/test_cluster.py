"""Tasks on a Dask cluster of this machine: two workers with two threads each."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dask
import dying
import numpy as np
import pytest
from distributed import LocalCluster

from bids_epvs import __version__, cluster
from bids_epvs.errors import TemporaryError, UsageError


@pytest.fixture(scope="module")
def address():
    """Of a scheduler."""
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0") as made:
        yield made.scheduler_address


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Look for workers often."""
    monkeypatch.setattr(cluster, "LOOK_S", 0.05)


def test_results_come_in_order_and_a_worker_does_one_task_at_a_time(address):
    """Four threads are there, two processes: of the second half of the tasks each shares a process with one before."""
    tasks = [(k, 0.3) for k in range(6)]
    found = list(cluster.results(address, dying.at_work, tasks, [f"sub-{k}" for k in range(6)]))
    assert [number for number, *_ in found] == list(range(6))
    workers = {process for _, process, *_ in found}
    assert len(workers) == 2 and os.getpid() not in workers
    for own in workers:
        times = sorted((start, end) for _, process, start, end in found if process == own)
        assert len(times) > 1
        assert all(np.array(times)[1:, 0] >= np.array(times)[:-1, 1])


def test_a_task_that_kills_its_worker_fails_alone(address, caplog):
    """After a second worker tried; those that died are begun again by their nannies."""
    found = list(cluster.results(address, dying.unless, [(k,) for k in range(1, 6)], list("abcde")))
    assert [v for k, v in enumerate(found) if k != 1] == [1, 3, 4, 5]
    assert isinstance(found[1], TemporaryError) and "memory" in found[1].message
    assert caplog.text.count("went away; another one begins again") == 1


def test_two_programs_share_a_worker_without_meeting():
    """What has to be alone in a process is, though each worker has two threads."""
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as made, ThreadPoolExecutor() as both:
        ways = (made.scheduler_address, dying.at_work, [(k, 0.2) for k in range(3)], list("abc"))
        found = [f.result() for f in [both.submit(lambda: list(cluster.results(*ways))) for _ in range(2)]]
    times = np.array(sorted((start, end) for own in found for *_, start, end in own))
    assert len(times) == 6 and all(times[1:, 0] >= times[:-1, 1])


def test_what_waits_is_dropped_when_nobody_wants_it_any_more(address, tmp_path):
    tasks = [(str(tmp_path / f"{k}"), 0.5) for k in range(20)]
    found = cluster.results(address, dying.touch, tasks, [f"drop-{k}" for k in range(20)])
    assert next(found) == 0.5
    found.close()
    time.sleep(1.5)
    begun = len(list(tmp_path.iterdir()))
    time.sleep(1.5)
    assert begun == len(list(tmp_path.iterdir())) < 20


def test_another_version_is_refused(address, monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "0.0.0")
    with pytest.raises(UsageError, match=f"a worker has bids_epvs {__version__}, this is 0.0.0.*need the same"):
        list(cluster.results(address, dying.unless, [(1,)], ["a"]))


def test_what_the_workers_cannot_run_is_told_with_the_task(address):
    with pytest.raises(UsageError, match=r"worker of broken cannot do it \(TypeError.*need the same"):
        list(cluster.results(address, dying.unless, [(1, 2, 3)], ["broken"]))


@pytest.mark.parametrize("wrong", ["tcp://127.0.0.1:9", "nonsense", "tcp://", "gopher://127.0.0.1:1"])
def test_no_scheduler_answers(monkeypatch, wrong):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with pytest.raises(TemporaryError, match="no Dask scheduler answers"):
        list(cluster.results(wrong, dying.unless, [(1,)], ["a"]))


def test_without_dask(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UsageError, match="not installed"):
        list(cluster.results("tcp://127.0.0.1:9", dying.unless, [(1,)], ["a"]))


def test_workers_may_come_later_and_the_scheduler_may_go(caplog, monkeypatch):
    """A warning while nobody works; when the scheduler goes, the run ends and can be resumed."""
    tasks = [(os.devnull, 0.1), (os.devnull, 10.0)]
    monkeypatch.setattr(cluster, "CONNECT_S", 3)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as made,
    ):
        threading.Timer(1.0, made.scale, (1,)).start()
        found = cluster.results(made.scheduler_address, dying.touch, tasks, ["a", "b"])
        assert next(found) == 0.1
        assert "no worker is there" in caplog.text
        threading.Timer(1.0, made.sync, (made.scheduler.close,)).start()
        with pytest.raises(TemporaryError, match=r"scheduler went away.*Run again to resume"):
            next(found)


def test_a_worker_without_memory_is_given_nothing(caplog):
    """It is paused by Dask, would keep what it is given, and is told."""
    with (
        dask.config.set({"distributed.worker.memory.pause": 0.0001}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as made,
        cluster.connected(made.scheduler_address) as client,
    ):
        sharing = cluster._Sharing(client, dying.unless, [(1,)], ["a"])
        until = time.monotonic() + 20
        while set(sharing._present().values()) != {"paused"} and time.monotonic() < until:
            time.sleep(0.05)
        sharing.step()
    assert sharing.waiting and not sharing.at_work
    assert "all workers are paused" in caplog.text


def test_a_scheduler_without_bids_epvs(address, monkeypatch):
    def foreign(dask_scheduler):
        raise ModuleNotFoundError("No module named 'bids_epvs'")

    monkeypatch.setattr(cluster, "statuses", foreign)
    with pytest.raises(UsageError, match=r"the scheduler cannot do it.*need the same"):
        list(cluster.results(address, dying.unless, [(1,)], ["a"]))


def test_a_worker_that_comes_late_takes_part():
    """It need not be there before the tasks are half done, so there are enough."""
    tasks, names = [(k, 0.3) for k in range(100)], [f"late-{k}" for k in range(100)]
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as made:
        found = cluster.results(made.scheduler_address, dying.at_work, tasks, names)
        _, first, *_ = next(found)
        made.scale(2)
        assert any(process != first for _, process, *_ in found)
        found.close()
