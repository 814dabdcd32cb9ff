"""The 18-point OpenPose skeleton: its points, limbs and colours, and its drawing.

Order, limbs and colours are from OpenPose's COCO model (Cao et al. 2018, arXiv 1812.08008;
CMU-Perceptual-Computing-Lab/openpose). DWPose and the pose workflows for LTX draw skeletons in the same way: limbs at
0.6 of their colour, with the joints on top.
"""

from __future__ import annotations

import cv2
import numpy as np

POINTS = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)
NECK, SHOULDERS = 1, (2, 5)
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
COLOURS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)  # RGB of the points; limb i has colour i
# Indices into the points of the other model, in OpenPose's order. -1 is the neck, computed from the shoulders.
FROM_BLAZEPOSE = (0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
FROM_COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
RADIUS = 4.5 / 512  # of joints and half the width of limbs, as a share of the short side
RIM = 0.5  # pixels that OpenCV draws beyond a radius
FRACTION = 4  # fractional bits of the coordinates given to OpenCV


def to_openpose(points: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Reorder points (...,K,3) of another model to OpenPose's (...,18,3).

    The neck is the middle of the shoulders, with the lower confidence of the two.
    """
    result = points[..., order, :].astype(np.float64)
    shoulders = result[..., SHOULDERS, :]
    result[..., NECK, :2] = shoulders[..., :2].mean(axis=-2)
    result[..., NECK, 2] = shoulders[..., 2].min(axis=-1)
    return result


def draw_skeletons(people: np.ndarray, size: tuple[int, int], unit: float) -> np.ndarray:
    """Draw skeletons (P,18,3) on black: uint8 RGB (H,W,3).

    A point is x, y in pixels and confidence; 0 means missing. Joints and limbs are as wide as DWPose draws them in
    pictures with a short side of `unit` pixels.
    """
    picture = np.zeros((*size, 3), np.uint8)
    radius = max(RADIUS * unit - RIM, 0.25)
    for person in people:
        for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
            if person[a, 2] > 0 and person[b, 2] > 0:
                dim = tuple(int(0.6 * value) for value in colour)
                outline = _fixed_point(_ellipse(person[a, :2], person[b, :2], radius))
                cv2.fillConvexPoly(picture, outline, dim, cv2.LINE_AA, FRACTION)
    for person in people:
        for (x, y, confidence), colour in zip(person, COLOURS, strict=True):
            if confidence > 0:
                centre, scaled = _fixed_point(np.array([x, y])), round(radius * 2**FRACTION)
                cv2.circle(picture, (int(centre[0]), int(centre[1])), scaled, colour, cv2.FILLED, cv2.LINE_AA, FRACTION)
    return picture


def _ellipse(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Outline (64,2) of the ellipse from a to b with a width of 2 `radius`."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    along = (b - a) / 2
    length = float(np.hypot(*along))
    across = np.array([-along[1], along[0]]) * (radius / max(length, 1e-6))
    return (a + b) / 2 + np.cos(angle)[:, None] * along + np.sin(angle)[:, None] * across


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """Points as OpenCV's fixed-point integers."""
    return np.rint(points * 2**FRACTION).astype(np.int32)
