"""Training examples from a dataset of one's own: what ``bids_epvs ... participant`` prepared, and masks of EPVS."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_epvs.derivatives import paths
from bids_epvs.derivatives.write import arrays, read_json
from bids_epvs.errors import DataError, NothingToDoError, UsageError
from bids_epvs.models import unet
from bids_epvs.prepare import planes
from bids_epvs.prepare.resample import bounding_box, slice_axis
from bids_epvs.records import Prepared, Scan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """A session with a mask of its EPVS, or a score.

    Attributes
    ----------
    scan : Scan
        Without files.
    results : Path
        Output directory of the participant level.
    mask : Path
        Unused where there is a score.
    score : float
    """

    scan: Scan
    results: Path
    mask: Path = Path()
    score: float = float("nan")

    def path(self, **entities: str) -> Path:
        """One of its prepared images."""
        return paths.derivative(self.results, self.scan, **entities)

    def sequences(self) -> dict[str, Path]:
        """Prepared images that exist, by `unet.SEQUENCES`."""
        files = {}
        for name in unet.SEQUENCES:
            space = {} if name == "T2w" else {"space": "T2w"}
            files[name] = self.path(**space, desc="preproc", suffix=paths.SUFFIX[name])
        return {name: file for name, file in files.items() if file.is_file()}


def find(results: Path, truth: Path) -> list[Session]:
    """Sessions that were prepared and have a mask.

    Parameters
    ----------
    results : Path
        Output of ``bids_epvs BIDS results participant``.
    truth : Path
        BIDS derivatives with ``sub-*[/ses-*]/anat/*_label-EPVS_mask.nii.gz`` on the grid of the T2w.

    Raises
    ------
    NothingToDoError
        There is none.
    """
    out = []
    for mask in sorted(truth.glob("sub-*/**/*_label-EPVS_mask.nii.gz")):
        entities = paths.parse(mask)
        session = Session(Scan(entities["sub"], entities.get("ses"), {}), results, mask)
        if session.path(seg="epvs", suffix="dseg").is_file() and "T2w" in session.sequences():
            out.append(session)
        else:
            logger.warning("%s: has a mask but was not prepared", session.scan.label)
    if not out:
        raise NothingToDoError(
            "no session was prepared and has a mask of its EPVS.",
            where=truth,
            remedy="Run the participant level first; expected sub-01/anat/sub-01_label-EPVS_mask.nii.gz.",
        )
    return out


def _load(path: Path, frame: nib.Nifti1Image) -> np.ndarray:
    """Voxels on the grid of the T2w, axes turned to R, A, S."""
    image = nib.as_closest_canonical(nib.load(path))
    if image.shape != frame.shape or not np.allclose(image.affine, frame.affine, atol=1e-3):
        raise DataError(
            f"expected the grid of the T2w, shape {frame.shape}, found shape {image.shape}.",
            where=path,
            remedy="Resample the mask onto the T2w.",
        )
    return np.asarray(image.dataobj)


def prepared(session: Session) -> Prepared:
    """What the participant level wrote, as far as networks need it."""
    frame = nib.as_closest_canonical(nib.load(session.path(desc="preproc", suffix="T2w")))
    where = session.path(seg="epvs", suffix="dseg")
    x, y, z = (float(v) for v in voxel_sizes(frame.affine))
    return Prepared(
        images={name: _load(path, frame).astype(np.float32) for name, path in session.sequences().items()},
        brain=_load(session.path(desc="brain", suffix="mask"), frame) > 0,
        regions=_load(where, frame).astype(np.uint8),
        csf=_load(session.path(label="CSF", desc="large", suffix="mask"), frame) > 0,
        spacing=(x, y, z),
        native=frame,
        slices=read_json(paths.sidecar(where)).get("RatingSlices", {}),
        hemisphere=np.zeros(0, np.uint8),
    )


def example(session: Session) -> dict[str, Any]:
    """The arrays of one training example, as `synth.volumes.example` makes them, and ``names`` of its sequences.

    Raises
    ------
    DataError
        The mask lies on another grid than the T2w.
    """
    whole = prepared(session)
    made = planes.in_slices(whole)
    mask = planes.sliced(_load(session.mask, whole.native) > 0, slice_axis(whole.spacing))
    names = [n for n in unet.SEQUENCES if n in made.images]
    box = bounding_box(made.brain, 4)
    low, high = unet.RANGE
    volume = unet.prepared_volume(made, names)[box]
    return {
        "images": np.rint((volume - low) / (high - low) * 255).astype(np.uint8),
        "fraction": (mask[box] * 255).astype(np.uint8),
        "index": ndimage.label(mask[box], np.ones((3, 3, 3)))[0].astype(np.uint16),
        "regions": made.regions[box],
        "csf": made.csf[box] & ~mask[box],
        "spacing": np.array(made.spacing, np.float32),
        "turned": np.bool_(made.turned),
        "names": np.array(names),
    }


def write(
    sessions: Sequence[Session], out: Path, make: Callable[[Session], Mapping[str, Any]] = example
) -> dict[str, list[Path]]:
    """Write an example of each session, unless it is there; files by subject.

    A session whose scan does not show what is asked for is left out with a warning.

    Raises
    ------
    NothingToDoError
        None is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {}
    for session in sessions:
        target = out / f"example-{session.scan.label}.npz"
        if not target.exists():
            try:
                arrays(target, make(session))
            except NothingToDoError as error:
                logger.warning("%s: left out, %s", session.scan.label, error.message)
                continue
        files.setdefault(session.scan.subject, []).append(target)
    if not files:
        raise NothingToDoError("no session can be learnt from.", where=out)
    return files


def folds(subjects: Sequence[str], number: int, *, seed: int = 0) -> list[tuple[str, ...]]:
    """Subjects held out in each fold; each subject in exactly one, all sessions of a subject together.

    Raises
    ------
    UsageError
        Fewer than two folds, or more folds than subjects.

    >>> sorted(len(f) for f in folds(["a", "b", "c", "d", "e"], 2))
    [2, 3]
    """
    if not 2 <= number <= len(subjects):
        raise UsageError(f"expected 2 to {len(subjects)} folds, received {number}.", where="--cv")
    order = np.random.default_rng(seed).permutation(sorted(subjects))
    return [tuple(str(s) for s in sorted(order[k::number])) for k in range(number)]


def split(files: Mapping[str, Sequence[Path]], held_out: Sequence[str], out: Path) -> None:
    """Links in ``out/examples`` and ``out/held-out`` to the files of the other subjects, and of those held out.

    Raises
    ------
    UsageError
        A subject is not there.
    NothingToDoError
        One of the two would be empty.
    """
    unknown = [s for s in held_out if s not in files]
    if unknown:
        raise UsageError(f"no example of {', '.join(unknown)}.", where="--held-out")
    if not set(files) - set(held_out) or not held_out:
        raise NothingToDoError("no subject is left to train on, or none to judge on.", where=out)
    for subject, own in files.items():
        folder = out / ("held-out" if subject in held_out else "examples")
        folder.mkdir(parents=True, exist_ok=True)
        for path in own:
            link = folder / path.name
            if not link.exists():
                link.symlink_to(os.path.relpath(path, folder))
