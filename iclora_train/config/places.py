"""The frame of the target at which a reference begins: the same in every clip, or drawn for each clip within bounds.

A drawn frame is that of a picture: preparation draws it per window, takes the reference's pixels from exactly this
frame, and writes it into the record of the sample as `place`.
"""

from __future__ import annotations

from typing import Any

from iclora_train.config.errors import frame_from_start, require

ANY = "any"  # any frame of the clip


def is_drawn(frame: Any) -> bool:
    """Whether the frame is drawn for each clip: [first, last] or `any`."""
    return isinstance(frame, list | tuple | str)


def frame_bounds(frame: Any) -> tuple[int, int]:
    """The first and the last frame that can be drawn; negative from the end."""
    first, last = (0, -1) if frame == ANY else frame
    return first, last


def frame_range(key: str, frame: Any, frames: int) -> tuple[int, int]:
    """`frame_bounds` from the start of a clip of `frames` frames. ConfigError if the clip has no such frame."""
    first, last = (frame_from_start(key, number, frames) for number in frame_bounds(frame))
    require(
        first <= last,
        f"{key}={frame}: in a clip of {frames} frames, {first} lies after {last}: choose other bounds, or longer clips",
    )
    return first, last


def check_frame(key: str, frame: Any, temporal_scale_key: str, temporal_scale: int) -> None:
    """ConfigError unless `frame` is a number, bounds, `any` or null, and goes together with the reference's rate."""
    pair = isinstance(frame, list | tuple) and [type(number) for number in frame] == [int, int]
    require(
        frame is None or type(frame) is int or frame == ANY or pair,
        f"{key}={frame!r} must be the number of a frame, e.g. -1 for the last; [first, last] or {ANY} for one that is "
        "drawn for each clip; or null",
    )
    if pair:
        first, last = frame
        require(
            first <= last or (first >= 0) != (last >= 0),
            f"{key}={frame} must be [first, last] with first <= last",
        )
    require(
        frame is None or temporal_scale == 1,
        f"{key}={frame} and {temporal_scale_key}={temporal_scale} are both set: a reference at one frame has the "
        "target's frame rate",
    )


def frame_in_file(frame: Any) -> int | tuple[int, int] | None:
    """The frame as an adapter's file has it: the bounds of one that is drawn."""
    if is_drawn(frame):
        return frame_bounds(frame)
    assert frame is None or isinstance(frame, int)
    return frame


def frame_in_words(frame: Any) -> str:
    """`frame 8`, or `any frame from 8 to -9`."""
    if not is_drawn(frame):
        return f"frame {frame}"
    first, last = frame_bounds(frame)
    return f"any frame from {first} to {last}"
