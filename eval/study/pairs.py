"""Pairs of clips that people compare: the same window of two folders, in a random order, on random sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from eval.metrics import Clip
from eval.report.outputs import OUTPUTS
from eval.study.references import (
    VIDEOS,
    ReferenceFile,
    ShownReference,
    files_by_stem,
    read_frames,
    read_references,
)
from iclora_train.config import ConfigError, require
from iclora_train.core.records import Flag, Text
from iclora_train.media.clip import ClipInfo, probe

BLOCK = 16  # pixels of the blocks in the worse clip of an attention check, at a height of 288


@dataclass(frozen=True)
class StudyPair:
    """A pair on the page.

    name: of the clip's file. b_is_left: the clip of B, or in an attention check the better clip, is on the left. check:
    both sides show the clip of A, one of them in coarse blocks.
    """

    id: Text
    name: Text
    b_is_left: Flag
    check: Flag = False


@dataclass(frozen=True)
class Sides:
    """The clips of a pair, uint8 RGB (F,H,W,3), their rate, and the references that both should follow."""

    left: Clip
    right: Clip
    fps: float
    references: Sequence[ShownReference] = ()


def clips_of(folder: Path) -> dict[str, Path]:
    """The clips in a folder, or in the `outputs` of an evaluation's folder, by file name without its ending.

    ConfigError for a folder without clips."""
    place = next((path for path in (folder / OUTPUTS, folder / "eval" / OUTPUTS) if path.is_dir()), folder)
    require(place.is_dir(), f"{folder} does not exist: give a folder of clips, or of an evaluation")
    clips = files_by_stem(place, VIDEOS)
    require(len(clips) > 0, f"{place} holds no clips ({', '.join(VIDEOS)})")
    return clips


def draw_pairs(names: list[str], count: int | None, checks: int, seed: int) -> list[StudyPair]:
    """Up to `count` of the clips in a random order and on random sides, with `checks` attention checks among them."""
    rng = np.random.default_rng(seed)
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    checked = [chosen[i % len(chosen)] for i in rng.permutation(max(len(chosen), checks))[:checks]]
    pairs = [StudyPair("", name, bool(rng.integers(2))) for name in chosen]
    pairs += [StudyPair("", name, bool(rng.integers(2)), check=True) for name in checked]
    ordered = [pairs[i] for i in rng.permutation(len(pairs))]
    return [replace(pair, id=f"{rng.integers(2**48):012x}") for pair in ordered]


def read_sides(
    pairs: list[StudyPair],
    a: dict[str, Path],
    b: dict[str, Path],
    references: dict[str, list[ReferenceFile]],
    height: int,
) -> Iterator[Sides]:
    """The clips of each pair, scaled to at most `height`.

    ConfigError that names the file if two clips of a pair differ in size, number of frames or rate."""
    for pair in pairs:
        info = _require_equal(a[pair.name], b[pair.name])
        size = _size(info, height)
        first = read_frames(a[pair.name], size)
        other = _in_blocks(first) if pair.check else read_frames(b[pair.name], size)
        better = first if pair.check else other
        worse = other if pair.check else first
        left, right = (better, worse) if pair.b_is_left else (worse, better)
        yield Sides(left, right, info.fps, read_references(references.get(pair.name, []), size))


def _require_equal(a: Path, b: Path) -> ClipInfo:
    try:
        one, other = probe(a), probe(b)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in ("width", "height", "frames", "fps"):
        values = getattr(one, name), getattr(other, name)
        require(
            abs(values[0] - values[1]) < 0.01,
            f"{a} and {b} differ in {name} ({values[0]:g} and {values[1]:g}): people would see which is which. Write "
            "both with the same size, rate and number of frames",
        )
    return one


def _size(info: ClipInfo, height: int) -> tuple[int, int]:
    """(width, height) of the page's clips: even, not larger than the source."""
    scale = min(height / info.height, 1.0)
    return max(2 * round(info.width * scale / 2), 2), max(2 * round(info.height * scale / 2), 2)


def _in_blocks(clip: Clip) -> Clip:
    """The clip in blocks that anybody sees."""
    height, width = clip.shape[1:3]
    block = max(BLOCK * height // 288, 2)
    small = (max(width // block, 1), max(height // block, 1))
    coarse = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in clip]
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST) for frame in coarse])
