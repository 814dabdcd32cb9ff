"""Decode packets to frames, with transparency, and refuse pictures that are too large before they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av

MAX_PIXELS = 2**27  # of a frame or picture: 134 million, 11,585 x 11,585
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders skip the transparency of WebM


class _Threads:
    count = 0  # of a decoder; 0: FFmpeg chooses, about one per core


def set_decoder_threads(count: int) -> None:
    """Threads of every decoder that this process opens from now on. 0: about one per core."""
    _Threads.count = count


class DecodedFrame(NamedTuple):
    """A frame as the decoder returned it, and two properties of its stream.

    pixel_aspect: width of a pixel over its height. rate: mean frames per second by the header, None if it has none.
    """

    frame: av.VideoFrame
    pixel_aspect: Fraction = Fraction(1)
    rate: Fraction | None = None


def require_size(width: int, height: int) -> None:
    """ValueError if a picture of this size has more than MAX_PIXELS pixels."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS:,}: make it smaller")


class FrameDecoder:
    """Decodes the packets of one video stream. ValueError if its frames are too large."""

    def __init__(self, stream: av.VideoStream) -> None:
        self.stream = stream
        self.alpha: av.VideoCodecContext | None = None
        require_size(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _Threads.count
        if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in _ALPHA_DECODERS:
            decoder = av.CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r")
            assert isinstance(decoder, av.VideoCodecContext)
            self.alpha = decoder

    def decode(self, packet: av.Packet) -> Iterator[av.VideoFrame]:
        """The frames that a packet completes; the last packet of a file is empty and returns the rest."""
        if self.alpha is None:
            yield from packet.decode()
            return
        for frame in self.alpha.decode(packet if packet.size else None):
            frame.time_base = self.stream.time_base
            yield frame
