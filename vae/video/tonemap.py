"""Show HDR and wide-gamut pictures as BT.709: linear light, a tone curve, a change of primaries, BT.1886's gamma.

Sources: SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG), both in ITU-R BT.2100; BT.2390-11, 5.4.1 (tone curve); BT.2408
(203 cd/m2 is the white of SDR); BT.1886 (gamma of an SDR display). Codes of primaries and transfers: ITU-T H.273.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

PQ, HLG = 16, 18  # transfer characteristics
GAMMA, HLG_GAMMA = 2.4, 1.2  # of an SDR display, and of a display of HLG at its nominal peak
SDR_WHITE, HLG_PEAK, PQ_PEAK = 203.0, 1000.0, 10_000.0  # cd/m2
BT709, UNSPECIFIED, BT2020, DCI_P3, DISPLAY_P3 = 1, 2, 9, 11, 12  # colour primaries
WHITE_D65, WHITE_DCI = (0.3127, 0.3290), (0.314, 0.351)
CHROMATICITIES = {  # (x, y) of red, green, blue and white
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), WHITE_D65),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), WHITE_D65),
    DCI_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), WHITE_DCI),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), WHITE_D65),
}
WIDE_PRIMARIES = (BT2020, DCI_P3, DISPLAY_P3)
BT2020_LUMA = (0.2627, 0.6780, 0.0593)
M1, M2 = 2610 / 16384, 2523 / 4096 * 128  # of PQ
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073
CURVE_POINTS = 4096


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Say whether pictures of these codes look wrong where they are shown as BT.709."""
    return transfer in (PQ, HLG) or primaries in WIDE_PRIMARIES


def to_bt709(pixels: Tensor, transfer: int, primaries: int, peak: float) -> Tensor:
    """Convert RGB codes (..., 3) from 0 to 65535 to BT.709 as uint8; `peak` is the brightest light in cd/m2.

    The tone curve takes the largest of red, green and blue from `peak` to the white of SDR, and scales all three alike,
    which keeps the hue. Without light above that white, nothing is compressed. Colours outside BT.709 are clipped.
    """
    light = to_light(pixels, transfer)
    if transfer in (PQ, HLG) and peak > SDR_WHITE:
        brightest = light.amax(-1, keepdim=True)
        light = light * (compress_light(brightest, peak) / brightest.clamp(min=1e-6))
    matrix = torch.from_numpy(_matrix_to_bt709(primaries if primaries in CHROMATICITIES else BT2020))
    shown = (light / SDR_WHITE) @ matrix.T.to(light)
    return (shown.clamp(0, 1) ** (1 / GAMMA) * 255).round().to(torch.uint8)


def to_light(pixels: Tensor, transfer: int) -> Tensor:
    """Convert RGB codes (..., 3) from 0 to 65535 to the light of a display in cd/m2, at most PQ_PEAK."""
    light = torch.from_numpy(_light_of_codes(transfer))[pixels.long()]
    if transfer == HLG:  # BT.2100: the light of the display from that of the scene
        luma = (light @ torch.tensor(BT2020_LUMA, dtype=light.dtype))[..., None]
        light = HLG_PEAK * luma.clamp(min=0) ** (HLG_GAMMA - 1) * light
    return light


def compress_light(light: Tensor, peak: float) -> Tensor:
    """Apply BT.2390's tone curve from `peak` to the white of SDR, both in cd/m2, for black at 0."""
    codes = np.linspace(0, 1, CURVE_POINTS)
    target = pq_code(np.array(SDR_WHITE)) / pq_code(np.array(peak))
    knee = 1.5 * target - 0.5
    t = (codes - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * target
    curve = np.where(codes < knee, codes, spline)
    place = torch.from_numpy(pq_code(light.numpy()) / pq_code(np.array(peak))).clamp(0, 1) * (CURVE_POINTS - 1)
    low = place.floor().clamp(max=CURVE_POINTS - 2)
    table = torch.from_numpy(curve * pq_code(np.array(peak)))
    code = torch.lerp(table[low.long()], table[low.long() + 1], (place - low).to(table))
    return torch.from_numpy(pq_light(code.numpy())).to(light)


def pq_code(light: np.ndarray) -> np.ndarray:
    """Return the PQ codes, from 0 to 1, of light in cd/m2."""
    y = np.clip(light / PQ_PEAK, 0, 1) ** M1
    return ((C1 + C2 * y) / (1 + C3 * y)) ** M2


def pq_light(code: np.ndarray) -> np.ndarray:
    """Return the light in cd/m2 of PQ codes from 0 to 1."""
    power = np.clip(code, 0, 1) ** (1 / M2)
    return PQ_PEAK * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)


@cache
def _light_of_codes(transfer: int) -> np.ndarray:
    """Return the light of each code from 0 to 65535: in cd/m2, or of HLG's scene from 0 to 1."""
    code = np.arange(2**16) / (2**16 - 1)
    if transfer == PQ:
        light = pq_light(code)
    elif transfer == HLG:
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - HLG_C) / HLG_A) + HLG_B) / 12)
    else:
        light = SDR_WHITE * code**GAMMA
    return light.astype(np.float32)


@cache
def _matrix_to_bt709(primaries: int) -> np.ndarray:
    """Return the matrix (3, 3) from linear RGB of these primaries to that of BT.709 (SMPTE RP 177).

    White stays white: where the white points differ, each channel is scaled in the cones' response (Bradford).
    """
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = bradford @ _xyz(WHITE_D65) / (bradford @ _xyz(CHROMATICITIES[primaries][3]))
    adapt = np.linalg.inv(bradford) @ np.diag(scale) @ bradford
    return (np.linalg.inv(_rgb_to_xyz(BT709)) @ adapt @ _rgb_to_xyz(primaries)).astype(np.float32)


def _rgb_to_xyz(primaries: int) -> np.ndarray:
    *colours, white = CHROMATICITIES[primaries]
    columns = np.stack([_xyz(colour) for colour in colours], axis=1)
    return columns * np.linalg.solve(columns, _xyz(white))


def _xyz(chromaticity: tuple[float, float]) -> np.ndarray:
    x, y = chromaticity
    return np.array([x / y, 1.0, (1 - x - y) / y])
