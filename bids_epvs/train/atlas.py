"""Make the packaged atlas: label maps of real heads, registered to ICBM152 and averaged.

``python -m bids_epvs.train.atlas LABELMAPS bids_epvs/data/atlas`` reads ``sub-XX_dseg.nii.gz`` files with FreeSurfer
indices (extra-cerebral tissue 500-530), of the subjects in ``ATLAS_SUBJECTS``, and writes

- ``tpl-MNI152NLin2009aSym_res-15_atlas-EPVS_probseg.nii.gz``: one volume a tissue or structure, uint8, 255 = certain;
- ``..._probseg.tsv``: which volume is what;
- ``..._probseg.json``: subjects, command and versions.

Each label map is turned into a T1-like brain and registered (affine, then SyN) to the ICBM152 2009a symmetric T1w
that nilearn carries; labels are resampled one by one, mirrored to double the sample, and averaged (majority voting
with soft votes). Subjects in ``HELD_OUT_SUBJECTS`` are never used, so that the regions can be judged on them.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.nifti1 import Nifti1Image

from bids_epvs import process
from bids_epvs.prepare.labels import ATLAS_LABELS, mirrored
from bids_epvs.prepare.regions import simplify
from bids_epvs.prepare.resample import iso_grid, resample
from bids_epvs.prepare.template import icbm152
from bids_epvs.train import ATLAS_SUBJECTS

logger = logging.getLogger(__name__)

SPACING_MM = 1.5
NAME = "tpl-MNI152NLin2009aSym_res-15_atlas-EPVS_probseg"
_T1W = {2: 1.0, 41: 1.0, 3: 0.62, 42: 0.62, 8: 0.66, 47: 0.66, 24: 0.3, 4: 0.25, 43: 0.25, 14: 0.25, 15: 0.25}


def t1w_like(labels: np.ndarray) -> np.ndarray:
    """A T1w-like brain (0-1) from simplified labels; what is not brain is 0."""
    out = np.zeros(labels.shape, np.float32)
    for index, entry in ATLAS_LABELS.items():
        if entry.brain:
            out[labels == index] = _T1W.get(index, 0.82)
    out[labels == 7] = out[labels == 46] = 0.9
    return out


def atlas_grid() -> Nifti1Image:
    """The template's field of view at `SPACING_MM`, symmetric about x = 0, so that it can be mirrored by its voxels."""
    grid = iso_grid(icbm152("T1w"), SPACING_MM)
    affine = grid.affine.copy()
    affine[0, 3] = -SPACING_MM * (grid.shape[0] - 1) / 2
    return nib.Nifti1Image(np.zeros(grid.shape, np.uint8), affine)


def votes(path: Path) -> np.ndarray:
    """Soft votes of one label map in template space, float32 (X, Y, Z, labels)."""
    from bids_epvs.prepare import ants

    source = nib.load(path)
    labels = simplify(np.asarray(source.dataobj))
    grid = atlas_grid()
    template = resample(icbm152("T1w"), grid)
    head = nib.Nifti1Image(t1w_like(labels), source.affine)
    brain = resample(head, iso_grid(head, SPACING_MM))
    with tempfile.TemporaryDirectory() as work:
        affine = ants.register(template, brain, kind="affine", work_dir=Path(work) / "affine")
        warp = ants.register(
            template,
            brain,
            kind="deformable",
            work_dir=Path(work) / "warp",
            initial=affine,
            iterations=(80, 60, 20),
        )
        out = np.zeros((*grid.shape, len(ATLAS_LABELS)), np.float32)
        for k, index in enumerate(ATLAS_LABELS):
            one = nib.Nifti1Image((labels == index).astype(np.float32), source.affine)
            out[..., k] = np.asarray(ants.apply(one, grid, warp).dataobj)
    logger.info("%s registered", path.name)
    return out


def mirror(probabilities: np.ndarray) -> np.ndarray:
    """Left-right mirrored votes with left and right labels exchanged (the grid is symmetric about x = 0)."""
    order = [list(ATLAS_LABELS).index(mirrored(index)) for index in ATLAS_LABELS]
    return probabilities[::-1, :, :, order]


def build(labelmaps: Path, *, processes: int = 2) -> Nifti1Image:
    """Average the votes of the atlas subjects; uint8 image (X, Y, Z, labels)."""
    files = [labelmaps / f"sub-{s}_dseg.nii.gz" for s in ATLAS_SUBJECTS]
    total: np.ndarray | None = None
    with process.pool(processes) as pool:
        for one in pool.map(votes, files):
            both = one + mirror(one)
            total = both if total is None else total + both
    assert total is not None  # ATLAS_SUBJECTS is not empty
    mean = total / (2 * len(files))
    grid = atlas_grid()
    return nib.Nifti1Image(np.round(mean * 255).astype(np.uint8), grid.affine)


def main(argv: list[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m bids_epvs.train.atlas", description=__doc__.split("\n")[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--nprocs", type=int, default=2)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    atlas = build(args.labelmaps, processes=args.nprocs)
    args.out.mkdir(parents=True, exist_ok=True)
    nib.save(atlas, args.out / f"{NAME}.nii.gz")
    rows = [{"volume": k, "index": i, "name": e.name} for k, (i, e) in enumerate(ATLAS_LABELS.items())]
    pd.DataFrame(rows).to_csv(args.out / f"{NAME}.tsv", sep="\t", index=False)
    about = {
        "Description": "Mean of label maps of real heads registered to ICBM152 2009a symmetric, mirrored",
        "Scale": "255 = probability 1",
        "Subjects": [f"sub-{s}" for s in ATLAS_SUBJECTS],
        "Source": "training label maps of BBillot/SynthSeg (Apache-2.0)",
        "License": "Apache-2.0",
        "Command": "python -m bids_epvs.train.atlas LABELMAPS bids_epvs/data/atlas",
    }
    (args.out / f"{NAME}.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
