"""Read the sound of a clip or a sound file, for any section of its video; resample it; write wav files.

Sample 0 belongs to the first frame of the video, or of its section. Where the file has no sound (it begins late, has a
gap or ends early) there is silence.
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from iclora_train.core.types import Sound
from iclora_train.media.container import open_video
from iclora_train.media.sound_decoder import decode_sound, sound_stream


@dataclass(frozen=True)
class SoundTrack:
    """A sound stream by its header: codec in FFmpeg's words, samples per second, number of channels."""

    codec: str
    rate: int
    channels: int

    def __str__(self) -> str:
        kinds = {1: "mono", 2: "stereo"}
        return f"{self.codec}, {self.rate} Hz, {kinds.get(self.channels, f'{self.channels} channels')}"


def probe_sound(path: Path) -> SoundTrack | None:
    """The sound of a clip or a sound file, by its header; None without sound. ValueError for an unreadable file."""
    with open_video(path) as container:
        stream = sound_stream(container)
        if stream is None:
            return None
        context = stream.codec_context
        return SoundTrack(context.codec.canonical_name, context.sample_rate, context.layout.nb_channels)


def read_sound(
    path: Path, start: Fraction = Fraction(0), seconds: Fraction | None = None, rate: int | None = None
) -> Sound:
    """Stereo sound of [start, start + seconds), in seconds after the first frame of the video, or after the first
    sample of a file without video.

    It has round(seconds x rate) samples; seconds None: up to the end of the sound. rate: samples per second; None: that
    of the file. Mono is heard on both sides, more channels are mixed down (`sound_decoder.stereo`). ValueError names
    the file if it has no sound, or if its sound cannot be decoded."""
    samples, own_rate = decode_sound(path, start, seconds)
    sound = resample(Sound(samples, own_rate), rate or own_rate)
    return sound if seconds is None else sound.fitted(seconds)


def resample(sound: Sound, rate: int) -> Sound:
    """The same sound with `rate` samples per second, S rate / sound.rate rounded up, by FFmpeg's resampler."""
    if rate == sound.rate or not sound.samples.shape[1]:
        return Sound(sound.samples, rate)
    layout = {1: "mono", 2: "stereo"}[len(sound.samples)]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.samples), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = sound.rate, Fraction(1, sound.rate), 0
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    return Sound(samples, rate).fitted(Fraction(-(-sound.samples.shape[1] * rate // sound.rate), rate))


def decode_wav(data: bytes) -> Sound:
    """The sound in a file of `encode_wav`. ValueError if it is damaged."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate, count = (
                file.getsampwidth(),
                file.getnchannels(),
                file.getframerate(),
                file.getnframes(),
            )
            levels = np.frombuffer(file.readframes(count), "<i2")
    except (wave.Error, EOFError, ValueError) as error:
        raise ValueError(f"its sound is damaged ({error})") from error
    if width != 2 or len(levels) != count * channels:
        raise ValueError("its sound is damaged")
    return Sound(np.ascontiguousarray(levels.reshape(-1, channels).T, np.float32) / np.float32(32768), rate)


def encode_wav(sound: Sound) -> bytes:
    """A wav file with 16 bits per sample. Samples that were read from such a file are written unchanged."""
    levels = np.clip(np.rint(sound.samples * 32768), -32768, 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(len(levels))
        out.setsampwidth(2)
        out.setframerate(sound.rate)
        out.writeframes(np.ascontiguousarray(levels.T).tobytes())
    return file.getvalue()
