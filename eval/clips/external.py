"""Clips made by another program, from a folder: `<key>.mp4`, `<key>.<seed>.mp4`, or folders of PNG frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.clips.alignment import require_aligned
from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import Condition, Item, at_strength
from eval.clips.judged_adapter import JudgedAdapter
from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip, offset
from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import sha256
from iclora_train.core.fingerprint import digest
from iclora_train.core.progress import progress_bar
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import read_clip
from iclora_train.media.container import read_encoding
from iclora_train.media.frame_folder import frame_files
from iclora_train.media.picture import read_picture

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm")
MAX_NAMED = 3  # files that an error or a warning names
MISALIGNED_BY_CHANCE = 0.5  # structure tasks: share of clips that may match another frame better than their own
HANDOUT_HINT = "`python -m eval.handout` with the same settings writes the inputs that the program needs"


class VideoFolder(ClipSource):
    """The clips of a folder as condition adapter+reference; `seeds` are the seeds that the folder contains.

    Raises ConfigError that names clips which are missing or differ from their targets in length or size.
    """

    def __init__(self, config: Config, base: BaseModel, held_out: HeldOut, cache: ClipCache) -> None:
        assert config.videos is not None
        self.folder = Path(config.videos)
        require(
            config.task.has_reference,
            f"videos={config.videos}: task {config.task.name} has no reference, so clips alone cannot be judged. Its "
            "claim is the loss on held-out clips, which needs the adapter: leave videos out",
        )
        require(
            self.folder.is_dir(),
            f"videos={self.folder} is not a folder: give one with {held_out.windows[0].key}.mp4",
        )
        self.files, self.seeds = find_clips(self.folder, held_out.windows, config.eval.seeds)
        digests = digest({_name(path): _hash(path) for path in self.files.values()})
        note = lossy_warning(list(self.files.values()))
        super().__init__(
            config, base, JudgedAdapter(str(self.folder), foreign=True, note=note, videos=digests), held_out, cache
        )
        self.conditions = [at_strength(1)]
        self.sigmas: list[float] = []
        self.precision = str(next(self.vae.parameters()).dtype)
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for clips that differ from their targets in size or length or are shifted in time."""
        shifts = {}
        with progress_bar("clips", len(self.files), "clip") as bar:
            for item in (Item(window, seed) for window in self.held_out.windows for seed in self.seeds):
                shift = offset(self._read(item), self.held_out.pair(item.window).target)
                shifts[self.files[item.window.key, item.seed].name] = shift
                bar.advance()
        require_aligned(shifts, MISALIGNED_BY_CHANCE if self.config.task.family == "structure" else 0)

    def clips(self, condition: Condition, batch: Sequence[Item]) -> tuple[Clip, float]:
        """As `ClipSource.clips`, read from disk; the sampling time is 0."""
        return np.stack([self.clip(condition, batch, i) for i in range(len(batch))]), 0.0

    def clip(self, condition: Condition, batch: Sequence[Item], i: int) -> Clip:
        """As `ClipSource.clip`. Raises ValueError for any other condition."""
        if condition not in self.conditions:
            raise ValueError(f"a folder of videos has no condition {condition.name!r}")
        return self._read(batch[i])

    def is_finished(self, condition: Condition, batch: Sequence[Item]) -> bool:
        """As `ClipSource.is_finished`."""
        return True

    def _read(self, item: Item) -> Clip:
        """The clip (F,H,W,3) of an item. Raises ConfigError if its size or length differs from its target."""
        path = self.files[item.window.key, item.seed]
        clip, target = read_external_clip(path), self.held_out.pair(item.window).target
        require(
            clip.shape == target.shape,
            f"{path} has {_size(clip)}, its target {item.window.key} has {_size(target)}: every clip needs the size "
            f"and length of its target; {HANDOUT_HINT}",
        )
        return clip


def find_clips(
    folder: Path, windows: Sequence[Window], seeds: Sequence[int]
) -> tuple[dict[tuple[str, int], Path], list[int]]:
    """(key, seed) -> file or folder of every clip, and the seeds: `seeds` if file names contain them, else the first.

    Raises ConfigError that names missing clips.
    """
    names = {
        _name(path): path for path in sorted(folder.iterdir()) if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES
    }
    has_seeds = any(f"{window.key}.{seed}" in names for window in windows for seed in seeds)
    found_seeds = list(seeds) if has_seeds else [seeds[0]]
    expected = {(w.key, seed): f"{w.key}.{seed}" if has_seeds else w.key for w in windows for seed in found_seeds}
    missing = [name for name in expected.values() if name not in names]
    require(
        not missing,
        f"videos={folder}: {len(missing)} of {len(expected)} clips are missing, e.g. "
        f"{', '.join(f'{name}.mp4' for name in missing[:MAX_NAMED])}; {HANDOUT_HINT}",
    )
    return {key_seed: names[name] for key_seed, name in expected.items()}, found_seeds


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.name.removesuffix(path.suffix)


def _size(clip: Clip) -> str:
    frames, height, width = clip.shape[:3]
    return f"{frames} frames of {width}x{height}"


def read_external_clip(path: Path) -> Clip:
    """A clip (F,H,W,3) from a video, or from the PNG files of a folder in the order of their names.

    Raises ConfigError that names the file.
    """
    try:
        frames = [read_picture(file) for file in _frames(path)] if path.is_dir() else list(read_clip(path))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    require(
        len({frame.shape for frame in frames}) == 1,
        f"{path}: its frames differ in size, or the folder contains no *.png files",
    )
    return np.stack(frames)


def _frames(folder: Path) -> list[Path]:
    return frame_files(folder, (".png",))


def _hash(path: Path) -> str:
    return digest([sha256(file) for file in _frames(path)]) if path.is_dir() else sha256(path)


def lossy_warning(files: Sequence[Path]) -> str | None:
    """A warning that names files stored with a lossy encoding; None if there are none.

    A pixel format other than RGB counts as lossy: its colours are rounded and usually subsampled.
    """
    try:
        encodings = [(path, *read_encoding(path)) for path in files if not path.is_dir()]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    lossy = [f"{path.name} ({codec}, {pixels})" for path, codec, pixels in encodings if not _is_rgb(pixels)]
    if not lossy:
        return None
    return (
        f"{len(lossy)} of {len(files)} clips are stored with losses, e.g. {', '.join(lossy[:MAX_NAMED])}: their "
        "metrics are lower than those of the original output; PNG frames, FFV1 or H.264 in RGB (libx264rgb -qp 0) are "
        "lossless"
    )


def _is_rgb(pixels: str) -> bool:
    return pixels.startswith(("rgb", "bgr", "gbr", "argb", "abgr"))
