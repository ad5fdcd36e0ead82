"""The only module that imports antspyx: nibabel images in, nibabel images out.

ITK works in LPS millimetres and keeps geometry as spacing, origin and an orthonormal direction; nibabel works in
RAS with an affine. The conversion lives here and nowhere else. Importing ANTs takes seconds, so callers import this
module inside the functions that need it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.prepare.resample import canonical_to_world, iso_grid
from bids_epvs.records import Transform

# With two threads the same registration gave another result each time it was run: one thread, always, so that the same
# scan gives the same counts. Use --nprocs for speed. ITK reads this when the library loads.
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import ants

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SEED = 20201
_RIGID = {
    "aff_iterations": (1000, 500, 250),
    "aff_shrink_factors": (4, 2, 1),
    "aff_smoothing_sigmas": (2, 1, 0),
    "aff_random_sampling_rate": 0.05,
}
"""On simulated T1w and FLAIR of heads 12 and 17 with known poses as near (0.06 mm) as twice the samples."""
_RIGID_NEAR = {
    "aff_iterations": (500, 250),
    "aff_shrink_factors": (2, 1),
    "aff_smoothing_sigmas": (1, 0),
    "aff_random_sampling_rate": 0.2,
}
"""From a start that is nearly right, under a mask."""
_AFFINE = {
    "aff_iterations": (1000, 500),
    "aff_shrink_factors": (4, 2),
    "aff_smoothing_sigmas": (2, 1),
    "aff_random_sampling_rate": 0.3,
}
"""A pose to begin with: the finest level takes two thirds of the time, and structures found after it are no better."""


def to_ants(image: Nifti1Image, *, dtype: str = "float32") -> ants.ANTsImage:
    """Convert a 3-D nibabel image, keeping its world geometry."""
    lps = _RAS_TO_LPS @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    data = np.ascontiguousarray(np.asanyarray(image.dataobj), dtype=dtype)
    return ants.from_numpy(
        data,
        origin=[float(v) for v in lps[:3, 3]],
        spacing=[float(v) for v in spacing],
        direction=_orthonormal(lps[:3, :3] / spacing),
    )


def from_ants(image: ants.ANTsImage) -> Nifti1Image:
    """Convert back to nibabel (RAS affine, qform and sform code 1)."""
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    lps[:3, 3] = image.origin
    out = nib.Nifti1Image(image.numpy(), _RAS_TO_LPS @ lps)
    out.header.set_xyzt_units("mm")
    return out


def _orthonormal(matrix: np.ndarray) -> np.ndarray:
    """The orthonormal matrix nearest to `matrix` (ITK refuses rounding errors of qforms)."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ vt


def bias_field(image: Nifti1Image, mask: Nifti1Image, *, iterations: Sequence[int] = (100, 100)) -> Nifti1Image:
    """N4 bias field (multiplicative, mean 1 in the mask) of an image that is already coarse.

    Knots are 100 mm apart at the last level; closer ones take contrast of tissues with the field, see `bias.even`.

    References
    ----------
    Tustison et al. 2010, doi:10.1109/TMI.2010.2046908.
    """
    field = ants.n4_bias_field_correction(
        to_ants(image),
        mask=to_ants(mask),
        shrink_factor=4,
        convergence={"iters": list(iterations), "tol": 1e-5},
        spline_param=200.0,
        return_bias_field=True,
    )
    out = from_ants(field)
    data = np.asarray(out.dataobj, dtype=np.float32)
    inside = np.asarray(mask.dataobj) > 0
    data = np.clip(data / max(float(data[inside].mean()), 1e-6), 0.2, 5.0)
    return nib.Nifti1Image(data, image.affine)


def register(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    *,
    kind: str,
    work_dir: Path,
    fixed_mask: Nifti1Image | None = None,
    initial: Transform | None = None,
    metric: str = "mattes",
    iterations: Sequence[int] = (40, 20, 10),
) -> Transform:
    """Estimate the transform that brings `moving` onto `fixed`.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        3-D images, best at about 2 mm.
    kind : {'rigid', 'affine', 'deformable'}
        ``deformable`` is SyN without a linear stage, and needs `initial`.
    work_dir : Path
        Where the ITK transform files go.
    fixed_mask : Nifti1Image, optional
        Where the metric counts.
    initial : Transform, optional
        Start; by default the centres of mass are matched. A rigid one is taken to be nearly right.
    metric : str
        SyN metric, ``mattes`` or ``CC``.
    iterations : sequence of int
        SyN iterations per level, coarse to fine (shrink 4, 2, 1).

    References
    ----------
    Avants et al. 2008, doi:10.1016/j.media.2007.06.004.
    """
    names = {"rigid": "Rigid", "affine": "Affine", "deformable": "SyNOnly"}
    levels = (_RIGID_NEAR if initial else _RIGID) if kind == "rigid" else _AFFINE
    ants.config._random_seed = _SEED
    with _scratch() as prefix:
        result = ants.registration(
            to_ants(fixed),
            to_ants(moving),
            type_of_transform=names[kind],
            outprefix=prefix,
            mask=None if fixed_mask is None else to_ants(fixed_mask),
            mask_all_stages=fixed_mask is not None and kind == "deformable",
            initial_transform=None if initial is None else [str(p) for p in initial.forward],
            **levels,
            syn_metric=metric,
            syn_sampling=2 if metric == "CC" else 32,
            reg_iterations=tuple(iterations),
        )
        return _keep(result, work_dir=Path(work_dir), kind=kind)


def affine(matrix: np.ndarray, work_dir: Path) -> Transform:
    """A 4 x 4 RAS matrix (mm to mm) from fixed to moving space as a file; the inverse of `linear_matrix`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / "affine.mat"
    _write_affine(_RAS_TO_LPS @ matrix @ _RAS_TO_LPS, path)
    return Transform((path,), (path,), (True,))


def identity(work_dir: Path) -> Transform:
    """A transform that moves nothing, as a file."""
    return affine(np.eye(4), work_dir)


def _write_affine(lps: np.ndarray, path: Path) -> None:
    """A 4 x 4 matrix between LPS millimetres as an ITK file."""
    step = ants.new_ants_transform(dimension=3, transform_type="AffineTransform")
    step.set_parameters([*lps[:3, :3].ravel(), *lps[:3, 3]])
    step.set_fixed_parameters([0.0, 0.0, 0.0])
    ants.write_transform(step, str(path))


def _keep(result: dict, *, work_dir: Path, kind: str) -> Transform:
    """Move the files of a finished registration to the work directory."""
    work_dir.mkdir(parents=True, exist_ok=True)
    moved: dict[str, Path] = {}
    for name in dict.fromkeys([*result["fwdtransforms"], *result["invtransforms"]]):
        target = work_dir / f"{kind}_{len(moved)}{''.join(Path(name).suffixes)[-7:]}"
        shutil.copyfile(name, target)
        moved[name] = target
    forward = tuple(moved[n] for n in result["fwdtransforms"])
    inverse = tuple(moved[n] for n in result["invtransforms"])
    return Transform(forward, inverse, tuple(p.suffix == ".mat" for p in inverse))


def apply(
    image: Nifti1Image,
    grid: Nifti1Image,
    transform: Transform,
    *,
    inverse: bool = False,
    interpolation: str = "linear",
) -> Nifti1Image:
    """Resample `image` onto `grid` through `transform`; outside the field of view the value is 0.

    Parameters
    ----------
    image : Nifti1Image
        3-D or 4-D (each volume is resampled).
    grid : Nifti1Image
        Defines shape and affine of the result.
    inverse : bool
        False: `image` lives in the moving space of `transform`; True: in its fixed space.
    interpolation : {'linear', 'bSpline', 'nearestNeighbor', 'genericLabel'}
    """
    files = [str(p) for p in (transform.inverse if inverse else transform.forward)]
    invert = list(transform.invert) if inverse else [False] * len(files)
    fixed = to_ants(nib.Nifti1Image(np.zeros(grid.shape[:3], np.float32), grid.affine))
    volumes = [image] if image.ndim == 3 else nib.four_to_three(image)
    out = [
        ants.apply_transforms(
            fixed, to_ants(v), files, whichtoinvert=invert, interpolator=interpolation, singleprecision=True
        ).numpy()
        for v in volumes
    ]
    data = out[0] if image.ndim == 3 else np.stack(out, axis=-1)
    return nib.Nifti1Image(data.astype(np.float32, copy=False), grid.affine)


def linear_matrix(transform: Transform) -> np.ndarray:
    """4 x 4 RAS matrix (mm to mm) from fixed to moving space of a rigid or affine transform."""
    matrix = np.eye(4)
    for path in transform.forward:
        itk = ants.read_transform(str(path))
        values, centre = np.asarray(itk.parameters), np.asarray(itk.fixed_parameters)
        step = np.eye(4)
        step[:3, :3] = values[:9].reshape(3, 3)
        step[:3, 3] = values[9:] + centre - step[:3, :3] @ centre
        matrix = step @ matrix
    return _RAS_TO_LPS @ matrix @ _RAS_TO_LPS


@contextmanager
def _scratch():
    """A prefix in a directory of its own, removed afterwards (ANTs leaves files behind)."""
    folder = Path(tempfile.mkdtemp(prefix="epvs-ants-"))
    try:
        yield str(folder / "t_")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_world_transform(transform: Transform, native: Nifti1Image, template: Nifti1Image, path: Path) -> None:
    """Write the inverse of `transform` (canonical frame to template) as one ITK file.

    The file is a displacement field at 2 mm on the axes of the template. With ``antsApplyTransforms -r template -i
    T2w -t FILE`` it carries images of the scan, in its scanner space, onto the template.

    Parameters
    ----------
    native : Nifti1Image
        Grid of the T2w as stored.
    template : Nifti1Image
        The standard space.
    """
    lps = _RAS_TO_LPS @ canonical_to_world(native) @ _RAS_TO_LPS
    with _scratch() as prefix:
        _write_affine(lps, Path(prefix + "frame.mat"))
        field = ants.apply_transforms(
            to_ants(iso_grid(template, 2.0)),
            to_ants(nib.Nifti1Image(np.zeros(native.shape[:3], np.float32), native.affine)),
            [*(str(p) for p in transform.inverse), prefix + "frame.mat"],
            whichtoinvert=[*transform.invert, False],
            compose=prefix,
        )
        _write_field(ants.image_read(field), path)


def _write_field(field: ants.ANTsImage, path: Path) -> None:
    """A displacement field as an ITK HDF5 transform (antspyx writes linear transforms only)."""
    import h5py

    vectors = field.numpy().astype(np.float32)
    geometry = [*vectors.shape[:3], *field.origin, *field.spacing, *np.asarray(field.direction).ravel()]
    text = h5py.string_dtype(encoding="ascii")
    with h5py.File(path, "w") as file:
        for name, value in (("ITKVersion", "5.4.0"), ("HDFVersion", "1.14"), ("OSName", "any"), ("OSVersion", "any")):
            file.create_dataset(name, data=[value], dtype=text)
        group = file.create_group("TransformGroup/0")
        group.create_dataset("TransformType", data=["DisplacementFieldTransform_float_3_3"], dtype=text)
        group.create_dataset("TransformFixedParameters", data=np.asarray(geometry, np.float64))
        flat = vectors.transpose(2, 1, 0, 3).ravel()
        group.create_dataset("TransformParameters", data=flat, compression="gzip", compression_opts=4)
