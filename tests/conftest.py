"""Shared fixtures: one seeded generator, and where the real data lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


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
