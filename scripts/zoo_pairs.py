"""Pairs of the sample clips for the tasks whose references a user supplies, made for `scripts.zoo`.

The real edits (a night, water, a shaved face, crossed eyes) need footage or a model that makes it. Here each edit is a
formula that the adapter has to learn, with the same kind of work: relight a scene, add something to a part of it,
remove something from it, change a detail of it.

    day_to_night   before: the clip; after: a fifth of its light, bluish, darker at the top
    water          before: the clip; after: its lower third shows the upper part upside down, with ripples that move
    shave          before: the clip with a dark, grainy patch that moves; after: the clip
    cross_eyed     before: the clip with two drawn eyes that look ahead; after: their pupils are turned inwards
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_prep.clips.clip_list import list_clips
from data_prep.makers.colour_space import LINEAR, to_codes
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.progress import progress_bar
from iclora_train.media.clip import read_clip
from iclora_train.media.shard_clip import encode_clip

LISTING = "clips.csv"
FPS = 25.0  # of a clip whose list names none
Edit = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def day_to_night(frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Before and after, uint8 (F,H,W,3): the light is scaled in linear light."""
    sky = np.linspace(0.5, 1.0, frames.shape[1], dtype=np.float32)[:, None, None]
    tint = np.array([0.12, 0.16, 0.32], np.float32) * float(rng.uniform(0.8, 1.2))
    return frames, np.stack([to_codes(LINEAR[frame] * sky * tint, linear=True) for frame in frames])


def water(frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Before and after: below the shore, row y shows the row as far above the shore, shifted by a moving wave."""
    count, height, width = frames.shape[:3]
    shore, after = height * 2 // 3, frames.copy()
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(shore, height, dtype=np.float32))
    phase, speed = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.3, 0.6))
    for i in range(count):
        wave = 2 * np.sin((y - shore) / 3 + phase + speed * i)
        mirrored = cv2.remap(frames[i], x + wave, 2 * shore - y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        after[i, shore:] = to_codes(mirrored.astype(np.float32) / 255 * np.float32([0.6, 0.8, 0.9]), linear=False)
    return frames, after


def shave(frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Before and after: the patch covers a tenth of the picture and lies over its middle half."""
    height, width = frames.shape[1:3]
    before = frames.copy()
    grain = rng.normal(45, 20, (height, width, 1)).astype(np.float32)
    for frame, (x, y) in zip(before, _path(frames, rng), strict=True):
        mask = np.zeros((height, width), np.float32)
        cv2.ellipse(mask, (int(x), int(y)), (int(width * 0.2), int(height * 0.16)), 0, 0, 360, 1.0, -1)
        weight = cv2.GaussianBlur(mask, (0, 0), 2)[..., None] * 0.9
        frame[:] = np.clip(np.rint(frame * (1 - weight) + grain * weight), 0, 255)
    return before, frames


def cross_eyed(frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Before and after: the eyes are a quarter of the height large; only the pupils differ."""
    before, after = frames.copy(), frames.copy()
    radius = frames.shape[1] // 8
    for i, (x, y) in enumerate(_path(frames, rng)):
        for side in (-1, 1):
            centre = (int(x) + side * int(1.3 * radius), int(y))
            for frame, turn in ((before[i], 0.0), (after[i], -0.5 * side)):
                cv2.circle(frame, centre, radius, (235, 235, 235), -1, cv2.LINE_AA)
                pupil = (centre[0] + int(turn * radius), centre[1])
                cv2.circle(frame, pupil, radius // 2, (30, 30, 30), -1, cv2.LINE_AA)
    return before, after


EDITS: dict[str, Edit] = {"day_to_night": day_to_night, "water": water, "shave": shave, "cross_eyed": cross_eyed}


def _path(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A point (F,2), x and y in pixels, on an ellipse around the middle of the picture."""
    count, height, width = frames.shape[:3]
    angle = rng.uniform(0, 2 * np.pi) + np.arange(count) * rng.uniform(0.05, 0.12)
    return np.stack([width * (0.5 + 0.12 * np.cos(angle)), height * (0.5 + 0.12 * np.sin(angle))], axis=1)


def middle_square(path: Path) -> np.ndarray:
    """All frames of a clip, cut to a square, so that a square window of the whole height shows all of the edit."""
    frames = np.stack(list(read_clip(path)))
    side = min(frames.shape[1:3])
    top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
    return frames[:, top : top + side, left : left + side]


def write_pairs(task: str, folder: Path) -> Path:
    """Write the pairs of a task, with the samples' splits, captions and recordings, and return the list of clips."""
    listing = folder / LISTING
    if listing.exists():
        return listing
    folder.mkdir(parents=True, exist_ok=True)
    rows, clips = [], list_clips("samples", 0.1)
    with progress_bar(f"pairs of {task}", len(clips), "clip") as bar:
        for number, clip in bar.track(enumerate(clips)):
            before, after = EDITS[task](middle_square(clip.path), np.random.default_rng([number, 7]))
            names = f"{clip.id}.mp4", f"{clip.id}_before.mp4"
            for name, frames in zip(names, (after, before), strict=True):
                with write_atomic(folder / name) as file:
                    file.write(encode_clip(frames, clip.fps or FPS, lossless=False))
            rows.append([clip.id, *names, clip.split, clip.caption, clip.source, clip.licence])
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["id", "video", "reference", "split", "caption", "source", "licence"])
    table.writerows(rows)
    with write_atomic(listing) as file:
        file.write(text.getvalue().encode())
    return listing
