"""Training examples on disk, made from heads in turn: what the other modules of examples share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_epvs import process
from bids_epvs.errors import DataError

logger = logging.getLogger(__name__)

KINDS = ("research", "clinical", "turned")
"""Scans of a scene: `contrast.draw_protocol`, and ``clinical`` slices that are coronal or sagittal."""


@dataclass(frozen=True)
class Task:
    """What is made of one head.

    Attributes
    ----------
    heads : tuple of Path
        Label maps.
    out : Path
    seed, number : int
        They decide about everything random.
    """

    heads: tuple[Path, ...]
    out: Path
    seed: int
    number: int

    @property
    def head(self) -> Path:
        """The label map whose turn it is."""
        return self.heads[self.number % len(self.heads)]

    def rng(self, stream: int = 0) -> np.random.Generator:
        """A generator of its own; each `stream` has other numbers for the same seed."""
        return np.random.default_rng([self.seed, self.number, stream])

    def path(self, index: int) -> Path:
        """File of an example."""
        return self.out / f"example-{index:05d}.npz"


def generate(
    write: Callable[..., object],
    /,
    heads: tuple[Path, ...],
    out: Path,
    *,
    number: int,
    seed: int = 0,
    nprocs: int = 2,
    **options: Any,
) -> None:
    """Run `number` tasks over the heads in turn: ``write(task, **options)`` leaves what exists as it is.

    Raises
    ------
    DataError
        There are no heads.
    """
    if not heads:
        raise DataError("no label maps to make examples from.", where=out)
    out.mkdir(parents=True, exist_ok=True)
    with process.pool(nprocs) as pool:
        for k, _ in enumerate(
            pool.map(partial(write, **options), [Task(heads, out, seed, k) for k in range(number)]), start=1
        ):
            if k % 10 == 0:
                logger.info("%d of %d heads simulated", k, number)
