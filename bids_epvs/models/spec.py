"""What a method declares about itself, so that pipeline, report, documentation and tests can iterate over methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bids_epvs.records import Prediction, Prepared


@dataclass(frozen=True)
class Weights:
    """Trained parameters of a network and where they come from.

    Attributes
    ----------
    file : str
        Name in ``bids_epvs/data/weights``.
    sha256 : str
        Checked before use.
    licence, trained_on : str
        Terms, and the data in words.
    metrics : mapping
        Held-out figures.
    own : mapping
        Parameters of the same network for some scans alone: ``turned`` (thick coronal and sagittal slices,
        `planes.kind`), or a contrast.
    """

    file: str
    sha256: str
    licence: str
    trained_on: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    own: Mapping[str, Weights] = field(default_factory=dict)

    def of(self, scan: str) -> Weights:
        """Those for a kind of scan: its own, or else these."""
        return self.own.get(scan, self)


@dataclass(frozen=True)
class ModelSpec:
    """One method.

    Attributes
    ----------
    name : str
        Key of MODELS and label in file names (letters and digits only).
    title : str
        A line for the report.
    doi : str
        Of the paper.
    citation : str
        For the methods text of the report.
    task : {'segmentation', 'count', 'rating', 'severity'}
    suffixes : tuple of str
        Sequences used.
    regions : tuple of str
        Names of `prepare.regions.NAMES` it speaks about.
    predict : callable
        ``predict(prepared, parameters) -> Prediction``, in the canonical frame.
    parameters : mapping
        Defaults of `predict`; recorded with every result and part of its hash.
    spacing, shape, normalise : optional
        What a network expects of its input.
    build : callable, optional
        Network.
    network : callable, optional
        What reads its weights, a file or by default the packaged ones, once in a process.
    outputs : tuple of str
        What it writes: ``mask, probability, instances, saliency, findings``.
    explain : str
        Module of `bids_epvs.explain` whose ``explain(prepared, prediction, parameters)`` adds map or detections.
    saliency : str
        What the values of the map say, in words.
    weights : Weights, optional
        None for methods that need none.
    calibrated : bool
        Whether its values are probabilities.
    axial : bool
        Whether it needs axial slices, if slices are thick; other methods see them as they were acquired.
    needs_t2w : bool
        Whether it cannot do without a T2w.
    deviations : tuple of str
        Every difference from the paper.
    """

    name: str
    title: str
    doi: str
    citation: str
    task: str
    suffixes: tuple[str, ...]
    regions: tuple[str, ...]
    predict: Callable[[Prepared, Mapping[str, Any]], Prediction]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    spacing: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    normalise: str = ""
    build: Callable[..., Any] | None = None
    network: Callable[..., Any] | None = None
    outputs: tuple[str, ...] = ("mask", "probability", "instances")
    explain: str = ""
    saliency: str = ""
    weights: Weights | None = None
    calibrated: bool = False
    axial: bool = False
    needs_t2w: bool = True
    deviations: tuple[str, ...] = ()


def recorded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they go into a result: without the path of the weights, whose checksum is recorded."""
    return {k: v for k, v in parameters.items() if k != "weights"}
