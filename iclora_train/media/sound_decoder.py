"""Decode the sound stream of a file to stereo samples, each at its time.

FFmpeg leaves out the delay that encoders such as AAC's put before the first sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np
from av.stream import Disposition

from iclora_train.media.container import RE_ENCODE, decode, open_video

GAP = Fraction(1, 100)  # seconds; smaller jumps of the times are rounding: pieces of sound then follow each other
FAR = 60  # seconds; sound from there on is read by seeking. AAC's substituted noise then differs, the rest does not
LONGEST_SILENCE = 3600  # seconds; longer gaps between pieces of sound are wrong times
PREROLL = 1  # seconds decoded before it, so that the decoder has the state that it needs
SEEKABLE = ("mp4", "wav")  # containers in which the times of sound are exact
_CENTRE = 2**-0.5  # weight of channels that are heard on both sides or from behind
_SIDES = {  # channel -> its weights on the left and on the right. The bass channel LFE is left out, as in ITU-R BS.775
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_CENTRE, _CENTRE),
    "BC": (_CENTRE, _CENTRE),
    "BL": (_CENTRE, 0.0),
    "SL": (_CENTRE, 0.0),
    "BR": (0.0, _CENTRE),
    "SR": (0.0, _CENTRE),
    "LFE": (0.0, 0.0),
}


class _UnusableSoundError(ValueError):
    """Sound that decodes but cannot be used."""


def sound_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    """The sound stream that is read: the first that is marked as default, else the first. None if there is none."""
    streams = container.streams.audio
    return max(streams, key=lambda stream: bool(stream.disposition & Disposition.default)) if streams else None


def require_sound(container: av.container.InputContainer, path: Path) -> av.AudioStream:
    """`sound_stream`. ValueError if there is none."""
    stream = sound_stream(container)
    if stream is None:
        raise ValueError(f"{path}: it has no sound; give a file with sound, or do without sound")
    return stream


def begin_of(path: Path) -> Fraction:
    """Seconds at which the first video frame is shown, in the times of the file; without video, the first sample."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    with open_video(path) as container:
        if all(stream.disposition & covers for stream in container.streams.video):
            frames = container.decode(require_sound(container, path))
            return next((time_of(frame) for frame in frames), Fraction(0))
    return time_of(next(decode(path)).frame)


def time_of(frame: av.VideoFrame | av.AudioFrame) -> Fraction:
    """The presentation time of a frame in seconds; 0 where the file does not tell."""
    return Fraction(0) if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def decode_sound(path: Path, start: Fraction, seconds: Fraction | None) -> tuple[np.ndarray, int]:
    """Stereo samples fp32 (2,S) and their number per second, as `sound.read_sound` describes, at the file's rate."""
    with open_video(path) as container:
        stream = require_sound(container, path)
        try:
            begin = begin_of(path) + start
            if start > FAR:
                _seek(container, stream, begin)
            samples, rate = _joined(container.decode(stream), begin, seconds, stream.codec_context.sample_rate)
            end = _declared_end(container, stream)
            return samples[:, : None if end is None else max(round((end - begin) * rate), 0)], rate
        except av.FFmpegError as error:
            raise ValueError(f"{path}: its sound cannot be decoded ({error.strerror}); {RE_ENCODE}") from error
        except _UnusableSoundError as error:
            raise ValueError(f"{path}: {error}; {RE_ENCODE}") from error


def _seek(container: av.container.InputContainer, stream: av.AudioStream, begin: Fraction) -> None:
    """Move to a time shortly before `begin`, if the times of the sound are exact there."""
    time_base, rate = stream.time_base, stream.codec_context.sample_rate
    exact = time_base is not None and rate and (time_base * rate).denominator == 1
    if exact and set(SEEKABLE) & set(container.format.name.split(",")):
        assert time_base is not None
        container.seek(int((begin - PREROLL) / time_base), stream=stream)


def _declared_end(container: av.container.InputContainer, stream: av.AudioStream) -> Fraction | None:
    """Seconds at which the sound of an mp4 ends. Its last packet may hold more: what the encoder added to fill it."""
    if "mp4" not in container.format.name.split(",") or not stream.duration or stream.time_base is None:
        return None
    return ((stream.start_time or 0) + stream.duration) * stream.time_base


def _joined(
    frames: Iterable[av.AudioFrame], begin: Fraction, seconds: Fraction | None, declared: int
) -> tuple[np.ndarray, int]:
    """The pieces of sound, each at its time after `begin`; silence elsewhere. declared: the rate by the header."""
    rate, following = 0, None
    pieces: list[tuple[int, np.ndarray]] = []
    for frame in frames:
        rate = rate or frame.sample_rate
        if frame.sample_rate != rate:
            raise _UnusableSoundError("the sample rate of its sound changes")
        position = _position(frame, begin, rate, following)
        if seconds is not None and position >= round(seconds * rate):
            break
        following = position + frame.samples
        if following > 0:
            pieces.append((position, stereo(frame)))
    rate = rate or declared
    if not rate:
        raise _UnusableSoundError("its sound has no samples")
    end = max((position + piece.shape[1] for position, piece in pieces), default=0)
    if seconds is None and end - sum(piece.shape[1] for _, piece in pieces) > LONGEST_SILENCE * rate:
        raise _UnusableSoundError("the times of its sound are wrong")
    samples = np.zeros((2, end if seconds is None else round(seconds * rate)), np.float32)
    if not all(np.isfinite(piece).all() for _, piece in pieces):
        raise _UnusableSoundError("its sound has values that are not finite")
    for position, piece in pieces:
        place = samples[:, max(position, 0) : position + piece.shape[1]]
        first = max(-position, 0)
        place[:] = piece[:, first : first + place.shape[1]]
    return samples, rate


def _position(frame: av.AudioFrame, begin: Fraction, rate: int, following: int | None) -> int:
    """The number of the frame's first sample after `begin`. following: that of the sample after the frame before it."""
    if frame.pts is None:
        return following or 0
    position = round((time_of(frame) - begin) * rate)
    return position if following is None or abs(position - following) > GAP * rate else following


def stereo(frame: av.AudioFrame) -> np.ndarray:
    """A frame as fp32 (2,S), where 1 is full scale. Mono is heard on both sides. More channels are mixed with weights
    whose sum is 1 on each side, so that nothing clips; unknown channels are averaged."""
    channels = frame.layout.nb_channels
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    kind, samples = values.dtype, values.astype(np.float32)
    if np.issubdtype(kind, np.integer):
        samples /= np.float32(2 ** (8 * kind.itemsize - 1))
        samples -= np.float32(kind == np.uint8)  # the only unsigned kind: 128 is silence
    if channels == 2:
        return samples
    weights = np.array([_SIDES.get(channel.name, (1.0, 1.0)) for channel in frame.layout.channels], np.float32).T
    weights[weights.sum(axis=1) == 0] = 1  # a side without channels of its own hears all
    mixed: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)) @ samples
    return mixed
