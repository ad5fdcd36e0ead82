"""Ways to end that no dataset provokes: a killed process, a full disk, an interruption."""

import dying
import pytest
from distributed import LocalCluster

from bids_epvs import cli, logs, pipeline
from bids_epvs.records import Scan
from bids_epvs.settings import Settings


def test_a_killed_process_fails_its_subject_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run_subject", dying.run_subject)
    settings = Settings(output_dir=tmp_path, nprocs=2)
    (outcomes,) = pipeline._in_processes([[Scan("01", None, {})]], settings, logs.start(settings))
    assert outcomes[0].label == "sub-01"
    assert "memory" in outcomes[0].error and "--nprocs" in outcomes[0].error


def test_a_subject_that_kills_the_workers_of_a_cluster_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run_subject", dying.run_subject)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as made:
        settings = Settings(output_dir=tmp_path, dask_scheduler=made.scheduler_address)
        (outcomes,) = pipeline._all_subjects([[Scan("01", None, {})]], settings, logs.start(settings), logs.Watch())
    assert outcomes.label == "sub-01"
    assert "memory" in outcomes.error and "--memory-limit" in outcomes.error


@pytest.mark.parametrize(("error", "code"), [(OSError(5, "Input/output error"), 74), (KeyboardInterrupt(), 130)])
def test_input_output_errors_and_interruptions(skeleton, tmp_path, monkeypatch, capsys, error, code):
    def fail(settings):
        raise error

    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main([str(skeleton.root), str(tmp_path / "out"), "participant"])
    assert stop.value.code == code
    assert capsys.readouterr().err.startswith("bids_epvs: ")
