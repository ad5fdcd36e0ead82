"""Training examples of the network that looks again at the deep grey matter: boxes of the heads of `synth.parcels`.

`generate` (called by ``bids_epvs-train nuclei``) writes ``example-00000.npz`` and on: heads and images as for the
parcellation network, what that network (packaged weights) says of them, and the intensities at 1 mm.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bids_epvs.models import nuclei, parcellation
from bids_epvs.synth import parcels
from bids_epvs.synth.anatomy import Anatomy


def example(rng: np.random.Generator, head: Anatomy) -> dict[str, Any]:
    """For each of `parcellation.CONTRASTS`: intensities, those of the tissues, and what is known; codes of both halves.

    ``NAME`` is uint8 (127.5 = the top of the brain) on both boxes at 1 mm, ``NAME_fit`` float32 (2, tissues) mean and
    variance, ``NAME_known`` uint8 (255 = 1) at 2 mm; ``codes`` are class numbers (uint8) at 1 mm.
    """
    images, pose, labels = parcels.acquired(rng, head)
    out: dict[str, Any] = {}
    for name, image in images.items():
        values = parcellation.on_grid(image, pose, parcellation.grid())
        fit = parcellation.fitted(values)
        sides = parcellation.seen_halves(parcellation.network(), parcellation.likened(values, fit))
        near = nuclei.halves(parcellation.on_grid(image, pose, nuclei.grid())) / fit.top
        out[name] = np.rint(np.clip(near, 0, 2) * 127.5).astype(np.uint8)
        out[f"{name}_fit"] = np.stack(fit[1:]).astype(np.float32)
        out[f"{name}_known"] = np.rint(sides[(slice(None), *nuclei.BOX)] * 255).astype(np.uint8)
    fine = tuple(slice(nuclei.FINE * s.start, nuclei.FINE * s.stop) for s in nuclei.BOX)
    return {**out, "codes": parcellation.half_codes(parcels.codes(labels, pose))[(slice(None), *fine)]}


generate = partial(parcels.generate, make=example, stream=1)
"""As `parcels.generate`, of boxes, and of other deformations than there."""
