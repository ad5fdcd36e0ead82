"""One file to one checked image: either a trusted 3-D float32 image, or an error that names the remedy."""

from __future__ import annotations

import gzip
import logging
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError

from bids_epvs.errors import DataError
from bids_epvs.records import Loaded

logger = logging.getLogger(__name__)

MAX_VOXEL_MM = 10.0
MIN_EXTENT_MM, MAX_EXTENT_MM = 80.0, 500.0
MIN_SLAB_MM = 40.0
"""Least extent along the shortest axis: slabs of that much are still found in the head (`prepare.register`)."""
MIN_SLICES = 8
_READ_ERRORS = (OSError, EOFError, zlib.error, ValueError, HeaderDataError, ImageFileError)


def load_image(path: Path) -> Loaded:
    """Read a NIfTI file and check that it can be a head.

    Documented repairs (each is noted in log and report): a fourth axis of length one is dropped; disagreeing qform
    and sform follow fMRIPrep's rule; NaN and infinite voxels become 0; big-endian and integer data become float32.

    Raises
    ------
    DataError
        Unreadable or truncated, not 3-D, no usable affine, sheared, voxels above 10 mm, fewer than 8 slices, a field
        of view that holds no human brain, constant, not real numbers, or values that overflow.
    """
    image, notes = _open(path)
    affine, more = _affine(image, path)
    notes += more
    data = _data(image, path)
    data, more = _finite(data, path)
    notes += more
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    _check_geometry(image, path)
    for note in notes:
        logger.warning("%s: %s", path.name, note)
    return Loaded(image, tuple(notes))


def _open(path: Path) -> tuple[Nifti1Image, list[str]]:
    """Header and shape; a trailing axis of one volume is dropped."""
    try:
        image = nib.load(path)
        shape = image.shape
    except FileNotFoundError as error:
        raise DataError("the file does not exist (a broken link or unfetched annex?).", where=path) from error
    except _READ_ERRORS as error:
        raise DataError(f"not a readable NIfTI file ({_first_line(error)}).", where=path, remedy=_COPY) from error
    extra = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or extra:
        raise DataError(
            f"expected a 3-D image, received shape {tuple(shape)}.",
            where=path,
            remedy="Extract one volume, or exclude the file with --bids-filter-file.",
        )
    notes = [f"4-D with one volume, shape {tuple(shape)}: squeezed"] if len(shape) > 3 else []
    return image, notes


_COPY = "Copy the file again from its source, or exclude the subject with --exclude-participant-label."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _affine(image: Nifti1Image, path: Path) -> tuple[np.ndarray, list[str]]:
    """The affine to trust, by fMRIPrep's rule for qform and sform.

    A valid sform with code > 0 wins; without it a valid qform with code > 0; with both codes 0 the voxel sizes
    alone, and then left and right are a guess.
    """
    header = image.header
    if not isinstance(image, nib.Nifti1Pair):
        return np.asarray(image.affine, float), []
    qform, sform = _valid(lambda: header.get_qform(coded=False)), _valid(header.get_sform)
    has_q, has_s = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    if has_s and sform is not None:
        if has_q and (qform is None or not np.allclose(qform, sform, atol=1e-2)):
            return sform, ["qform and sform disagree: sform used (fMRIPrep's rule)"]
        return sform, []
    if has_q and qform is not None:
        return qform, ["sform is not valid: qform used"] if has_s else []
    if has_q or has_s:
        raise DataError(
            "the affine is zero, singular or not finite.", where=path, remedy="Convert the scan again from DICOM."
        )
    zooms = np.asarray(header.get_zooms()[:3], float)
    if not np.all(np.isfinite(zooms)) or np.any(zooms <= 0):
        raise DataError(f"voxel sizes are {tuple(zooms)}.", where=path, remedy="Convert the scan again from DICOM.")
    return header.get_base_affine(), ["no orientation in the header: left and right are a guess"]


def _valid(getter) -> np.ndarray | None:
    """The affine, or None where it is broken."""
    try:
        affine = getter()
    except (ValueError, HeaderDataError, np.linalg.LinAlgError):
        return None
    if affine is None or not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return None
    return np.asarray(affine, float)


def _data(image: Nifti1Image, path: Path) -> np.ndarray:
    """All voxels, float64 until overflow has been ruled out; shape reduced to three axes."""
    if np.dtype(image.get_data_dtype()).kind not in "iuf":
        raise DataError(f"expected real numbers, received {image.get_data_dtype()}.", where=path)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            data = np.asanyarray(image.dataobj)
    except MemoryError as error:
        raise DataError(f"shape {image.shape} does not fit in memory.", where=path) from error
    except _READ_ERRORS as error:
        kind = "truncated or corrupt" if _is_gzip(path) else "truncated"
        raise DataError(f"the file is {kind} ({_first_line(error)}).", where=path, remedy=_COPY) from error
    return data.reshape(data.shape[:3])


def _is_gzip(path: Path) -> bool:
    try:
        with gzip.open(path) as stream:
            stream.read(1)
    except (OSError, EOFError, zlib.error):
        return str(path).endswith(".gz")
    return True


def _finite(data: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """float32 without NaN or Inf; constant or overflowing images are refused."""
    notes = []
    good = np.isfinite(data)
    if not good.all():
        n = int(data.size - good.sum())
        if not good.any():
            raise DataError("no voxel is finite.", where=path, remedy="Convert the scan again from DICOM.")
        data = np.where(good, data, 0)
        notes.append(f"{n} voxels are NaN or infinite: set to 0")
    low, high = float(data.min()), float(data.max())
    if max(abs(low), abs(high)) > 1e30:
        raise DataError(
            f"values reach {max(abs(low), abs(high)):.3g}: scl_slope overflows.",
            where=path,
            remedy="Correct scl_slope and scl_inter in the header.",
        )
    if high <= low:
        raise DataError(f"constant image (every voxel is {low:g}).", where=path, remedy=_COPY)
    return np.ascontiguousarray(data, dtype=np.float32), notes


def _check_geometry(image: Nifti1Image, path: Path) -> None:
    """Voxel sizes, shear and field of view."""
    zooms = np.linalg.norm(image.affine[:3, :3], axis=0)
    if zooms.max() > MAX_VOXEL_MM:
        raise DataError(
            f"voxels of {_mm(zooms)} mm; expected at most {MAX_VOXEL_MM:g} mm along each axis.",
            where=path,
            remedy="Localizers cannot be used; exclude the file with --bids-filter-file.",
        )
    unit = image.affine[:3, :3] / zooms
    if np.abs(unit.T @ unit - np.eye(3)).max() > 0.02:
        raise DataError("the affine is sheared.", where=path, remedy="Resample the scan to orthogonal axes.")
    if min(image.shape) < MIN_SLICES:
        raise DataError(f"shape {image.shape}; expected at least {MIN_SLICES} slices.", where=path)
    extent = zooms * image.shape
    shortest, middle, longest = np.sort(extent)
    if shortest < MIN_SLAB_MM or middle < MIN_EXTENT_MM or longest > MAX_EXTENT_MM:
        raise DataError(
            f"the field of view of {_mm(extent)} mm is not that of a human head (expected at least {MIN_SLAB_MM:g} mm "
            f"along one axis, at least {MIN_EXTENT_MM:g} mm along the others, at most {MAX_EXTENT_MM:g} mm).",
            where=path,
            remedy="Check the voxel sizes in the header, or exclude the file with --bids-filter-file.",
        )


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{v:.4g}" for v in values)
