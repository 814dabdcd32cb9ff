"""Pairs of clips that people compare: the same window of two folders, in a random order, on random sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from eval.metrics import Clip
from eval.report.outputs import OUTPUTS
from iclora_train.config import ConfigError, require
from iclora_train.core.records import Flag, Text
from iclora_train.media.clip import ClipInfo, probe, read_clip

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
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
    """The clips of a pair, uint8 RGB (F,H,W,3), their rate, and the clip that both should follow, if it is shown."""

    left: Clip
    right: Clip
    fps: float
    reference: Clip | None = None


def clips_of(folder: Path) -> dict[str, Path]:
    """The clips in a folder, or in the `outputs` of an evaluation's folder, by file name without its ending.

    ConfigError for a folder without clips."""
    place = next((path for path in (folder / OUTPUTS, folder / "eval" / OUTPUTS) if path.is_dir()), folder)
    require(place.is_dir(), f"{folder} does not exist: give a folder of clips, or of an evaluation")
    clips = {path.stem: path for path in sorted(place.iterdir()) if path.suffix.lower() in SUFFIXES}
    require(len(clips) > 0, f"{place} holds no clips ({', '.join(SUFFIXES)})")
    return clips


def window_of(name: str) -> str:
    """The window of a clip that is named `<window>.<seed>`, as the outputs of an evaluation are."""
    return name.rpartition(".")[0] or name


def references_of(folder: Path, names: list[str]) -> dict[str, Path]:
    """The reference of each clip: the file of its name, or `<window>.reference0` as `eval.handout` writes it.

    ConfigError for a folder with none of them; clips without one are left out."""
    files = clips_of(folder)
    references = {}
    for name in names:
        file = files.get(name) or files.get(f"{window_of(name)}.reference0") or files.get(f"{name}.reference0")
        if file is not None:
            references[name] = file
    require(
        len(references) > 0,
        f"--references {folder}: no file is named as a clip of the study ({names[0]}) or <window>.reference0",
    )
    return references


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
    pairs: list[StudyPair], a: dict[str, Path], b: dict[str, Path], references: dict[str, Path], height: int
) -> Iterator[Sides]:
    """The clips of each pair, scaled to at most `height`.

    ConfigError that names the file if two clips of a pair differ in size, number of frames or rate."""
    for pair in pairs:
        info = _require_equal(a[pair.name], b[pair.name])
        size = _size(info, height)
        first = _read(a[pair.name], size)
        other = _in_blocks(first) if pair.check else _read(b[pair.name], size)
        better = first if pair.check else other
        worse = other if pair.check else first
        left, right = (better, worse) if pair.b_is_left else (worse, better)
        reference = _read(references[pair.name], size) if pair.name in references else None
        yield Sides(left, right, info.fps, reference)


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


def _read(path: Path, size: tuple[int, int]) -> Clip:
    try:
        return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in read_clip(path)])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _in_blocks(clip: Clip) -> Clip:
    """The clip in blocks that anybody sees."""
    height, width = clip.shape[1:3]
    block = max(BLOCK * height // 288, 2)
    small = (max(width // block, 1), max(height // block, 1))
    coarse = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in clip]
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST) for frame in coarse])
