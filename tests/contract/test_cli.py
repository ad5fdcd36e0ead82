import subprocess
import sys

import pytest

from bids_epvs import __version__, cluster
from bids_epvs.cli import REGION_NAMES, main, settings_from
from bids_epvs.errors import AnalysisLevelError, UsageError
from bids_epvs.prepare.regions import NAMES

HEAVY = ("tensorflow", "keras", "ants", "bids", "nibabel", "pandas", "numpy", "scipy")


def code(*argv):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return stop.value.code


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option):
    script = (
        "import sys\nfrom bids_epvs.cli import main\n"
        f"try: main(['{option}'])\n"
        f"except SystemExit as e: print('code', e.code, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("code 0 []")
    assert __version__ in out or "participant" in out


def test_both_spellings():
    dashes = settings_from(["a", "b", "participant", "--participant-label", "01", "--mem-gb", "9", "--no-resume"])
    scores = settings_from(["a", "b", "participant", "--participant_label", "01", "--mem_gb", "9", "--no-resume"])
    assert dashes == scores
    assert (dashes.participant_label, dashes.mem_gb, dashes.resume) == (("01",), 9.0, False)
    assert settings_from(["a", "b", "group", "--session-id", "1"]).session_label == ("1",)


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('nprocs = 3\nverbose = 1\nmodels = ["frangi"]\n')
    found = settings_from(["a", "b", "participant", "--config-file", str(path), "--nprocs", "2"])
    assert (found.nprocs, found.verbose, found.models) == (2, 1, ("frangi",))


def test_a_cluster_that_does_not_answer_is_temporary(skeleton, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    skeleton.add("sub-01_T2w.nii.gz")
    given = ("--skip-bids-validation", "--dask-scheduler", "tcp://127.0.0.1:9")
    assert code(skeleton.root, tmp_path / "out", "participant", *given) == 75
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


def test_region_names_of_the_help_are_those_of_the_package():
    assert REGION_NAMES == NAMES


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["a", "b"], "required"),
        (["a", "b", "participant", "--no-such-option"], "unrecognized"),
        (["a", "b", "participant", "--nprocs", "many"], "invalid int"),
        (["a", "b", "participant", "-d", "fs"], "NAME=PATH"),
        (["a", "b", "participant", "-d", "fs=/no/such/place"], "does not exist"),
    ],
)
def test_usage_errors(argv, match):
    with pytest.raises(UsageError, match=match):
        settings_from(argv)


def test_analysis_level():
    with pytest.raises(AnalysisLevelError, match="'cohort'"):
        settings_from(["a", "b", "cohort"])


def test_exit_codes(skeleton, tmp_path, capsys):
    out = tmp_path / "out"
    assert code(tmp_path / "none", out, "participant") == 16
    assert code(skeleton.root, out, "cohort") == 17
    skeleton.add("sub-01_T1w.nii.gz")
    assert code(skeleton.root, out, "participant", "--models", "frangi") == 66
    skeleton.add("sub-01_T2w.nii.gz")
    assert code(skeleton.root, out, "participant", "--participant-label", "9") == 18
    assert code(skeleton.root, skeleton.root, "participant") == 64
    assert code(skeleton.root, out, "group") == 66
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 6
    assert all(line.startswith("bids_epvs: ") for line in errors)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--models", "unet3000"], "no model 'unet3000'"),
        (["--regions", "BG"], "no region 'BG'"),
        (["--weights", "frangi=README"], "uses no weights"),
        (["--output-spaces", "MNI999"], "MNI999"),
        (["--nprocs", "2", "--mem-gb", "7"], "Lower --nprocs to 1"),
        (["-w", "work"], "inside the dataset"),
        (["--config-file", "none.toml"], "cannot be read"),
        (["--config-file", "wrong.toml"], "frangi has no parameter 'scale'"),
    ],
)
def test_guard_rails(skeleton, monkeypatch, capsys, options, match):
    monkeypatch.chdir(skeleton.root)
    (skeleton.root / "wrong.toml").write_text("parameters = {frangi = {scale = 3}}")
    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    assert code(".", "../out", "participant", *options) == 64
    assert match in capsys.readouterr().err


@pytest.mark.parametrize("out", ["..", "sub-01", "results"])
def test_output_inside_or_above_the_dataset(skeleton, monkeypatch, out):
    monkeypatch.chdir(skeleton.root)
    (skeleton.root / "wrong.toml").write_text("parameters = {frangi = {scale = 3}}")
    assert code(".", out, "participant") == 64


def test_output_cannot_be_made(skeleton, tmp_path, capsys):
    skeleton.add("sub-01_T2w.nii.gz")
    (tmp_path / "file").write_text("x")
    assert code(skeleton.root, tmp_path / "file" / "out", "participant") == 73
    assert "cannot be written" in capsys.readouterr().err


def test_dry_run_names_the_files_and_writes_nothing(skeleton, tmp_path, capsys):
    skeleton.add("sub-01_T2w.nii.gz")
    assert code(skeleton.root, tmp_path / "out", "participant", "--dry-run") == 0
    assert "sub-01: T2w: sub-01/anat/sub-01_T2w.nii.gz" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_boilerplate(skeleton, tmp_path, capsys):
    assert code(skeleton.root, tmp_path / "out", "participant", "--boilerplate-only") == 0
    assert "N4" in capsys.readouterr().out


def test_invalid_bids_is_refused_before_work(skeleton, tmp_path, capsys):
    skeleton.add("sub-01_T2w.nii.gz")
    (skeleton.root / "sub-01" / "anat" / "notes.txt").write_text("x")
    assert code(skeleton.root, tmp_path / "out", "participant") == 16
    assert "--skip-bids-validation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
