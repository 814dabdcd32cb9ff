"""From a clip to its signals on disk: makers, sizes, checks, files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.signal.findings import empty_region, judge_signals
from data_prep.signal.make import Signal, SignalMaker, make_signals
from data_prep.signal.output import record_path, signal_paths, write_frames, write_record
from data_prep.signal.recipes import Echo, Recipe, recipes_of
from data_prep.signal.settings import LTX2, NANO, SignalSettings, require_new
from data_prep.signal.source import Borders, SourceClip, open_clip, rate_note
from data_prep.signal.tracks import with_fitting_points
from iclora_train.adapters.metadata import FAMILY, trained_fps
from iclora_train.config import require
from iclora_train.core.console import make_console
from iclora_train.core.progress import status
from iclora_train.core.types import VideoShape


def make(settings: SignalSettings) -> list[Path]:
    """Write the signals and a record. Returns the files; ConfigError names the setting or file that is wrong."""
    echo: Echo = make_console(highlight=False, soft_wrap=True).print
    recipes, layouts, metadata = recipes_of(settings, echo)
    paths = signal_paths(Path(settings.out), recipes)
    require_new([*paths, record_path(Path(settings.out))], settings.overwrite)
    files = settings.files()
    cell = NANO if metadata.get(FAMILY) == "nano" else LTX2
    cell = cell if settings.cell is None else (settings.cell[0], settings.cell[1])
    borders: Borders = (0, 0, 0, 0) if settings.border is None else tuple(settings.border)
    with status("measuring the clip"):
        source = open_clip(settings, layouts, cell, trained_fps(metadata), borders)
    require(
        all(
            path.suffix.lower() != ".png" or source.shape.frames == 1 or recipe.is_picture
            for path, recipe in zip(paths, recipes, strict=True)
        ),
        f"out={settings.out} is one picture, and the signal has {source.shape.frames} frames: name an mp4, or a folder",
    )
    recipes = [with_fitting_points(recipe, files, settings, source, echo) for recipe in recipes]
    makers = [SignalMaker.of(recipe, files, source) for recipe in recipes]
    _print_plan(recipes, source, files, echo)
    *padded, inner = source.padded([*(maker.maker.margin for maker in makers), 0])
    if settings.tracks_size is not None:
        width, height = settings.tracks_size
        padded = [replace(window, crop=replace(window.crop, clip_size=(height, width))) for window in padded]
    signals = make_signals(makers, source, padded, settings.seed, settings.reference_frame, echo)
    for line in judge_signals(signals, inner.frames, source.shape.fps, settings.strict):
        echo(line)
    for signal in signals:
        if (problem := empty_region(signal)) is not None:
            require(not settings.strict, f"{problem}. strict=false writes it as it is")
            echo(f"warning: {problem}")
    for path, signal in zip(paths, signals, strict=True):
        write_frames(path, signal.frames, source.shape.fps / signal.recipe.layout.temporal_scale)
    record = write_record(settings, source, signals, paths)
    _print_use(settings, signals, paths, source.shape, echo)
    echo(" ".join(map(str, [*paths, record])))
    return [*paths, record]


def _print_plan(recipes: Sequence[Recipe], source: SourceClip, files: dict[str, Path], echo: Echo) -> None:
    """Print the size, what makes each signal and with which arguments, and what differs from the clip."""
    echo(f"{source.shape.bucket} at {source.shape.fps:g} fps from {source.media.path}")
    if source.rounded:
        echo(f"rounded to sizes that fit the VAE: {source.rounded}")
    for recipe in recipes:
        args = f" {json.dumps(dict(recipe.args))}" if recipe.args else ""
        echo(f"{recipe.layout.name} ({recipe.layout.in_words}): {recipe.maker}{args}, from {recipe.origin}")
        for line in _drawn_notes(recipe, files, source):
            echo(f"{recipe.layout.name}: {line}")
    if source.media.changes:
        echo(f"{source.media.path}: {', '.join(source.media.changes)}")
    if (note := rate_note(source)) is not None:
        echo(f"warning: {note}")


def _drawn_notes(recipe: Recipe, files: dict[str, Path], source: SourceClip) -> list[str]:
    """Lines for a maker that damages the clip, or draws a part of it at random."""
    if recipe.maker.startswith("degrade."):
        return ["the clip is damaged as in training, to test an adapter; a damaged clip is its own reference"]
    if recipe.maker == "edit.hole" and "mask" not in files:
        return ["the hole is drawn at random, as in training: mask=FILE paints your own"]
    if recipe.maker == "edit.outpaint" and not any(source.borders):
        return ["the border covers a part of the clip, as in training: border=[left,top,right,bottom] extends the clip"]
    return []


def _print_use(
    settings: SignalSettings, signals: Sequence[Signal], paths: Sequence[Path], shape: VideoShape, echo: Echo
) -> None:
    """Print the words with which `generate` takes the signals, where all references were made."""
    if settings.adapter is None or settings.only is not None:
        return
    names = ",".join(map(str, paths))
    reference = f"[{names}]" if len(paths) > 1 else names
    size = f"width={shape.width} height={shape.height} frames={shape.frames} fps={shape.fps:g}"
    places = [signal.place for signal in signals]
    place = f" reference_frame={places[0]}" if len(places) == 1 and places[0] is not None else ""
    echo(
        f'python -m iclora_train.generate adapter={settings.adapter} reference={reference} {size}{place} prompt="..." '
        "out=video.mp4"
    )
