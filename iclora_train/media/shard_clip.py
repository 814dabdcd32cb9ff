"""Encode the clips of shards and reports, and decode the clips of shards.

The clips in shards are closed-GOP without B-frames, which decord decodes exactly.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import av
import av.container
import cv2  # (import before decord: decord's libraries, loaded first, break PNG files in cv2)
import decord
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from iclora_train.core.types import Sound
from iclora_train.media.codec_round_trip import EXACT
from iclora_train.media.container import decode
from iclora_train.media.frame_times import exact_rate
from iclora_train.media.sound_track import KeptSound, add_sound, timescale

LOSSLESS = {"qp": "0", "preset": "ultrafast"}
PLAYER = {"crf": "16", "preset": "medium"}
PREVIEW = {"crf": "23", "preset": "veryfast"}
PREVIEW_SIDE = 320  # pixels

decord.logging.set_level(decord.logging.QUIET)


def encode_clip(frames: np.ndarray, fps: float, lossless: bool = True, sound: Sound | KeptSound | None = None) -> bytes:
    """Encode uint8 RGB frames (F,H,W,3) as an mp4; the same frames and sound give the same bytes.

    lossless: H.264 in RGB, which `decode_clip` decodes bit by bit. Otherwise yuv420p for browsers and players (H and W
    even), in BT.709 of limited range and with tags that say so. sound: begins with the first frame; samples become AAC,
    a file's own packets stay as they are (`sound_track.py`).
    """
    return _encode(frames, fps, LOSSLESS if lossless else PLAYER, sound)


def encode_preview(frames: np.ndarray, fps: float) -> bytes:
    """Encode uint8 RGB frames (F,H,W,3) as a small mp4 for players, with a short side of at most PREVIEW_SIDE."""
    height, width = frames.shape[1:3]
    scale = min(PREVIEW_SIDE / min(height, width), 1.0)
    size = (max(2 * round(width * scale / 2), 2), max(2 * round(height * scale / 2), 2))
    if size != (width, height):
        frames = np.stack([_reduced(frame, size) for frame in frames])
    return _encode(frames, fps, PREVIEW)


def _reduced(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame (H,W,3) at a smaller size (width, height): means of whole blocks, then bilinear by less than 2.

    OpenCV's area mean with a fraction of a pixel takes five times as long.
    """
    block = min(frame.shape[1] // size[0], frame.shape[0] // size[1])
    if block > 1:
        whole = (frame.shape[1] // block, frame.shape[0] // block)
        frame = cv2.resize(frame[: whole[1] * block, : whole[0] * block], whole, interpolation=cv2.INTER_AREA)
    return cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)


def _encode(frames: np.ndarray, fps: float, quality: dict[str, str], sound: Sound | KeptSound | None = None) -> bytes:
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    options |= {} if sound is None else {"movie_timescale": str(timescale(sound))}
    with tempfile.TemporaryDirectory() as folder:  # faststart opens the file a second time, so it needs a real file
        path = Path(folder, "clip.mp4")
        with av.open(str(path), "w", options=options) as container:
            _encode_into(container, frames, fps, quality, sound)
        return path.read_bytes()


def _encode_into(
    container: av.container.OutputContainer,
    frames: np.ndarray,
    fps: float,
    quality: dict[str, str],
    sound: Sound | KeptSound | None,
) -> None:
    """Encode all frames: closed GOPs of at most 48 frames, no B-frames, and one thread for reproducible bytes. The
    packets of the sound are written before the frame at which they begin."""
    lossless = quality is LOSSLESS
    codec, options = "libx264rgb" if lossless else "libx264", {**quality, "bf": "0", "g": "48"}
    options["x264-params"] = "open-gop=0:threads=1:lookahead-threads=1:rc-lookahead=0:mbtree=0"  # mbtree is not exact
    stream = container.add_stream(codec, rate=exact_rate(fps), options=options)
    assert isinstance(stream, av.VideoStream)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "rgb24" if lossless else "yuv420p"
    if not lossless:
        _tag_bt709(stream.codec_context)
    packets = [] if sound is None else add_sound(container, sound)
    for number, rgb in enumerate(frames):
        while packets and packets[0][0] <= number / exact_rate(fps):
            container.mux(packets.pop(0)[1])
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        container.mux(stream.encode(frame if lossless else _to_bt709(frame)))
    container.mux(stream.encode())
    container.mux([packet for _, packet in packets])


def _tag_bt709(encoder: av.VideoCodecContext) -> None:
    """Make the encoder write how `_to_bt709` made its frames, so that every player shows the same colours."""
    encoder.colorspace, encoder.color_range = Colorspace.ITU709, ColorRange.MPEG
    encoder.color_primaries, encoder.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


def _to_bt709(frame: av.VideoFrame) -> av.VideoFrame:
    """RGB -> yuv420p in BT.709, limited range."""
    return frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=EXACT,
        threads=1,  # by default libswscale starts a thread per core for every frame
    )


def decode_clip(data: bytes) -> np.ndarray:
    """Decode a clip of `encode_clip` to uint8 RGB (F,H,W,3). ValueError when the bytes are damaged.

    decord 0.6 contains an FFmpeg of 2018 (4.1), which gets no security updates. It must only see clips that this
    project wrote and whose checksum was compared (`ShardSet.read_pair`), never a user's file. Bytes other than an mp4
    are refused before, because other demuxers of FFmpeg open further files.
    """
    if data[4:8] != b"ftyp":
        raise ValueError("the bytes cannot be decoded as a clip")
    try:
        reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()
    except RuntimeError as error:
        raise ValueError("the bytes cannot be decoded as a clip") from error
    except decord.DECORDError:  # decord 0.6 reads padded rows (widths 16, 24, 48, 72) as a fourth channel
        return np.stack([decoded.frame.to_ndarray(format="rgb24", threads=1) for decoded in decode(io.BytesIO(data))])
