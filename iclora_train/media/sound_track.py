"""The sound of an mp4 that is written: samples encoded as AAC, or a file's own packets unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np
from av.codec.context import Flags

from iclora_train.core.types import Sound
from iclora_train.media.container import open_video
from iclora_train.media.sound import resample
from iclora_train.media.sound_decoder import begin_of, require_sound

BIT_RATE = 192_000  # bits per second of AAC
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


@dataclass(frozen=True)
class KeptSound:
    """The sound of a file whose packets are written unchanged: nothing is decoded and encoded again."""

    path: Path


def add_sound(container: av.container.OutputContainer, sound: Sound | KeptSound) -> list[tuple[Fraction, av.Packet]]:
    """Add a sound stream to an mp4. Returns its packets in order, each with its time in seconds."""
    return _kept(container, sound) if isinstance(sound, KeptSound) else _encoded(container, sound)


def timescale(sound: Sound | KeptSound) -> int:
    """Ticks per second of the mp4's edit list, so that the first and last sample are exact."""
    if isinstance(sound, Sound):
        return _aac_rate(sound.rate)
    with open_video(sound.path) as container:
        return require_sound(container, sound.path).codec_context.sample_rate


def _aac_rate(rate: int) -> int:
    return rate if rate in AAC_RATES else 48000


def _encoded(container: av.container.OutputContainer, sound: Sound) -> list[tuple[Fraction, av.Packet]]:
    """The samples as AAC. The same samples give the same packets."""
    sound = resample(sound, _aac_rate(sound.rate))
    layout = {1: "mono", 2: "stereo"}[len(sound.samples)]
    stream = container.add_stream("aac", rate=sound.rate, layout=layout)
    assert isinstance(stream, av.AudioStream)
    stream.bit_rate = BIT_RATE
    stream.codec_context.flags |= Flags.bitexact
    samples = np.ascontiguousarray(sound.samples.clip(-1, 1), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = sound.rate, Fraction(1, sound.rate), 0
    return [(Fraction(packet.pts or 0, sound.rate), packet) for packet in (*stream.encode(frame), *stream.encode(None))]


def _kept(container: av.container.OutputContainer, sound: KeptSound) -> list[tuple[Fraction, av.Packet]]:
    """The packets of a file, moved so that its first video frame is at time 0."""
    with open_video(sound.path) as source:
        stream = require_sound(source, sound.path)
        target = container.add_stream_from_template(stream)
        assert stream.time_base is not None
        shift = round(begin_of(sound.path) / stream.time_base)
        packets = []
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None:
                packet.pts -= shift
                packet.dts = None if packet.dts is None else packet.dts - shift
                packet.stream = target
                packets.append((packet.pts * stream.time_base, packet))
    return packets
