from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from bids_epvs.errors import UsageError
from bids_epvs.settings import Settings, as_toml, read_toml


def test_toml_round_trip(tmp_path):
    settings = Settings(
        bids_dir=tmp_path,
        models=("frangi",),
        derivatives={"fs": tmp_path},
        mem_gb=8.0,
        resume=False,
        verbose=2,
        parameters={"frangi": {"c": 0.5}},
    )
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(as_toml(settings)))
    assert Settings(**read_toml(path)) == settings


def test_weights_are_looked_for_in_their_folder(tmp_path):
    (tmp_path / "unet.npz").write_text("x")
    settings = Settings(weights={"parcellation": tmp_path / "mine.npz"}, weights_dir=tmp_path)
    assert settings.weights_of("parcellation") == tmp_path / "mine.npz"
    assert settings.weights_of("unet") == tmp_path / "unet.npz"
    assert settings.weights_of("gpunet") is None


def test_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = Settings(bids_dir=Path("a/../b"), weights={"unet": Path("w.npz")}, derivatives={"fs": Path("fs")})
    assert found.bids_dir == tmp_path / "b"
    assert (found.weights, found.derivatives) == ({"unet": tmp_path / "w.npz"}, {"fs": tmp_path / "fs"})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nprocs = 1.5", "expected int"),
        ("nprocs = true", "expected int"),
        ("resume = 1", "expected bool"),
        ("models = 'frangi'", "list of strings"),
        ("weights = 3", "expected a table"),
        ("parameters = {c = 3}", "a table for each method"),
        ("no_such_key = 1", "unknown keys: no_such_key"),
        ("= 3", "not TOML"),
    ],
)
def test_bad_toml(tmp_path, text, match):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=match):
        read_toml(path)


def test_absent_toml(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"nprocs": 0}, "--nprocs: expected at least 1"),
        ({"mem_gb": -1.0}, "positive"),
        ({"dask_scheduler": "tcp://a:1", "nprocs": 2}, "--nprocs: the workers of the cluster share the subjects"),
        ({"max_volume_mm3": 0.1}, "largest volume"),
        ({"registration": "rigid"}, "deformable or affine"),
        ({"regions_from": "guess"}, "network or atlas"),
        ({"device": "tpu"}, "cuda"),
        ({"device": "cpu:1"}, "cuda"),
    ],
)
def test_impossible_values(change, match):
    with pytest.raises(UsageError, match=match):
        replace(Settings(), **change)
