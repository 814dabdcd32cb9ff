"""Where decoding can begin so that the frames after a time are exact, without decoding a long file from its start.

After a seek, decoders may return wrong frames up to the next keyframe, because frames of an open GOP refer to frames
before it. Decoding therefore begins two keyframes before the time: from the second of them on, all frames that others
refer to have been decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import av
import av.container

FORMATS = ("mp4", "matroska")  # containers with an index of keyframes and exact times
MARGIN = Fraction(1, 2)  # seconds between the second keyframe and the time, for filters that need earlier frames


@dataclass(frozen=True)
class SeekPoint:
    """Time stamps in units of the stream's time base. begin: of the keyframe from which to decode. exact: from this
    frame on, the frames are as if the file had been decoded from its start.
    """

    begin: int
    exact: int


def find_seek_point(
    container: av.container.InputContainer, stream: av.VideoStream, seconds: Fraction
) -> SeekPoint | None:
    """Where to begin to read from `seconds` on, in the times of the file; None: at its start. Moves the container.

    Files of other FORMATS, and files without an earlier keyframe, are decoded from their start.
    """
    time_base = stream.time_base
    if time_base is None or not set(FORMATS) & set(container.format.name.split(",")):
        return None
    exact = _keyframe_before(container, stream, int((seconds - MARGIN) / time_base))
    begin = None if exact is None else _keyframe_before(container, stream, exact.seek - 1)
    if exact is None or begin is None or begin.shown >= exact.shown:
        return None
    return SeekPoint(begin.seek, exact.shown)


class _Keyframe(NamedTuple):
    """Time stamps of a keyframe: to seek to it (its decoding, where the file tells), and of its presentation."""

    seek: int
    shown: int


def _keyframe_before(container: av.container.InputContainer, stream: av.VideoStream, stamp: int) -> _Keyframe | None:
    """The last keyframe that is decoded and shown up to a time stamp; None if the file does not tell."""
    target = stamp
    while target > 0:
        try:
            container.seek(target, stream=stream)
            packet = next((packet for packet in container.demux(stream) if packet.is_keyframe and packet.size), None)
        except av.FFmpegError:
            return None
        if packet is None or packet.pts is None:
            return None
        seek = packet.pts if packet.dts is None else packet.dts
        if packet.pts <= stamp:
            return _Keyframe(seek, packet.pts)
        target = min(seek, target) - 1  # decoded before the time, but shown after it
    return None
