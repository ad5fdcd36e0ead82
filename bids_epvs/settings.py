"""One frozen Settings object, made from defaults, a TOML file and the command line (which wins)."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_epvs.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on; the names are those of the command line options.

    Attributes
    ----------
    weights, weights_dir
        Files of trained parameters by network; those not named are looked for as ``weights_dir/NAME.npz``, then in the
        package (see `weights_of`).
    parameters : mapping
        Parameters of methods that differ from their defaults: in TOML ``[parameters.unet]``, ``flips = true``.
    formula, group_by, maps
        Of the group level: regressions; columns of participants.tsv that split descriptives and maps; whether EPVS
        frequency maps are made.
    min_volume_mm3, max_volume_mm3 : float
        EPVS outside this range of volumes are not counted.
    regions_from : str
        Where brain, tissues and regions come from: ``network`` (`models.parcellation`) or ``atlas`` (deformed onto the
        T2w). A segmentation given in `derivatives` wins over both.
    registration : str
        ``deformable`` (affine, then 2 mm SyN) or ``affine``.
    """

    bids_dir: Path = Path()
    output_dir: Path = Path()
    analysis_level: str = "participant"
    participant_label: tuple[str, ...] = ()
    exclude_participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    derivatives: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    models: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    weights: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    weights_dir: Path | None = None
    parameters: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    output_spaces: tuple[str, ...] = ("T2w",)
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float | None = None
    dask_scheduler: str | None = None
    device: str = "auto"
    work_dir: Path | None = None
    clean_workdir: bool = False
    resume: bool = True
    stop_on_first_crash: bool = False
    dry_run: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    random_seed: int = 0
    verbose: int = 0
    formula: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    maps: bool = True
    min_volume_mm3: float = 0.5
    max_volume_mm3: float = 400.0
    regions_from: str = "network"
    registration: str = "deformable"

    def __post_init__(self) -> None:
        for name in ("bids_dir", "output_dir", "bids_filter_file", "bids_database_dir", "weights_dir", "work_dir"):
            if getattr(self, name) is not None:  # absolute, links kept: files are named relative to the dataset
                object.__setattr__(self, name, Path(os.path.abspath(getattr(self, name))))
        for name in ("derivatives", "weights"):
            given = getattr(self, name).items()
            object.__setattr__(self, name, {key: Path(os.path.abspath(path)) for key, path in given})
        for name, low in {"nprocs": 1, "omp_nthreads": 1, "random_seed": 0, "min_volume_mm3": 0}.items():
            if getattr(self, name) < low:
                raise UsageError(f"expected at least {low}, received {getattr(self, name)}.", where=option(name))
        if self.dask_scheduler and self.nprocs > 1:
            raise UsageError("the workers of the cluster share the subjects.", where="--nprocs", remedy="Leave it out.")
        if self.mem_gb is not None and self.mem_gb <= 0:
            raise UsageError(f"expected a positive number, received {self.mem_gb}.", where="--mem-gb")
        if self.max_volume_mm3 <= self.min_volume_mm3:
            raise UsageError("the largest volume must exceed the smallest.", where="max_volume_mm3")
        if self.regions_from not in ("network", "atlas"):
            raise UsageError(f"expected network or atlas, received {self.regions_from!r}.", where="--regions-from")
        if self.registration not in ("deformable", "affine"):
            raise UsageError(f"expected deformable or affine, received {self.registration!r}.", where="registration")
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
            raise UsageError(f"expected auto, cpu, cuda or cuda:N, received {self.device!r}.", where="--device")

    def weights_of(self, name: str) -> Path | None:
        """File of the parameters of a network; None for the packaged ones."""
        file = self.weights_dir / f"{name}.npz" if self.weights_dir else None
        return self.weights.get(name) or (file if file and file.is_file() else None)


FIELDS = {f.name: f for f in dataclasses.fields(Settings)}


def option(name: str) -> str:
    """The command line spelling of a field."""
    return "--" + name.replace("_", "-")


def read_toml(path: Path) -> dict[str, Any]:
    """Values of a TOML file, converted to the types of Settings.

    Raises
    ------
    UsageError
        The file is absent or not TOML, a key is unknown, or a value has the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({error}).", where=path) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML ({error}).", where=path) from error
    unknown = sorted(set(values) - set(FIELDS))
    if unknown:
        raise UsageError(f"unknown keys: {', '.join(unknown)}.", where=path, remedy=f"Known: {', '.join(FIELDS)}.")
    return {name: _convert(name, value, path) for name, value in values.items()}


def _convert(name: str, value: Any, path: Path) -> Any:
    """One TOML value as the type its field declares."""
    kind = str(FIELDS[name].type)
    checks: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str}
    base = kind.replace(" | None", "")
    if base in checks and (not isinstance(value, checks[base]) or (base != "bool" and isinstance(value, bool))):
        raise UsageError(f"{name}: expected {base}, received {value!r}.", where=path)
    if base.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UsageError(f"{name}: expected a list of strings, received {value!r}.", where=path)
        return tuple(value)
    if base.startswith("Mapping"):
        if not isinstance(value, dict):
            raise UsageError(f"{name}: expected a table, received {value!r}.", where=path)
        if "Any" in base:
            if not all(isinstance(v, dict) for v in value.values()):
                raise UsageError(f"{name}: expected a table for each method.", where=path)
            return value
        return {k: Path(v) for k, v in value.items()}
    return Path(value) if base == "Path" else value


def as_toml(settings: Settings) -> dict[str, Any]:
    """A dictionary that TOML can hold (absent values are left out); `read_toml` reads it back."""
    out: dict[str, Any] = {}
    for name in FIELDS:
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = {k: dict(v) if isinstance(v, Mapping) else str(v) for k, v in value.items()}
        out[name] = value
    return out
