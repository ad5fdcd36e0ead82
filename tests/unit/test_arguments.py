"""What the command lines of all programs share."""

import pytest

from bids_epvs import cli, training
from bids_epvs.evaluate import command
from bids_epvs.synth import dataset

COMPANIONS = {"train": (training, "train"), "simulate": (dataset, "simulate"), "evaluate": (command, "evaluate")}
GIVEN = {
    "train": ["unet", "maps", "out", "--held_out", "05"],
    "simulate": ["out", "--no_mimics"],
    "evaluate": ["truth", "out", "tables", "--nprocs=2"],
}


@pytest.mark.parametrize("name", COMPANIONS)
def test_both_spellings(name):
    parser = COMPANIONS[name][0].parser()
    dashes = [word.replace("_", "-") for word in GIVEN[name]]
    assert parser.parse_args(GIVEN[name]) == parser.parse_args(dashes)


def test_values_keep_their_underscores():
    found = cli.settings_from(["a_b", "c_d", "group", "--group_by", "site_id", "--work_dir=/x_y"])
    assert (found.bids_dir.name, found.group_by, str(found.work_dir)) == ("a_b", ("site_id",), "/x_y")


@pytest.mark.parametrize("name", COMPANIONS)
def test_usage_errors_have_code_64(name, capsys):
    assert COMPANIONS[name][0].main([*GIVEN[name], "--no-such-option"]) == 64
    said = capsys.readouterr().err
    assert said.startswith(f"bids_epvs-{name}: unrecognized arguments") and f"bids_epvs-{name} --help" in said


@pytest.mark.parametrize("name", COMPANIONS)
@pytest.mark.parametrize(("error", "code"), [(OSError(28, "No space left on device"), 74), (KeyboardInterrupt(), 130)])
def test_companions_end_as_the_app_does(name, error, code, monkeypatch, capsys):
    def fail(*given, **options):
        raise error

    module, work = COMPANIONS[name]
    monkeypatch.setattr(module, work, fail)
    assert module.main(GIVEN[name]) == code
    assert capsys.readouterr().err.startswith(f"bids_epvs-{name}: ")
