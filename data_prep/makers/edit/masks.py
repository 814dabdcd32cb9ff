"""Masks of the region to generate: random shapes that move smoothly, or mask files that come with a clip."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data_prep.makers.base import SourceWindow
from data_prep.makers.colour_space import luma
from data_prep.makers.trajectory import Trajectory
from iclora_train.config import require
from iclora_train.data.reference_kinds import MASK_COLOUR
from iclora_train.media.clip import read_clip

SHAPES = ("box", "ellipse", "free")
MAX_STROKES = 64


def paint_mask(frames: np.ndarray, mask: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """Frames uint8 (F,H,W,3) with `colour` exactly where the mask (F,H,W) is true.

    A pixel outside the mask that has this colour is changed by one level, so that `mask_from_colour` recovers the mask
    exactly.
    """
    result = frames.copy()
    green = np.uint8(colour[1] - 1 if colour[1] else 1)
    result[..., 1][mask_from_colour(frames, colour)] = green
    result[mask] = colour
    return result


def mask_from_colour(frames: np.ndarray, colour: tuple[int, ...] = MASK_COLOUR) -> np.ndarray:
    """The mask (F,H,W) bool of frames that `paint_mask` returned."""
    return (frames == np.array(colour, np.uint8)).all(axis=-1)


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (F,H,W) bool grown by `pixels` in all directions."""
    if not pixels:
        return mask
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return np.stack([cv2.dilate(frame.astype(np.uint8), disk) > 0 for frame in mask])


def load_clip_mask(source: SourceWindow, column: str = "mask") -> np.ndarray:
    """The mask (F,H,W) bool in a column of the clip; white is true. ConfigError if it has too few frames.

    The file is a video with the clip's frames, or a still. Its resolution may differ from the clip's.
    """
    path = source.file(column)
    numbers = {0, *source.indices}
    masks = dict(zip(sorted(numbers), _read_masks(path, numbers), strict=False))
    is_still = len(masks) == 1
    last = max(source.indices)
    message = f"clip {source.clip}: its mask {path} ends before frame {last}; give a mask for every frame, or one still"
    require(is_still or last in masks, message)
    window = [masks[0 if is_still else number] for number in source.indices]
    return source.crop.apply_all(window, cv2.INTER_NEAREST_EXACT) > 0


def _read_masks(path: Path, numbers: set[int]) -> list[np.ndarray]:
    return [(luma(frame) > 127).astype(np.uint8) for frame in read_clip(path, numbers)]


def random_mask(
    size: tuple[int, int], shape: str, cover: float, trajectory: Trajectory, frames: int, rng: np.random.Generator
) -> np.ndarray:
    """A mask (F,H,W) bool of a `box`, an `ellipse` or a `free` scribble that covers about `cover` of the picture.

    The shape lies inside the picture if it fits. Its position is random and moves along `trajectory`.
    """
    height, width = size
    if shape == "free":
        strokes, thickness = _scribble(size, cover, rng)
        half = np.array([0.35, 0.35])  # as shares of the picture; a scribble may extend beyond its border
    else:
        strokes, thickness = np.zeros((0, 2)), 0
        ratio = 2 ** rng.uniform(-1, 1)  # height to width
        area = cover * (4 / np.pi if shape == "ellipse" else 1)
        half = np.minimum(np.sqrt([area * height * width * ratio, area * height * width / ratio]) / 2 / size, 0.5)
    y, x = (trajectory.draw([h, 1 - h], frames, rng) * n for h, n in zip(half, size, strict=True))
    masks = []
    for centre in np.stack([x, y], axis=1):
        canvas = np.zeros(size, np.uint8)
        if shape == "free":
            cv2.polylines(canvas, [np.rint(strokes + centre).astype(np.int32)], False, 1, thickness)
        elif shape == "box":
            start, stop = centre - half[::-1] * (width, height), centre + half[::-1] * (width, height) - 1
            cv2.rectangle(canvas, np.rint(start).astype(int).tolist(), np.rint(stop).astype(int).tolist(), 1, -1)
        else:
            axes = np.rint(half[::-1] * (width, height)).astype(int).tolist()
            cv2.ellipse(canvas, np.rint(centre).astype(int).tolist(), axes, 0, 0, 360, 1, -1)
        masks.append(canvas > 0)
    return np.stack(masks)


def _scribble(size: tuple[int, int], cover: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A brush stroke: its corners (n,2), x and y relative to the centre, and its thickness.

    The stroke turns at random within the middle 70 % of the picture until `cover` is painted (free-form masks of Yu et
    al., arXiv 1806.03589).
    """
    reach = 0.35 * np.array(size[::-1])
    thickness = max(round(min(size) * np.sqrt(cover) * rng.uniform(0.2, 0.4)), 1)
    corners, angle = [rng.uniform(-reach, reach) / 2], rng.uniform(0, 2 * np.pi)
    for _ in range(MAX_STROKES):
        angle += np.pi + rng.uniform(-1, 1) if len(corners) % 2 else rng.uniform(-1, 1)
        length = rng.uniform(0.2, 0.6) * min(size)
        corners.append(np.clip(corners[-1] + length * np.array([np.cos(angle), np.sin(angle)]), -reach, reach))
        canvas = np.zeros(size, np.uint8)
        points = np.rint(np.array(corners) + np.array(size[::-1]) / 2).astype(np.int32)
        if cv2.polylines(canvas, [points], False, 1, thickness).mean() >= cover:
            break
    return np.array(corners), thickness
