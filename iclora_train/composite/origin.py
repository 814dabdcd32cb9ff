"""How a video was generated, from the JSON records of `generate` and `signal`: its source, region, place and frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclora_train.config import ConfigError, require
from iclora_train.config.paths import user_path
from iclora_train.core.records import AnyNumber, Count, PositiveCount, Text, read_json

REGIONS = ("edit.hole", "edit.outpaint")  # makers whose signal shows the region in one colour
AGAIN = "generate the video again, or set source, mask and start without record"


@dataclass(frozen=True)
class _Shape:
    frames: PositiveCount
    height: PositiveCount
    width: PositiveCount
    fps: AnyNumber


@dataclass(frozen=True)
class _Generated:
    """The part of a video's record that is read."""

    settings: dict[str, Any]
    shape: _Shape


@dataclass(frozen=True)
class SignalWindow:
    """The part of a clip that a signal shows: the clip with its borders is scaled to `scaled` (height, width), and
    `size` is cut out at `crop` (top, left). indices: the clip's frame of each frame."""

    indices: list[Count]
    scaled: list[PositiveCount]
    crop: list[Count]
    size: list[PositiveCount]


@dataclass(frozen=True)
class _Reference:
    file: Text
    maker: Text
    args: dict[str, Any]
    drawn: dict[str, Any]


@dataclass(frozen=True)
class _Signal:
    """The part of a signal's record that is read."""

    clip: Text
    window: SignalWindow
    references: list[_Reference]


@dataclass(frozen=True)
class Origin:
    """What a record says about a generated video.

    clip: its source. mask: a file, white was made anew. painted: a signal in which the region has the colour `colour`,
    pixel by pixel of the video. span: frames [from, to) that were made anew. window: of a signal; None: the clip was
    fitted by `fit`. borders: left, top, right, bottom pixels around the clip. frames_out: a folder with its frames.
    """

    width: int
    height: int
    frames: int
    fps: float
    clip: str | None = None
    fit: str = "crop"
    mask: str | None = None
    painted: str | None = None
    colour: tuple[int, ...] = ()
    span: tuple[int, int] | None = None
    window: SignalWindow | None = None
    borders: tuple[int, int, int, int] = (0, 0, 0, 0)
    frames_out: str | None = None


def read_origin(path: Path) -> Origin:
    """Read the record of a generated video. ConfigError names the file and the remedy."""
    record = read_json(path, _Generated, AGAIN)
    return origin_of(record.settings, record.shape.width, record.shape.height, record.shape.frames, record.shape.fps)


def origin_of(settings: dict[str, Any], width: int, height: int, frames: int, fps: float) -> Origin:
    """The origin of a video with these settings of `generate`, after its signals were made."""
    common: dict[str, Any] = {"width": width, "height": height, "frames": frames, "fps": fps}
    common |= {"fit": settings.get("fit", "crop"), "frames_out": settings.get("frames_out")}
    if settings.get("source") and (settings.get("regenerate") or settings.get("regenerate_frames")):
        span = settings.get("regenerate_frames")
        return Origin(
            **common,
            clip=settings["source"],
            mask=settings.get("regenerate"),
            span=None if span is None else (span[0], span[1]),
        )
    for reference in settings.get("reference") or []:
        signal = None if reference is None else user_path(reference).with_suffix(".json")
        if signal is not None and signal.is_file():
            return _of_signal(signal, reference, common)
    references = [path for path in settings.get("reference") or [] if path is not None]
    return Origin(**common, clip=settings.get("source") or (references[0] if references else None))


def _of_signal(path: Path, reference: str, common: dict[str, Any]) -> Origin:
    """The origin of a video whose reference is a signal of ours."""
    signal = read_json(path, _Signal, AGAIN)
    region = next((made for made in signal.references if made.file == reference and made.maker in REGIONS), None)
    if region is None:
        return Origin(**common, clip=signal.clip, window=signal.window)
    left, top, right, bottom = region.drawn.get("borders") or (0, 0, 0, 0)
    colour = tuple(region.args.get("colour") or (102, 255, 0))
    borders = (left, top, right, bottom)
    return Origin(**common, clip=signal.clip, window=signal.window, painted=reference, colour=colour, borders=borders)


def record_beside(generated: Path, record: str | None) -> Path | None:
    """The record of a generated video: `record`, else the JSON beside it, else None. ConfigError without a file."""
    if record is not None:
        require(user_path(record).is_file(), f"record={record} is not a file: name the JSON of the generated video")
        return user_path(record)
    beside = generated.with_suffix(".json")
    return beside if beside.is_file() else None


def require_clip(origin: Origin | None, source: str | None) -> str:
    """The path of the source clip. ConfigError where nothing names it."""
    clip = source or (None if origin is None else origin.clip)
    if clip is None:
        raise ConfigError("source is not set, and no record of the generated video names its clip: set source=CLIP")
    return clip
