"""Heads with lesions and EPVS as they are kept for `synth.stream`, which deforms and images them on a GPU.

`generate` (called by ``bids_epvs-train NETWORK --minutes``) writes ``example-00000.npz`` and on: label maps in the
shape they have, with atrophy, lesions, vessels and EPVS drawn at random, a tenth of a second of reading each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.synth import anatomy, parcels
from bids_epvs.synth.anatomy import Anatomy

LABELS = np.array([0, *ATLAS_LABELS, *anatomy.ADDED], np.int16)
"""Label of each number that is stored; fewer than 64."""


def example(rng: np.random.Generator, head: Anatomy) -> dict[str, Any]:
    """One head at `parcels.SPACING_MM`.

    Returns
    -------
    dict
        ``numbers`` (uint8, X, Y, Z: positions in `LABELS`), ``filled`` (uint8, 255 = full of EPVS), ``affine`` and
        ``to_template`` (4 x 4).
    """
    if not np.allclose(head.spacing, parcels.SPACING_MM):
        head = anatomy.deformed(head, rng, spacing=parcels.SPACING_MM, amount=0)
    made, filled = parcels.painted(rng, head)
    labels, affine = anatomy.cut(made.labels, made.affine, made.labels > 0, 1)
    order = np.argsort(LABELS)
    numbers = order[np.searchsorted(LABELS, labels, sorter=order)].astype(np.uint8)
    return {
        "numbers": numbers,
        "filled": anatomy.cut(filled, made.affine, made.labels > 0, 1)[0],
        "affine": affine,
        "to_template": made.to_template,
    }


generate = partial(parcels.generate, make=example, stream=3)
"""As `parcels.generate`, of heads that are not imaged yet."""
