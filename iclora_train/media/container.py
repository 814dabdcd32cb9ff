"""Open a video file and decode its frames.

FFmpeg gets the bytes of one regular file and opens nothing by itself: neither network addresses nor the files that a
playlist names. A user's clip is decoded from its first frame to its last, because seeking makes decoders return wrong
frames (open GOPs, missing timestamps). Parts of long files are read from a safe place before them (`seek.py`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import av.container
from av.stream import Disposition

from iclora_train.core.regular_files import open_regular
from iclora_train.media.frame_decoder import MAX_PIXELS, DecodedFrame, FrameDecoder
from iclora_train.media.orientation import pixel_aspect
from iclora_train.media.seek import SeekPoint, find_seek_point

RE_ENCODE = "re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4) or remove it from the clips"
REMOVE = "give a video file or remove it from the clips"
# FFmpeg's names of the containers that are read. Playlists (concat, hls, dash, sdp, ...) are not among them: they open
# other files and addresses. The sound formats are here so that the message about them can say that they have no video.
_VIDEO_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,mxf,gxf,nut,dv"
_PICTURE_FORMATS = "gif,apng,png_pipe,jpeg_pipe,webp,webp_pipe,webp_anim,bmp_pipe,tiff_pipe,mjpeg,yuv4mpegpipe"
_SOUND_FORMATS = "wav,mp3,flac,aac,aiff,caf"
_OPTIONS = {
    "format_whitelist": f"{_VIDEO_FORMATS},{_PICTURE_FORMATS},{_SOUND_FORMATS}",
    "protocol_whitelist": "none",
    "max_pixels": str(MAX_PIXELS),  # FFmpeg decodes some frames to find the format
}
_HEAD_BYTES = 256
_KINDS = (  # files that are not videos: pattern of the beginning, name of the kind
    (rb"version https://git-lfs", "a Git LFS pointer instead of the video: run git lfs pull"),
    (rb"ffconcat version|#EXTM3U|\s*(<\?xml[^>]*>\s*)?<MPD|v=0\r?\no=", "a list of other files, which are not opened"),
    (rb"(?i)\s*(<!doctype html|<html)", "a web page"),
    (rb"....(ftyp|wide|mdat|skip)", "an mp4 or mov without index: its recording, copy or download was not finished"),
    (rb"[\t-\r\x1b -\xff]+\Z", "a text file"),
)


@contextmanager
def open_video(file: Path | io.BytesIO) -> Iterator[av.container.InputContainer]:
    """Open a video, given by its path or its bytes. ValueError if the path is not a file, or not one with a video."""
    if isinstance(file, io.BytesIO):
        with _open_stream("the clip", file) as container:
            yield container
        return
    try:
        stream = open_regular(file)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read as a video ({error.strerror}); {REMOVE}") from error
    with stream, _open_stream(str(file), stream) as container:
        yield container


def _open_stream(name: str, stream: IO[bytes]) -> av.container.InputContainer:
    """Open a video by its bytes, so that no file name is parsed as an address or a pattern."""
    try:
        return av.open(stream, "r", options=_OPTIONS)
    except av.FFmpegError as error:
        stream.seek(0)
        kind = _kind_of(stream.read(_HEAD_BYTES))
        reason = f"it is {kind}); {REMOVE}" if kind else f"{error.strerror}); {RE_ENCODE}"
        raise ValueError(f"{name}: cannot be read as a video ({reason}") from error


def _kind_of(head: bytes) -> str | None:
    """What a file that begins with `head` is instead of a video, or None if the beginning does not show it."""
    if not head:
        return "empty"
    return next((kind for pattern, kind in _KINDS if re.match(pattern, head, re.DOTALL)), None)


def video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The video stream that is read: the first that is marked as default, else the first. Cover art does not count.

    ValueError if there is none.
    """
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        extent = "no video stream but cover art" if container.streams.video else "no video stream"
        raise ValueError(f"{name}: {extent}; {REMOVE}")
    return max(streams, key=lambda stream: bool(stream.disposition & Disposition.default))


def decode(file: Path | io.BytesIO, seconds: Fraction | None = None) -> Iterator[DecodedFrame]:
    """Decode the frames of a video in one pass. ValueError names the file and the remedy.

    seconds: a time in the file before which no frame is needed: the frames begin there or earlier (`seek.py`). None:
    without seeking.
    """
    name = str(file) if isinstance(file, Path) else "the clip"
    count, end = 0, 0
    point = None if seconds is None else _seek_point(file, seconds)
    with open_video(file) as container:
        try:
            stream = video_stream(container, name)
            decoder, aspect = _decoder(stream, name)
            rate = stream.average_rate or None
            if point is not None:
                container.seek(point.begin, stream=stream)
            for packet in container.demux(stream):
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
                for frame in decoder.decode(packet):
                    if point is not None and frame.pts is not None and frame.pts < point.exact:
                        continue
                    if frame.is_corrupt:
                        raise ValueError(f"{name}: frame {count} is damaged; {RE_ENCODE}")
                    count += 1
                    yield DecodedFrame(frame, aspect, rate)
            missing = _missing_seconds(container, stream, end, count)
        except av.FFmpegError as error:
            problem = f"damaged after frame {count}" if count else "cannot be read as a video"
            raise ValueError(f"{name}: {problem} ({error.strerror}); {RE_ENCODE}") from error
    if count == 0:
        raise ValueError(f"{name}: the video stream has no frames; {RE_ENCODE}")
    if missing:
        raise ValueError(f"{name}: truncated, the last {missing:.2f} s are missing after frame {count}; {RE_ENCODE}")


def _seek_point(file: Path | io.BytesIO, seconds: Fraction) -> SeekPoint | None:
    """Where to begin to read from a time on; None: at the first frame."""
    with open_video(file) as container:
        return find_seek_point(container, video_stream(container, str(file)), seconds)


def _decoder(stream: av.VideoStream, name: str) -> tuple[FrameDecoder, Fraction]:
    """The decoder of a stream and the shape of its pixels. ValueError if the size of its frames cannot be used."""
    try:
        return FrameDecoder(stream), pixel_aspect(stream)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {RE_ENCODE}") from error


def read_encoding(path: Path) -> tuple[str, str]:
    """Codec and pixel format of a clip's video stream, from its header, in FFmpeg's names.

    ValueError names the file and the remedy.
    """
    with open_video(path) as container:
        context = video_stream(container, str(path)).codec_context
        return context.name, str(context.pix_fmt)


def _missing_seconds(container: av.container.InputContainer, stream: av.VideoStream, end: int, count: int) -> float:
    """Seconds from the last packet's end (`end`, in ticks) to the end by the header; 0 if shorter than two frames.

    A frame is 1 / rate, or the mean of the `count` frames that were read: some AVI files declare a rate of 1,000 fps.
    """
    declared = _declared_end(container, stream)
    if declared is None or not stream.time_base or not stream.average_rate:
        return 0.0
    missing = float(declared - end * stream.time_base)
    frame = max(1 / float(stream.average_rate), float(end * stream.time_base) / max(count, 1))
    return missing if missing > 2 * frame else 0.0


def _declared_end(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    """Seconds at which the video ends by the header, None if it does not say so.

    Matroska, WebM and flv declare the length of the whole file. FFmpeg and mkvmerge add a tag with the length of each
    stream to Matroska; another program may have copied it from a longer file.
    """
    if stream.duration and stream.time_base:
        return (stream.duration + (stream.start_time or 0)) * stream.time_base
    if not container.duration:
        return None
    whole = Fraction(container.duration, av.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip())
    if tag is None:
        return whole if len(container.streams) == 1 else None
    return min(whole, 3600 * int(tag[1]) + 60 * int(tag[2]) + Fraction(tag[3]))
