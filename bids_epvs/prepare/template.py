"""Standard space: the ICBM152 template that ships inside nilearn, TemplateFlow templates where they are installed."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.errors import UsageError

SPACE = "MNI152NLin2009aSym"
"""TemplateFlow identifier of the template inside nilearn (1 mm, skull-stripped, symmetric about x = 0)."""

_NILEARN = {
    "T1w": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "GM": "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
    "WM": "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
}


@cache
def icbm152(kind: str) -> Nifti1Image:
    """ICBM152 2009a symmetric at 1 mm: ``T1w`` (brain only), ``GM`` or ``WM`` probability, float32 in [0, 1]."""
    with as_file(files("nilearn.datasets").joinpath("data", _NILEARN[kind])) as path:
        image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32) / 255.0
    return nib.Nifti1Image(data, image.affine)


def space_grid(space: str) -> Nifti1Image:
    """The 1 mm grid of a standard space.

    Raises
    ------
    UsageError
        The space is neither the packaged one nor installed under TEMPLATEFLOW_HOME.
    """
    if space == SPACE:
        return icbm152("T1w")
    return nib.load(_templateflow_t1w(space))


def _templateflow_t1w(space: str) -> Path:
    """The T1w of a TemplateFlow template already on disk; nothing is ever downloaded."""
    home = os.environ.get("TEMPLATEFLOW_HOME")
    folder = Path(home or "/nonexistent") / f"tpl-{space}"
    found = sorted(p for p in folder.glob(f"tpl-{space}*_T1w.nii.gz") if p.stat().st_size > 0)
    whole = [p for p in found if "desc-" not in p.name]
    best = [p for p in whole if "res-01" in p.name or "res-1_" in p.name] or whole
    if not best:
        raise UsageError(
            f"output space {space!r} is neither {SPACE} nor a template with a T1w in TEMPLATEFLOW_HOME "
            f"({home or 'not set'}).",
            where="--output-spaces",
            remedy=f"Use {SPACE}, or install the template there and set TEMPLATEFLOW_HOME.",
        )
    return best[0]
