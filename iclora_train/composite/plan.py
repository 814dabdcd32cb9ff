"""What a composite is made of, checked before any frame is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iclora_train.composite.origin import Origin, read_origin, record_beside, require_clip
from iclora_train.composite.placement import Box, Canvas, canvas_of, fitted_box, generated_box, is_same_shape
from iclora_train.composite.settings import CompositeSettings
from iclora_train.composite.tracks import Track, grey, of_colour
from iclora_train.config import ConfigError, require
from iclora_train.config.paths import user_path
from iclora_train.media.plate import Plate
from iclora_train.media.plate_clip import PlateClip


@dataclass(frozen=True)
class Plan:
    """Clips, the place of the generated picture, and the mask with its place. first: the number of the first plate.

    numbers: the generated frame of each source frame that has one. of_source: the mask counts the source's frames.
    borders: the source is extended, so its frames outside of the generated range are left out.
    """

    source: PlateClip
    generated: PlateClip
    canvas: Canvas
    box: Box
    numbers: dict[int, int]
    mask: Track | None
    mask_box: Box
    of_source: bool
    borders: bool
    span: tuple[int, int] | None
    fps: float | None


def plan_composite(settings: CompositeSettings) -> Plan:
    """Open all files and place them. ConfigError names the setting or file that is wrong."""
    path = user_path(settings.generated)
    record = record_beside(path, settings.record)
    origin = None if record is None else read_origin(record)
    if origin is not None and origin.frames_out and not path.is_dir() and Path(origin.frames_out).is_dir():
        path = user_path(origin.frames_out)  # without loss, unlike the video
    source, generated = _open("source", require_clip(origin, settings.source)), _open("generated", str(path))
    known = origin or Origin(generated.width, generated.height, generated.frames, 0)
    size = source.height, source.width
    clip = size
    if known.window is not None and known.clip is not None and user_path(known.clip) != source.path:
        first = _open("record", known.clip)
        clip = first.height, first.width
    box = generated_box(size, clip, known, settings.fit)
    borders = any(known.borders)
    plate: Plate = next(source.plates())
    canvas = canvas_of(size, box, borders, plate.format.cell)
    placed = box.shifted(canvas.left, canvas.top)
    mask, mask_box, of_source = _mask(settings, known, source, generated, placed)
    require(mask is not None or borders or known.span is not None, "mask is not set, and no record has one: mask=MASK")
    numbers = _numbers(settings, known, source, generated)
    fps = settings.fps or (known.fps or None)
    return Plan(source, generated, canvas, placed, numbers, mask, mask_box, of_source, borders, known.span, fps)


def _open(key: str, name: str) -> PlateClip:
    path = user_path(name)
    require(path.exists(), f"{key}={name} does not exist: name a video, a folder of frames, or an image")
    try:
        return PlateClip.open(path)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def _mask(
    settings: CompositeSettings, known: Origin, source: PlateClip, generated: PlateClip, box: Box
) -> tuple[Track | None, Box, bool]:
    """The mask, its place on the canvas, and whether it counts the source's frames."""
    whole = Box(0, 0, source.width, source.height)
    name = settings.mask or known.mask
    if name is None:
        if known.painted is None or any(known.borders):
            return None, box, False
        clip = _open("record", known.painted)
        return Track("record", lambda: of_colour(clip.colours(), known.colour), repeats=True), box, False
    clip = _open("mask", name)
    track = Track("mask", lambda: grey(clip.colours()), repeats=True)
    of_source = clip.frames == source.frames and clip.frames != generated.frames
    shape = clip.height, clip.width
    if is_same_shape(shape, (source.height, source.width)):
        return track, whole, of_source
    require(
        settings.mask is None or is_same_shape(shape, (known.height, known.width)),
        f"mask={name} has {clip.width}x{clip.height} pixels, the source {source.width}x{source.height}: paint it on "
        "a frame of the source",
    )
    cut = fitted_box(shape, (known.height, known.width), known.fit)
    x = (box.right - box.left) / (cut.right - cut.left)
    y = (box.bottom - box.top) / (cut.bottom - cut.top)
    left, top = box.left - cut.left * x, box.top - cut.top * y
    return track, Box(left, top, left + shape[1] * x, top + shape[0] * y), of_source


def _numbers(settings: CompositeSettings, known: Origin, source: PlateClip, generated: PlateClip) -> dict[int, int]:
    """The generated frame of each source frame. ConfigError if source frames in between have none."""
    count = min(known.frames, generated.frames)
    if known.window is not None:
        indices = np.array(known.window.indices[:count])
    elif source.times is not None and known.fps:
        indices = source.times.frame_numbers(known.fps)[:count]
    else:
        indices = np.arange(count)
    if settings.start is not None:
        indices = indices - indices[0] + settings.start
    require(
        bool((np.diff(indices) <= 1).all()),
        f"source={source.path} has more frames per second than the generated video: generate it with the source's rate",
    )
    require(
        int(indices[-1]) < source.frames and len(indices) == count,
        f"source={source.path} has {source.frames} frames, the generated video needs frame {int(indices[-1])}: set "
        "start, or give the clip that it was generated from",
    )
    numbers: dict[int, int] = {}
    for number, index in enumerate(indices.tolist()):
        numbers.setdefault(index, number)
    return numbers
