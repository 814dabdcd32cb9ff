"""What the captioner is asked about a clip: frames over its whole length with their times, and an instruction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from data_prep.captions.instructions import AFTER, BEFORE, instruction_for, shows_reference
from data_prep.clips.clip_list import Clip
from iclora_train.config import Config
from iclora_train.core.fingerprint import digest
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.section import Section

Item = TypeVar("Item")
Result = TypeVar("Result")
Part = str | np.ndarray  # of a question, in order: text, or a frame uint8 RGB (H,W,3)


@dataclass(frozen=True, eq=False)
class Question:
    """Texts and frames in the order in which the model reads them; the last one is the instruction.

    attempt: 0 for the first answer, which is the most probable one; later ones are drawn with `seed`.
    """

    parts: tuple[Part, ...]
    attempt: int
    seed: int


def read_question(clip: Clip, config: Config, attempt: int) -> Question:
    """The question about a clip. ValueError or OSError if the clip or its reference cannot be read."""
    settings = config.captioner
    moments = _moments(clip.path, clip.section, settings.frames, settings.side)
    has_reference = clip.reference is not None and shows_reference(config)
    if clip.reference is not None and has_reference:
        before = _moments(clip.reference, clip.reference_section, settings.frames, settings.side)
        moments = [BEFORE, *before, AFTER, *moments]
    seed = int(digest([config.seed, attempt, clip.id])[:8], 16)
    return Question((*moments, instruction_for(config, has_reference)), attempt, seed)


def _moments(path: Path, section: Section | None, count: int, side: int) -> list[Part]:
    """Up to `count` frames from the first to the last one of a clip or a section, each after its time.

    One frame is the middle one. A time is written as Qwen3-VL's processor does: `<1.5 seconds>`. A picture has none.
    """
    info = probe(path, section)
    seconds = info.times.seconds
    numbers = np.unique(np.linspace(0, info.frames - 1, min(count, info.frames)).round().astype(int)).tolist()
    if len(numbers) == 1:
        numbers = [info.frames // 2]
    frames = [_reduced(frame, side) for frame in read_clip(path, set(numbers), section)]
    if len(frames) == 1:
        return list(frames)
    return [part for i, frame in zip(numbers, frames, strict=True) for part in (f"<{seconds[i]:.1f} seconds>", frame)]


def _reduced(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame (H,W,3) reduced to a longer side of at most `side`."""
    height, width = frame.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def in_order(
    pool: ThreadPool, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Each item and its result, in order; `ahead` items are under way or wait to be taken.

    The threads are daemons, so that a signal ends the process without waiting for them.
    """
    waiting = deque[tuple[Item, AsyncResult[Result]]]()
    for item in items:
        waiting.append((item, pool.apply_async(function, (item,))))
        if len(waiting) >= ahead:
            first, result = waiting.popleft()
            yield first, result.get()
    for last, result in waiting:
        yield last, result.get()
