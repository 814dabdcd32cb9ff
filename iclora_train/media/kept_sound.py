"""Keep a source's sound: its own packets where a video with them plays the same samples at the same times."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

from iclora_train.core.types import Sound
from iclora_train.media.container import open_video
from iclora_train.media.shard_clip import encode_clip
from iclora_train.media.sound import read_sound
from iclora_train.media.sound_decoder import begin_of, require_sound
from iclora_train.media.sound_track import KeptSound

MP4_CODECS = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")  # that players find in an mp4
LATE = Fraction(1, 20)  # seconds by which the sound that is kept may end after the video


def kept_or_read(path: Path, start: Fraction, seconds: Fraction) -> Sound | KeptSound:
    """The sound of a file for a video of `seconds` that shows it from `start` on (as in `read_sound`).

    Its own packets, if the video shows the whole clip, players find the codec in an mp4, and every sample then stays
    at its time; otherwise samples, which are encoded again. ValueError as in `read_sound`."""
    sound = read_sound(path, start, seconds)
    if start == 0 and _ends_with(path, seconds):
        kept = KeptSound(path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "sound.mp4")
            copy.write_bytes(encode_clip(np.zeros((1, 64, 64, 3), np.uint8), 25, lossless=False, sound=kept))
            if np.array_equal(read_sound(copy, start, seconds).samples, sound.samples):
                return kept
    return sound


def _ends_with(path: Path, seconds: Fraction) -> bool:
    """Whether the codec of a file's sound belongs in an mp4, and the sound ends with a video of `seconds` or before."""
    with open_video(path) as container:
        stream = require_sound(container, path)
        if stream.codec_context.codec.canonical_name not in MP4_CODECS or stream.time_base is None:
            return False
        ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.size and p.pts is not None]
        return bool(ends) and max(ends) * stream.time_base - begin_of(path) <= seconds + LATE
