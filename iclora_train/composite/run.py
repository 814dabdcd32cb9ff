"""From source, generated video and mask to the composite: frame by frame, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import numpy as np

from iclora_train.composite.blend import ColourMatch, blend
from iclora_train.composite.placement import placed_picture
from iclora_train.composite.plan import Plan, plan_composite
from iclora_train.composite.region import Region, region_of
from iclora_train.composite.settings import CompositeSettings
from iclora_train.composite.tracks import Track
from iclora_train.config import ConfigError, require
from iclora_train.core.console import make_console
from iclora_train.core.progress import progress_bar, status
from iclora_train.core.types import Sound
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.kept_sound import kept_or_read
from iclora_train.media.plate import Plate
from iclora_train.media.plate_clip import rate_of
from iclora_train.media.plate_writer import FolderWriter, PlateWriter, VideoWriter, encoder_of
from iclora_train.media.sound import probe_sound
from iclora_train.media.sound_track import KeptSound


def composite(settings: CompositeSettings) -> Path:
    """Write the composite. Returns its path; ConfigError names the setting or file that is wrong."""
    echo = make_console(highlight=False, soft_wrap=True).print
    out = Path(settings.out)
    exists = any(out.iterdir()) if out.is_dir() else out.exists()
    require(not exists or settings.overwrite, f"out={out} exists: name another file, or set overwrite=true")
    with status("measuring the clips"):
        plan = plan_composite(settings)
    require(
        out.resolve() not in {plan.source.path.resolve(), plan.generated.path.resolve()},
        f"out={out} is the source or the generated video: name another file",
    )
    numbers = sorted(plan.numbers) if plan.borders else list(range(plan.source.frames))
    height, width = plan.canvas.size
    echo(
        f"{width}x{height}, {len(numbers)} frames of {plan.source.path}; {plan.generated.path} "
        f"({plan.generated.width}x{plan.generated.height}) in frames {min(plan.numbers)} to {max(plan.numbers)}"
    )
    if len(numbers) < plan.source.frames:
        echo("the borders exist in the generated frames only: the other frames of the source are left out")
    with ExitStack() as stack:
        writer = _writer(settings, plan, numbers, stack)
        bar = stack.enter_context(progress_bar("compositing", len(numbers), "frame"))
        for plate in composited(plan, settings, set(numbers)):
            writer.add(plate)
            bar.advance()
    echo(str(out))
    return out


def composited(plan: Plan, settings: CompositeSettings, numbers: set[int]) -> Iterator[Plate]:
    """The frames `numbers` of the source, with the generated region in those that have one."""
    generated = Track("generated", plan.generated.colours)
    match = ColourMatch(settings.match, plan.canvas.size)
    inside = settings.side == "inside" or (settings.side == "auto" and plan.borders)
    mask: np.ndarray | None = None
    region: Region | None = None
    for number, original in enumerate(_plates(plan)):
        if number > max(numbers):
            return
        if number not in numbers:
            continue
        plate = original.placed(plan.canvas.top, plan.canvas.left, plan.canvas.size)
        index = plan.numbers.get(number)
        if index is None or (plan.span is not None and not plan.span[0] <= index < plan.span[1]):
            yield plate
            continue
        before = mask
        mask = _mask(plan, number, index)
        if before is None or not np.array_equal(before, mask):
            region = region_of(mask, settings.feather, inside, plan.box.inner(plan.canvas.size))
        picture = generated.at(index)
        yield plate if region is None else _blended(plate, picture, plan, region, match, settings.feather)


def _plates(plan: Plan) -> Iterator[Plate]:
    try:
        yield from plan.source.plates()
    except ValueError as error:
        raise ConfigError(f"source: {error}") from error


def _mask(plan: Plan, number: int, index: int) -> np.ndarray:
    """The mask fp32 (H,W) of a frame on the canvas: what lies outside of the source, or the white of the mask."""
    size = plan.canvas.size
    if plan.mask is None:
        mask = np.ones(size, np.float32)
        if plan.borders:
            top, left = plan.canvas.top, plan.canvas.left
            bottom, right = top + plan.source.height, left + plan.source.width
            mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
        return mask
    picture = plan.mask.at(number if plan.of_source else index)
    mask = np.zeros(size, np.float32)
    area = plan.mask_box.inner(size)
    mask[area] = placed_picture(picture, plan.mask_box, *area, smooth=False)
    return mask


def _blended(
    plate: Plate, picture: np.ndarray, plan: Plan, region: Region, match: ColourMatch, feather: float
) -> Plate:
    source = plate.rgb()[region.rows, region.columns]
    generated = placed_picture(picture, plan.box, region.rows, region.columns, smooth=True)
    generated = match.apply(source, generated, region)
    change, opacity = blend(source, generated, region, feather)
    return plate.changed(region.rows.start, region.columns.start, change, opacity)


def _writer(settings: CompositeSettings, plan: Plan, numbers: list[int], stack: ExitStack) -> PlateWriter:
    """The writer of the output, which ends with `stack`. ConfigError where the output cannot hold the source."""
    out, source = Path(settings.out), plan.source
    rate = rate_of(source.times, plan.fps)
    if not out.suffix:
        plate = next(source.plates())
        usual = "png" if source.pictures and plate.format.bits == 8 else "png16"
        names = [source.pictures[number].stem for number in numbers] if source.pictures else None
        return FolderWriter(out, settings.frames_format or usual, names, rate)
    if rate is None:
        raise ConfigError(f"fps is not set, and {source.path} has no frame rate: set it, e.g. fps=24")
    if settings.lossless:
        encoder_of(out, next(source.plates()).format)
    times = source.times or FrameTimes.constant(source.frames, rate)
    first, tick = times.ticks[numbers[0]], times.tick
    shown = FrameTimes([times.ticks[n] - first for n in numbers], tick, times.rate, times.is_constant)
    end = (shown.ticks[-1] * tick) + 1 / times.rate
    sound = _sound(plan, first * tick, end)
    timecode = source.timecode if numbers[0] == 0 else None
    player = None if settings.lossless else settings.pixel_format
    return stack.enter_context(VideoWriter(out, shown, sound, timecode, player))


def _sound(plan: Plan, start: Fraction, seconds: Fraction) -> Sound | KeptSound | None:
    """The source's sound; None without one."""
    if plan.source.pictures or probe_sound(plan.source.path) is None:
        return None
    return kept_or_read(plan.source.path, start, seconds)
