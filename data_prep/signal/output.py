"""Write signals without loss: an mp4 (H.264 in RGB), a PNG for a single picture, or a folder of PNGs, and a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from data_prep.signal.make import Signal
from data_prep.signal.recipes import Recipe
from data_prep.signal.settings import SignalSettings
from data_prep.signal.source import SourceClip
from iclora_train import __version__
from iclora_train.config import require
from iclora_train.core.atomic_files import write_atomic, write_json
from iclora_train.core.progress import status
from iclora_train.media.shard_clip import encode_clip

FRAME = "frame-{:05d}.png"


def signal_paths(out: Path, recipes: Sequence[Recipe]) -> list[Path]:
    """A path for each reference: `out`, with the name of the reference if there are several. A reference that is one
    picture is a PNG."""
    paths = []
    for recipe in recipes:
        stem = out.stem if len(recipes) == 1 else f"{out.stem}-{recipe.layout.name}"
        suffix = ".png" if recipe.is_picture and out.suffix else out.suffix
        paths.append(out.with_name(stem + suffix))
    return paths


def record_path(out: Path) -> Path:
    """The JSON record of a signal: edges.json for edges.mp4."""
    return out.with_suffix(".json")


def write_frames(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 RGB frames (F,H,W,3), bit for bit: an mp4, a PNG of the only frame, or a folder of PNGs."""
    if path.suffix.lower() == ".mp4":
        with status("writing"), write_atomic(path) as file:
            file.write(encode_clip(frames, fps))
        return
    if path.suffix.lower() == ".png":
        require(len(frames) == 1, f"out={path} is one picture, and there are {len(frames)}: name an mp4, or a folder")
        _write_png(path, frames[0])
        return
    for previous in path.glob(FRAME.replace("{:05d}", "*")):
        previous.unlink()
    for number, frame in enumerate(frames):
        _write_png(path / FRAME.format(number), frame)


def _write_png(path: Path, frame: np.ndarray) -> None:
    with write_atomic(path) as file:
        file.write(cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes())


def write_record(
    settings: SignalSettings, source: SourceClip, signals: Sequence[Signal], paths: Sequence[Path]
) -> Path:
    """Write how the signals were made, as JSON beside them: the video's size, and for each signal its file, its maker
    with arguments and seed, and what was drawn."""
    path = record_path(Path(settings.out))
    references = [
        {
            "name": signal.recipe.layout.name,
            "file": str(file),
            "maker": signal.recipe.maker,
            "args": dict(signal.recipe.args),
            "seed": signal.seed,
            "place": signal.place,
            "drawn": dict(signal.drawn),
        }
        for signal, file in zip(signals, paths, strict=True)
    ]
    write_json(
        path,
        {
            "clip": str(source.media.path),
            "clip_sha256": source.media.sha256(),
            "adapter": settings.adapter,
            "shape": asdict(source.shape),
            "window": asdict(source.window),
            "references": references,
            "version": __version__,
        },
    )
    return path
