"""Shared fixtures: a seeded generator, a BIDS skeleton, one small run of the app, and where the real data lie."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

from bids_epvs.models import weights

weights.configure()  # before any test imports Keras

ROOT = Path(__file__).resolve().parents[1]
HEAD = (48, 60, 40)
"""Shape of the skeleton's images; with 4 x 4 x 4 mm it is the size of a head."""


@pytest.fixture(autouse=True)
def log_as_it_begins() -> None:
    """What a command line set before (``-q``, in a test or in a fixture of a session) does not silence this test."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("bids_epvs").setLevel(logging.NOTSET)


@pytest.fixture
def rng() -> np.random.Generator:
    """One seeded generator a test."""
    return np.random.default_rng(20261121)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real scans; the test is skipped where it is absent."""
    folder = Path(os.environ.get("EPVS_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "openms").is_dir():
        pytest.skip(f"no real data: EPVS_TEST_DATA ({folder}) holds no openms folder")
    return folder


class Skeleton:
    """A BIDS dataset whose images are noise of the size of a head."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        root.mkdir(parents=True, exist_ok=True)
        self.describe({"Name": "skeleton", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"})
        (root / "README").write_text("Noise, made by the tests of bids_epvs; there is nothing in it to be found.\n")

    def describe(self, content: object) -> None:
        (self.root / "dataset_description.json").write_text(json.dumps(content))

    def add(self, name: str, *, shape=HEAD, zooms=(4.0, 4.0, 4.0), data: np.ndarray | None = None) -> Path:
        """Write ``sub-01[_ses-1]_..._T2w.nii.gz`` where BIDS wants it."""
        self.count += 1
        parts = name.split("_")
        folder = self.root / parts[0]
        if parts[1].startswith("ses-"):
            folder /= parts[1]
        path = folder / ("swi" if name.endswith("_swi.nii.gz") else "anat") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            data = np.random.default_rng(self.count).integers(1, 200, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([*zooms, 1.0])), path)
        return path


@pytest.fixture
def skeleton(tmp_path) -> Skeleton:
    """An empty dataset with a description."""
    return Skeleton(tmp_path / "bids")


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], None]], Path]:
    """Folders that all workers of pytest-xdist share: the first that asks for one makes it."""
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        out, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                out.mkdir()
                make(out)
                done.touch()
        return out

    return folder


@pytest.fixture(scope="session")
def simulated(shared) -> Path:
    """Two simulated subjects with coarse voxels."""
    from bids_epvs.synth import dataset

    return shared("simulated", lambda folder: dataset.simulate(coarse_plan(folder / "bids"))) / "bids"


def coarse_plan(folder: Path):
    """Two subjects that are simulated in seconds."""
    from bids_epvs.synth.dataset import Plan

    return Plan(folder, 2, 3, burden="high", spacing=(0.9, 1.0, 5.0), fine_mm=1.0)


@pytest.fixture(scope="session")
def quick(shared) -> Path:
    """Settings for quick runs: affine registration."""

    def make(folder: Path) -> None:
        (folder / "quick.toml").write_text('registration = "affine"\n')

    return shared("settings", make) / "quick.toml"


@pytest.fixture(scope="session")
def finished(shared, simulated, quick) -> Path:
    """Output of both levels for `simulated`."""
    from bids_epvs.cli import run, settings_from

    def make(folder: Path) -> None:
        common = [str(simulated), str(folder / "out")]
        assert run(settings_from([*common, "participant", "--config-file", str(quick), "-q"])) == 0
        assert run(settings_from([*common, "group", "-q"])) == 0

    return shared("finished", make) / "out"
