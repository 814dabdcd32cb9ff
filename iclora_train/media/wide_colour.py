"""Convert HDR (PQ, HLG) and wide primaries (BT.2020, P3) to BT.709 on an SDR screen.

The formulas are those of ITU-R BT.2100 and BT.1886. libswscale 9.5 does this too, but changes colours that both spaces
contain by up to 18 levels. SDR white is 203 cd/m2 (BT.2408). What is brighter, or outside BT.709, is cut per channel.
"""

from __future__ import annotations

from functools import cache

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
WIDE = {ColorPrimaries.BT2020: "BT.2020", ColorPrimaries.SMPTE431: "DCI-P3", ColorPrimaries.SMPTE432: "Display P3"}
SDR_WHITE = 203  # cd/m2
HLG_PEAK, HLG_GAMMA = 1000, 1.2  # of the screen that BT.2100 describes HLG for: cd/m2, exponent
SDR_GAMMA = 2.4  # BT.1886
D65, DCI_WHITE = (0.3127, 0.3290), (0.314, 0.351)
_CHROMATICITIES = {  # x, y of red, green, blue and white
    ColorPrimaries.BT709: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65),
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    ColorPrimaries.SMPTE431: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), DCI_WHITE),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def needs_conversion(frame: av.VideoFrame) -> bool:
    """Whether the frame's colours are not those of an SDR screen with BT.709 primaries."""
    return frame.color_trc in HDR or frame.color_trc == ColorTrc.LINEAR or frame.color_primaries in WIDE


def to_bt709(levels: np.ndarray, white: int, transfer: int, primaries: int) -> np.ndarray:
    """uint16 RGB (H,W,3) from 0 to `white` -> uint8 RGB in BT.709. transfer, primaries: the tags of the frame."""
    linear = _curve(transfer, white)[levels]
    if primaries not in _CHROMATICITIES:
        primaries = ColorPrimaries.BT2020 if transfer in HDR else ColorPrimaries.BT709
    if transfer == ColorTrc.ARIB_STD_B67:
        luminance = cv2.transform(linear, _rgb_to_xyz(primaries)[1:2].astype(np.float32))
        linear *= cv2.pow(luminance, HLG_GAMMA - 1)[..., None] * (HLG_PEAK / SDR_WHITE)
    linear = cv2.transform(linear, _matrix(primaries).astype(np.float32)).clip(0, 1)
    return cv2.convertScaleAbs(cv2.pow(linear, 1 / SDR_GAMMA), alpha=255)


@cache
def _curve(transfer: int, white: int) -> np.ndarray:
    """Linear light fp32 (65536,) of the levels: 1 is SDR white, for HLG the largest scene light."""
    signal = (np.arange(65536) / white).clip(0, 1)
    if transfer == ColorTrc.SMPTE2084:
        power = signal ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light *= 10000 / SDR_WHITE
    elif transfer == ColorTrc.ARIB_STD_B67:
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    else:
        light = signal if transfer == ColorTrc.LINEAR else signal**SDR_GAMMA
    return light.astype(np.float32)


def _matrix(primaries: int) -> np.ndarray:
    """Linear RGB of these primaries -> linear RGB of BT.709, white to white."""
    white = _BRADFORD @ _xyz(_CHROMATICITIES[ColorPrimaries(primaries)][3])
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _xyz(D65) / white) @ _BRADFORD
    return np.linalg.inv(_rgb_to_xyz(ColorPrimaries.BT709)) @ adaptation @ _rgb_to_xyz(primaries)


def _rgb_to_xyz(primaries: int) -> np.ndarray:
    """Linear RGB -> XYZ, where the luminance of white is 1."""
    *colours, white = map(_xyz, _CHROMATICITIES[ColorPrimaries(primaries)])
    columns = np.stack(colours, axis=1)
    return columns * np.linalg.solve(columns, white)


def _xyz(chromaticity: tuple[float, float]) -> np.ndarray:
    x, y = chromaticity
    return np.array([x / y, 1, (1 - x - y) / y])
