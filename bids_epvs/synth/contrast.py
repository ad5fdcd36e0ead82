"""From labels and tubes to an image: tissue intensities, slices, partial volume, the scanner's k-space and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, ndimage

from bids_epvs.prepare import planes
from bids_epvs.prepare.fields import smooth_field
from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.synth.anatomy import FLOW_VOID, LACUNE, LACUNE_RIM, WMH_LEFT, WMH_RIGHT

MEANS: Mapping[str, Mapping[str, float]] = {
    "T2w": {
        **{"WM": 395, "GM": 520, "DGM": 430, "Pallidum": 320, "CSF": 1152, "WMH": 657, "FlowVoid": 120},
        **{"Eye": 1150, "Soft": 280, "Mucosa": 800, "Skin": 700, "Vessel": 180, "Bone": 50, "Marrow": 420},
    },
    "T1w": {
        **{"WM": 900, "GM": 600, "DGM": 720, "Pallidum": 810, "CSF": 230, "WMH": 690, "FlowVoid": 350},
        **{"Eye": 250, "Soft": 520, "Mucosa": 620, "Skin": 1000, "Vessel": 380, "Bone": 60, "Marrow": 950},
    },
    "FLAIR": {
        **{"WM": 420, "GM": 540, "DGM": 470, "Pallidum": 380, "CSF": 110, "WMH": 780, "FlowVoid": 100},
        **{"Eye": 120, "Soft": 330, "Mucosa": 620, "Skin": 600, "Vessel": 150, "Bone": 50, "Marrow": 430},
    },
    "SWI": {
        **{"WM": 520, "GM": 580, "DGM": 500, "Pallidum": 360, "CSF": 620, "WMH": 560, "FlowVoid": 700},
        **{"Eye": 640, "Soft": 420, "Mucosa": 320, "Skin": 520, "Vessel": 200, "Bone": 60, "Marrow": 300},
    },
}
"""Typical intensity of each tissue at 3 T (arbitrary units; T2w after Bernal et al. 2022, cortex brighter)."""
AT_15_TESLA: Mapping[str, Mapping[str, float]] = {
    "T2w": {"Pallidum": 1.1, "DGM": 1.03},
    "T1w": {"GM": 1.06, "CSF": 0.9},
    "FLAIR": {"CSF": 1.2, "WMH": 0.95},
    "SWI": {"Pallidum": 1.2, "Vessel": 1.4},
}
"""Factors on `MEANS` at 1.5 T."""
EXTRA = {WMH_LEFT: "WMH", WMH_RIGHT: "WMH", LACUNE: "CSF", LACUNE_RIM: "WMH", FLOW_VOID: "FlowVoid"}
RANDOM = "random"
"""Name of the contrast whose tissues have random intensities (domain randomisation)."""


@dataclass(frozen=True)
class Protocol:
    """How an image is acquired.

    Attributes
    ----------
    spacing : tuple of float
        Reconstructed voxel sizes (mm) along R, A, S; along `resample.slice_axis` the distance of slices.
    thickness : float
        Of a slice, mm; the rest of the distance is a gap.
    matrix : float
        Share of the in-plane matrix that is acquired; the rest is zero-filled (interpolation, Gibbs ringing).
    snr : float
        White matter signal over noise; where `depth` is not 1, halfway between the middle of the head and its rim.
    bias : float
        Standard deviation of the logarithm of the coil field.
    tesla : float
        1.5 or 3.
    ghost : float
        Amplitude of the ghost half a field of view away, relative.
    motion_mm : float
        Displacement of the head during part of the acquisition.
    depth : float
        Noise in the middle of the head over that at its rim, which coil arrays hear better.
    """

    spacing: tuple[float, float, float]
    thickness: float
    matrix: float = 1.0
    snr: float = 30.0
    bias: float = 0.08
    tesla: float = 3.0
    ghost: float = 0.0
    motion_mm: float = 0.0
    depth: float = 1.0


SNR = (8.0, 35.0)
"""Range of `Protocol.snr` at 1.5 T, log-uniform (at 3 T 1.3 times that): the noise of clinical scans of today, and of
those twice as grainy."""
DEEPEST = 3.0
"""Largest `Protocol.depth` that is drawn."""


def draw_protocol(rng: np.random.Generator, kind: str) -> Protocol:
    """A random protocol.

    Parameters
    ----------
    rng : Generator
    kind : str
        ``research`` (isotropic), ``clinical`` (thick axial slices), ``mixed`` (one of both), ``coronal`` or
        ``sagittal`` (thick ones too).
    """
    if kind in planes.NAMES[: planes.AXIAL]:
        return turned(draw_protocol(rng, "clinical"), planes.NAMES.index(kind))
    if kind == "mixed":
        kind = ("research", "clinical")[int(rng.integers(2))]
    tesla = float(rng.choice([1.5, 3.0]))
    if kind == "research":
        side = round(float(rng.uniform(0.7, 1.0)), 2)
        spacing, thickness = (side, side, side), side
    else:
        side, distance = round(float(rng.uniform(0.4, 0.8)), 3), round(float(rng.uniform(2.5, 6.0)), 1)
        spacing, thickness = (side, side, distance), round(distance * float(rng.uniform(0.8, 1.0)), 2)
    return Protocol(
        spacing=spacing,
        thickness=thickness,
        matrix=round(float(rng.uniform(0.6, 1.0)), 2),
        snr=round(float(np.exp(rng.uniform(*np.log(SNR))) * (1.3 if tesla == 3.0 else 1.0)), 1),
        bias=round(float(rng.uniform(0.03, 0.1) * (1.5 if tesla == 3.0 else 1.0)), 3),
        tesla=tesla,
        ghost=round(float(rng.exponential(0.004)), 4),
        motion_mm=round(float(rng.exponential(0.3) * (rng.random() < 0.4)), 2),
        depth=round(float(np.exp(rng.uniform(0, np.log(DEEPEST)))), 2),
    )


def turned(protocol: Protocol, axis: int) -> Protocol:
    """A protocol of axial slices with them across another axis."""
    side, _, distance = protocol.spacing
    x, y, z = (distance if a == axis else side for a in range(3))
    return replace(protocol, spacing=(x, y, z))


def draw_means(rng: np.random.Generator, contrast: str, tesla: float = 3.0) -> dict[str, float]:
    """Mean of each tissue: typical with 4 % variation, or anything for `RANDOM`."""
    if contrast == RANDOM:
        means = {name: float(rng.uniform(50, 1000)) for name in MEANS["T2w"]}
        means["CSF"] = means["WM"] + float(rng.choice([-1, 1]) * rng.uniform(150, 700))
        low = min(means.values())
        return {name: value - min(low, 0.0) + 20 for name, value in means.items()}
    factor = AT_15_TESLA[contrast] if tesla < 2 else {}
    return {k: v * factor.get(k, 1.0) * float(np.exp(rng.normal(0, 0.04))) for k, v in MEANS[contrast].items()}


def intensity_table(rng: np.random.Generator, means: Mapping[str, float]) -> np.ndarray:
    """Intensity of each label, float32: the mean of its tissue, varied by 2 %."""
    table = np.zeros(1024, np.float32)
    tissues = {i: e.tissue for i, e in ATLAS_LABELS.items()} | EXTRA
    for index, tissue in tissues.items():
        table[index] = means[tissue] * (1 + rng.normal(0, 0.02))
    return table


def averaging(n: int, step: float, centres: np.ndarray, width: float, *, soft: float = 0.0) -> np.ndarray:
    """Weights that average a fine axis over wider windows.

    Parameters
    ----------
    n : int
        Fine voxels; voxel k spans from k to k + 1 times `step`.
    step, width : float
        Fine voxel size and width of the window, mm.
    centres : ndarray
        Centres of the windows, mm from the start of the axis.
    soft : float
        Share of the window over which a slice profile rises and falls (0: rectangular).

    Returns
    -------
    ndarray of float32
        (len(centres), n), rows sum to 1 where the window lies inside.
    """
    x = np.arange(n + 1) * step - centres[:, None]
    if soft == 0:
        area = np.clip(x, -width / 2, width / 2)
    else:  # a trapezoid: two boxes convolved
        ramp = soft * width

        def rise(at: np.ndarray) -> np.ndarray:
            return np.maximum(at, 0) ** 2 / 2

        far, near = (width + ramp) / 2, (width - ramp) / 2
        area = (rise(x + far) - rise(x + near) - rise(x - near) + rise(x - far)) / ramp
    return (np.diff(area, axis=1) / width).astype(np.float32)


def average(volume: np.ndarray, weights: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Separable average of a (X, Y, Z) volume with one matrix an axis (float32)."""
    out = np.asarray(volume, np.float32) @ weights[2].T
    out = np.tensordot(weights[0], out, axes=(1, 0))
    return np.ascontiguousarray(np.moveaxis(np.tensordot(weights[1], out, axes=(1, 1)), 0, 1))


def bias_field(shape: tuple[int, ...], rng: np.random.Generator, strength: float) -> np.ndarray:
    """Smooth positive field with mean near 1 (float32)."""
    return np.exp(smooth_field(rng.normal(0, strength, (4, 4, 4)), shape))


def texture(shape: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Multiplicative texture of tissue: noise with a grain of 1.2 mm, 2.5 % (float32)."""
    grain = ndimage.gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), [1.2 / s for s in spacing], truncate=3
    )
    return 1 + np.float32(0.025) * grain / max(float(grain.std()), 1e-6)


MIDDLE_MM = (0.0, -15.0, -5.0)
"""Where coils hear least: in the template, mm."""
_NEAR_MM = 35.0
"""How far from there noise falls (standard deviation of a Gaussian)."""


def noise_map(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], middle: np.ndarray, depth: float
) -> np.ndarray:
    """Factors on the noise of an image, from the square root of `depth` to its inverse (float32).

    Parameters
    ----------
    shape, spacing
        Of the image, mm.
    middle : ndarray
        Of the head, mm from the outer corner of the image.
    depth : float
        `Protocol.depth`.
    """
    x, y, z = (
        np.exp(-0.5 * (((np.arange(n) + 0.5) * s - m) / _NEAR_MM) ** 2)
        for n, s, m in zip(shape, spacing, middle, strict=True)
    )
    near = x[:, None, None] * y[:, None] * z
    return np.float32(depth) ** (near - 0.5).astype(np.float32)


def through_scanner(
    image: np.ndarray, rng: np.random.Generator, protocol: Protocol, sigma: float | np.ndarray
) -> np.ndarray:
    """What a scanner makes of an ideal image: truncated k-space, ghost, motion, complex noise; the magnitude.

    Parameters
    ----------
    image : ndarray
        (X, Y, Z); slices lie along the third axis, phase is encoded along the second axis.
    rng : Generator
    protocol : Protocol
    sigma : float or ndarray
        Standard deviation of the noise of each channel in the image, or in each of its voxels.
    """
    nx, ny, _ = image.shape
    k = fft.fft2(image.astype(np.complex64), axes=(0, 1))
    turn, window = k_space((nx, ny), rng, protocol)
    k *= turn[..., None]
    noise = np.empty_like(k)
    noise.real, noise.imag = (rng.standard_normal(k.shape, dtype=np.float32) for _ in range(2))
    noise *= noise_scale(window, 1.0)
    signal, noise = (fft.ifft2(a * window[..., None], axes=(0, 1), overwrite_x=True) for a in (k, noise))
    return np.abs(signal + noise * np.float32(sigma))


def k_space(shape: tuple[int, int], rng: np.random.Generator, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """What each frequency of a slice is multiplied with: before the noise (motion, ghost; complex64), and after it."""
    nx, ny = shape
    fx, fy = np.abs(fft.fftfreq(nx)) * 2, np.abs(fft.fftfreq(ny)) * 2
    window = (_edge(fx, protocol.matrix)[:, None] * _edge(fy, protocol.matrix)[None, :]).astype(np.float32)
    before = np.ones(shape, np.complex64)
    if protocol.motion_mm > 0:
        lines = fy > rng.uniform(0.15, 0.5)
        lines &= fft.fftfreq(ny) * (1 if rng.random() < 0.5 else -1) > 0
        shift = rng.normal(0, protocol.motion_mm, 2) / np.array(protocol.spacing[:2])
        turn = np.exp(-2j * np.pi * (fft.fftfreq(nx)[:, None] * shift[0] + fft.fftfreq(ny)[None] * shift[1]))
        before *= np.where(lines[None], turn, 1).astype(np.complex64)
    if protocol.ghost > 0:
        odd = (np.arange(ny) % 2).astype(np.float32)
        before *= (1 - 2 * protocol.ghost * odd)[None, :]
    return before, window


def noise_scale(window: np.ndarray, sigma: float) -> np.float32:
    """Standard deviation of noise in k-space that leaves `sigma` in the image behind a window."""
    return np.float32(sigma * window.size / np.sqrt(float((window**2).sum())))


def _edge(frequency: np.ndarray, share: float) -> np.ndarray:
    """Window over frequencies (0-1): 1 inside, falling over the last tenth of `share`, 0 beyond."""
    return np.clip((share - frequency) / (0.1 * share) + 1e-6, 0, 1) if share < 1 else np.ones_like(frequency)


def weights(
    shape: tuple[int, ...], step: float, out: tuple[int, int, int], protocol: Protocol, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averaging matrices from a fine block to an acquired one.

    Parameters
    ----------
    shape, step
        Of the fine block, mm.
    out : tuple of int
        Shape of the acquired block.
    start : ndarray
        Outer corner of the acquired block, mm from that of the fine one.
    """
    made = []
    for axis in range(3):
        spacing = protocol.spacing[axis]
        centres = start[axis] + (np.arange(out[axis]) + 0.5) * spacing
        thick = axis == 2 and protocol.thickness < spacing - 1e-6
        width = protocol.thickness if axis == 2 else spacing
        made.append(averaging(shape[axis], step, centres, width, soft=0.2 if thick else 0.0))
    return made[0], made[1], made[2]
