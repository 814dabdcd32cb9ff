"""`signal=auto`: the references of a video, made of a clip by the command `iclora_train.signal` on the way.

A clip that has the fault which an adapter removes, and one that training got from the user, is its own reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iclora_train.adapters.metadata import reference_layouts
from iclora_train.adapters.official import completed, recognise
from iclora_train.adapters.reference_makers import MakerOfReference, makers_or_task
from iclora_train.config import ConfigError, require
from iclora_train.config.hydra_app import run_arguments
from iclora_train.config.paths import user_path
from iclora_train.core.records import AnyNumber, Count, Text, read_json
from iclora_train.core.types import Geometry
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.weights.safetensors_header import read_header

AUTO = "auto"
COMMAND = "data_prep.signal"
PER_REFERENCE = ("attention_strength", "attention_mask", "reference_strength", "reference_frame")


@dataclass(frozen=True)
class _Shape:
    frames: Count
    height: Count
    width: Count
    fps: AnyNumber


@dataclass(frozen=True)
class _Made:
    name: Text
    file: Text


@dataclass(frozen=True)
class _Record:
    """The part of a signal's record that is read."""

    shape: _Shape
    references: list[_Made]


def with_signals(settings: GenerateSettings, geometry: Geometry, echo: Callable[[str], None]) -> GenerateSettings:
    """The settings with signals in place of the clips that `signal` marks, and with the size of the video.

    The signals are written beside the video, as <out>.signal.mp4 with a record; a clip that is its own reference stays.
    ConfigError names the setting that is wrong; a signal that cannot be made ends this command with its error.
    """
    if settings.signal is None:
        return settings
    adapter = _adapter(settings)
    names, makers = _makers(adapter)
    settings = _for_each_reference(settings, len(names))
    chosen = list(zip(settings.reference, settings.signal, strict=True))
    require(len(chosen) <= len(names) or len(names) == 1, f"reference has {len(chosen)} items, {adapter}: {len(names)}")
    references, shape = list(settings.reference), None
    for clip, control in dict.fromkeys((path, mark) for path, mark in chosen if path and mark):
        numbers = [number for number, pair in enumerate(chosen) if pair == (clip, control)]
        unchanged = [number for number in numbers if control == AUTO and makers[_trained(number, names)].is_clip]
        for number in unchanged:
            echo(f"{clip} is the reference {names[_trained(number, names)]} itself: a clip as it comes, not made")
        to_make = [number for number in numbers if number not in unchanged]
        if not to_make:
            continue
        out = _out(settings, len(set(settings.reference)) > 1, clip)
        only = [names[_trained(number, names)] for number in to_make]
        arguments = _arguments(settings, geometry, adapter, clip, control, only, out)
        run_arguments(COMMAND, *arguments)
        record = read_json(out.with_suffix(".json"), _Record, "run the command again")
        shape = shape or record.shape
        files = {reference.name: reference.file for reference in record.references}
        for number in to_make:
            references[number] = files[names[_trained(number, names)]]
    size: dict[str, Any] = {} if shape is None else vars(shape)
    return replace(settings, reference=references, signal=None, signal_settings={}, **size)


def _adapter(settings: GenerateSettings) -> Path:
    """The only adapter that takes references. ConfigError if there are several."""
    paths = [user_path(path) for path in settings.adapter]
    taking = [path for path in paths if reference_layouts(completed(read_header(path).metadata, None))]
    require(
        len(taking) == 1,
        f"signal={settings.signal}: {len(taking)} of the adapters take a reference: make the signals with "
        "`python -m iclora_train.signal adapter=FILE`, and give them as reference",
    )
    return taking[0]


def _makers(adapter: Path) -> tuple[list[str], list[MakerOfReference]]:
    """The names of the adapter's references and their makers."""
    stored = read_header(adapter).metadata
    match = recognise(adapter, stored)
    names = [layout.name for layout in reference_layouts(completed(stored, match))]
    known = makers_or_task(stored, match)
    if known is None or len(known[0]) != len(names):
        raise ConfigError(
            f"signal: adapter={adapter} does not say how its references were made: make them with "
            "`python -m iclora_train.signal maker=...`, and give them as reference"
        )
    return names, known[0]


def _trained(number: int, names: Sequence[str]) -> int:
    """The trained reference that a given one is: an adapter of one reference takes any number of them in its way."""
    return number if len(names) > 1 else 0


def _for_each_reference(settings: GenerateSettings, count: int) -> GenerateSettings:
    """The settings with a list for each value per reference. One clip stands for all references of the adapter."""
    clips = settings.reference or [settings.source]
    times = count if len(clips) == 1 else 1
    marks = settings.signal if isinstance(settings.signal, list) else [settings.signal] * len(clips)
    lists: dict[str, Any] = {}
    for key in PER_REFERENCE:
        lists[key] = list(getattr(settings, key) or [None] * len(clips)) * times
    if all(frame is None for frame in lists["reference_frame"]):
        lists["reference_frame"] = None
    return replace(settings, reference=list(clips) * times, signal=list(marks) * times, **lists)


def _out(settings: GenerateSettings, several: bool, clip: str) -> Path:
    """The file of the signals of a clip: beside the video."""
    out = Path(settings.out)
    name = f"{out.stem}.signal-{Path(clip).stem}.mp4" if several else f"{out.stem}.signal.mp4"
    return out.with_name(name)


def _arguments(
    settings: GenerateSettings,
    geometry: Geometry,
    adapter: Path,
    clip: str,
    control: str,
    only: Sequence[str],
    out: Path,
) -> list[str]:
    """The command line that makes the signals of a clip."""
    values: dict[str, Any] = {"clip": clip, "adapter": str(adapter), "out": str(out), "only": list(dict.fromkeys(only))}
    values |= {} if control == AUTO else {"control": control}
    values |= {key: getattr(settings, key) for key in ("width", "height", "frames", "fps")}
    frames = settings.reference_frame or [None]
    values |= {"reference_frame": frames[0]} if frames[0] is not None and len(frames) == 1 else {}
    values["cell"] = [geometry.spatial * (2 if settings.upsampler else 1), geometry.temporal]
    values["overwrite"] = settings.overwrite or out.with_suffix(".json").exists()
    values |= settings.signal_settings
    return [f"{key}={_in_grammar(value)}" for key, value in values.items()]


def _in_grammar(value: Any, inside: bool = False) -> str:
    """A value on the command line. inside: of a list or a dictionary, where texts need quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_in_grammar(item, True)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_in_grammar(item, True) for item in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if inside else value
    return json.dumps(value)
