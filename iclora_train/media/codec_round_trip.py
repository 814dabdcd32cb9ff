"""Encode a clip with a lossy codec and decode it again, in memory.

Encoders run without B-frames, without VP9's hidden look-ahead frames and on one thread. Frame i is then decoded as
frame i, and the same frames give the same bytes on any number of cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

# swscale's bicubic filter with exact rounding and full chroma; its default conversions darken by one level
EXACT = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000
MIN_SIZE = 64  # pixels; x265 writes past its buffers at widths below 64


@dataclass(frozen=True)
class _Codec:
    """FFmpeg's encoder and decoder, options that keep order and bytes, and options for a quality in [0, 51]."""

    encoder: str
    decoder: str
    options: dict[str, str]
    quality: Callable[[float], dict[str, str]]


def _quantizer(crf: float) -> dict[str, str]:
    """MPEG-4 Part 2 has no rate factor; it has one quantizer of 1 to 31 for all frames."""
    step = str(round(1 + 30 * crf / 51))
    return {"qmin": step, "qmax": step}


X264 = "threads=1:rc-lookahead=0:mbtree=0:scenecut=0"  # with look-ahead the bytes sometimes differ for the same frames
X265 = "pools=none:frame-threads=1:wpp=0:bframes=0:scenecut=0:info=0:log-level=none"
# With its blocks of 64 pixels x265 gives different bytes from call to call for pictures of one column of blocks.
X265_NARROW = ":ctu=32"
CODECS = {
    "h264": _Codec(
        "libx264",
        "h264",
        {"preset": "medium", "bf": "0", "x264-params": X264},
        lambda crf: {"crf": f"{crf:.2f}"},
    ),
    "hevc": _Codec("libx265", "hevc", {"preset": "fast", "x265-params": X265}, lambda crf: {"crf": f"{crf:.2f}"}),
    "mpeg4": _Codec("mpeg4", "mpeg4", {"flags": "+bitexact"}, _quantizer),
    "vp9": _Codec(
        "libvpx-vp9",
        "vp9",
        {"deadline": "good", "cpu-used": "4", "lag-in-frames": "0", "auto-alt-ref": "0", "row-mt": "0"},
        lambda crf: {"crf": str(round(crf * 63 / 51)), "b": "0"},
    ),
}


def round_trip(
    frames: np.ndarray,
    fps: float,
    codec: str,
    *,
    crf: float | None = None,
    bits_per_second: float | None = None,
    keyframes: int = 48,
) -> np.ndarray:
    """Encode frames uint8 RGB (F,H,W,3) with `codec` in yuv420p and decode them: same number, same order.

    crf: quality on H.264's scale from 0 (best) to 51, stretched to the scales of VP9 and MPEG-4. bits_per_second:
    target rate over a buffer of one second. Give one of the two. keyframes: largest distance of keyframes. Sizes that
    are odd or below 64 are padded by repeating the border, and cropped again.
    """
    if (crf is None) == (bits_per_second is None):
        raise ValueError("give one of crf and bits_per_second")
    coder = CODECS[codec]
    if crf is not None:
        rate = coder.quality(crf)
    else:
        assert bits_per_second is not None
        bits = str(max(round(bits_per_second), 1000))
        rate = {"b": bits, "maxrate": bits, "bufsize": bits}
    height, width = frames.shape[1:3]
    padding = [(0, 0), *((0, max(MIN_SIZE, size + size % 2) - size) for size in (height, width)), (0, 0)]
    padded = np.pad(frames, padding, mode="edge")
    options = {**coder.options, **rate, "g": str(keyframes)}
    if codec == "hevc" and padded.shape[2] <= MIN_SIZE:
        options["x265-params"] += X265_NARROW
    packets = _encode(padded, fps, coder, options)
    return np.stack(_decode(packets, coder))[:, :height, :width]


def _encode(frames: np.ndarray, fps: float, coder: _Codec, options: dict[str, str]) -> list[av.Packet]:
    encoder = av.CodecContext.create(coder.encoder, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt, encoder.thread_count, encoder.options = "yuv420p", 1, options
    encoder.framerate = Fraction(fps).limit_denominator(1001)
    encoder.time_base = 1 / encoder.framerate
    packets = []
    for number, rgb in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format="yuv420p", interpolation=EXACT, threads=1
        )
        frame.pts = number
        packets += encoder.encode(frame)
    return packets + encoder.encode(None)


def _decode(packets: list[av.Packet], coder: _Codec) -> list[np.ndarray]:
    decoder = av.CodecContext.create(coder.decoder, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    frames = []
    for packet in [*packets, None]:
        for frame in decoder.decode(packet):
            frames.append(frame.reformat(format="rgb24", interpolation=EXACT, threads=1).to_ndarray())
    return frames
