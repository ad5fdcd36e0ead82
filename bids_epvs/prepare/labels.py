"""Anatomical labels (FreeSurfer indices) and what each stands for; data, no code that touches images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Label(NamedTuple):
    """One anatomical label.

    Attributes
    ----------
    name : str
        FreeSurfer name.
    tissue : str
        ``WM``, ``GM``, ``DGM``, ``CSF``, or an extra-cerebral tissue.
    side : str
        ``left``, ``right`` or ``both`` (midline or unpaired).
    brain : bool
        Whether it lies inside the skull (brain or cerebrospinal fluid).
    """

    name: str
    tissue: str
    side: str = "both"
    brain: bool = True


def _pair(left: int, right: int, name: str, tissue: str) -> dict[int, Label]:
    return {left: Label(f"Left-{name}", tissue, "left"), right: Label(f"Right-{name}", tissue, "right")}


ATLAS_LABELS: dict[int, Label] = {
    **_pair(2, 41, "Cerebral-White-Matter", "WM"),
    **_pair(3, 42, "Cerebral-Cortex", "GM"),
    **_pair(4, 43, "Lateral-Ventricle", "CSF"),
    **_pair(7, 46, "Cerebellum-White-Matter", "WM"),
    **_pair(8, 47, "Cerebellum-Cortex", "GM"),
    **_pair(10, 49, "Thalamus", "DGM"),
    **_pair(11, 50, "Caudate", "DGM"),
    **_pair(12, 51, "Putamen", "DGM"),
    **_pair(13, 52, "Pallidum", "Pallidum"),
    14: Label("3rd-Ventricle", "CSF"),
    15: Label("4th-Ventricle", "CSF"),
    16: Label("Brain-Stem", "WM"),
    **_pair(17, 53, "Hippocampus", "GM"),
    **_pair(18, 54, "Amygdala", "GM"),
    24: Label("CSF", "CSF"),
    **_pair(26, 58, "Accumbens-area", "DGM"),
    **_pair(28, 60, "VentralDC", "DGM"),
    506: Label("Eyes", "Eye", brain=False),
    507: Label("Other-Tissue", "Soft", brain=False),
    509: Label("Mucosa", "Mucosa", brain=False),
    511: Label("Skin", "Skin", brain=False),
    512: Label("Spinal-Cord", "WM", brain=False),
    514: Label("Vein", "Vessel", brain=False),
    515: Label("Bone-Cortical", "Bone", brain=False),
    516: Label("Bone-Cancellous", "Marrow", brain=False),
}
"""The labels of the packaged atlas, in the order of its volumes."""
INDICES = np.array(list(ATLAS_LABELS), np.int16)

MERGED: dict[int, int] = {
    **{5: 4, 44: 43, 72: 14, 25: 2, 57: 41, 30: 2, 62: 41, 77: 2, 85: 24, 31: 4, 63: 43},
    **{80: 2, 78: 2, 79: 41, 251: 2, 252: 2, 253: 2, 254: 2, 255: 2, 9: 10, 48: 49},
    **{136: 2, 137: 2, 163: 41, 164: 41, 502: 507, 508: 507, 530: 507},
}
"""Further indices of FreeSurfer, SynthSeg and the heads' label maps, and the atlas label each joins."""


def mirrored(index: int) -> int:
    """The same structure on the other side (midline structures map to themselves)."""
    label = ATLAS_LABELS[index]
    if label.side == "both":
        return index
    other = label.name.replace("Left-", "?").replace("Right-", "Left-").replace("?", "Right-")
    return next(i for i, entry in ATLAS_LABELS.items() if entry.name == other)
