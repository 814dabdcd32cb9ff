"""Conversion between 8-bit sRGB and linear light (IEC 61966-2-1), and luma."""

from __future__ import annotations

import cv2
import numpy as np

SRGB = np.arange(256, dtype=np.float64) / 255
LINEAR = np.where(SRGB <= 0.04045, SRGB / 12.92, ((SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)
CODES = np.arange(256, dtype=np.float32) / 255


def code_values(linear: bool) -> np.ndarray:
    """(256,) fp32: the value in [0, 1] of each 8-bit code: linear light if `linear`, otherwise sRGB."""
    return LINEAR if linear else CODES


def to_codes(values: np.ndarray, linear: bool) -> np.ndarray:
    """Values in [0, 1] (clipped) to uint8 codes. Linear light passes through the sRGB curve."""
    values = np.clip(values, 0, 1)
    if linear:
        values = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    if values.dtype == np.float32:
        return cv2.convertScaleAbs(values, alpha=255)  # the same rounding in one pass
    return np.rint(values * 255).astype(np.uint8)


def luma(frame: np.ndarray) -> np.ndarray:
    """Rec. 601 luma (H,W) uint8 of an RGB frame: 0.299 R + 0.587 G + 0.114 B."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
