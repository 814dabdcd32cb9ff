"""The sound of the targets (`data.sound`) and of their audio references (`task.audio_reference`): read for each window,
stored with the pair, encoded by the audio VAE.

A window has the sound that plays while its frames are shown. It is stored in 16 bits at the file's own rate, and
resampled for the audio VAE afterwards, so that stored pairs give the same latents as pairs that were just made. The
resampler is that of the audio VAE's front end, as in generate (`AudioCodec.encode`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.clips.clip_list import Clip
from data_prep.clips.windows import Window
from iclora_train.config import Config, require
from iclora_train.config.audio_reference import COLUMN
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import AudioGeometry, Sound
from iclora_train.ltx2.audio.audio_vae import AudioVAE
from iclora_train.ltx2.audio.codec import audio_geometry
from iclora_train.ltx2.audio.resample import can_resample, resample
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.picture import is_picture
from iclora_train.media.sound import decode_wav, encode_wav, probe_sound, read_sound
from iclora_train.media.sound_decoder import begin_of

LTX2_SOUND = AudioGeometry(channels=8, bins=16, sample_rate=16000, hop=160)  # of every published LTX-2
COMMON_RATE = 48000  # in place of rates that the audio VAE's front end cannot change, such as 44101


def require_audio_half(config: Config, base: BaseModel) -> None:
    """ConfigError if data.sound is set and the base has no audio stream, or no audio VAE."""
    if config.data.sound is None:
        return
    require(
        base.has_audio_half,
        f"data.sound={config.data.sound}: {base.checkpoint.source} is the video stream alone; name a checkpoint with "
        "its audio half, or set data.sound=null",
    )
    audio_geometry(base.checkpoint)


def fingerprint_of_sound(config: Config, base: BaseModel) -> dict[str, str]:
    """The part of the base that audio latents depend on besides the text encoder; none without data.sound."""
    if config.data.sound is None:
        return {}
    vae = base.checkpoint.component("audio_vae")
    section = vae.config if vae.diffusers else vae.config["audio_vae"]
    return {"audio_vae": digest([section, vae.fingerprint()])[:16]}


def geometry_of_sound(config: Config, base: BaseModel | None) -> AudioGeometry | None:
    """Sizes of the audio latents; None without data.sound. base: None if none is named yet."""
    if config.data.sound is None:
        return None
    return LTX2_SOUND if base is None else audio_geometry(base.checkpoint)


def has_sound(path: Path) -> bool:
    """Whether a file has a sound track."""
    return not is_picture(path) and probe_sound(path) is not None


def check_sound(clip: Clip, config: Config) -> None:
    """ValueError says why a clip cannot be used: its sound or that of its audio reference is missing."""
    required, reference = config.data.sound == "required", config.task.reference_sound
    if required and not has_sound(clip.path):
        raise ValueError("it has no sound, and data.sound=required; data.sound=silence uses it with silence")
    if reference is None:
        return
    assert reference.source is not None
    path = reference_file(clip, reference.source)
    if path is None:
        named = "has no `reference_sound`" if reference.source == "column" else "names no reference"
        raise ValueError(f"its row {named}, which task.audio_reference.source={reference.source} needs")
    if not has_sound(path) and required:  # a file that cannot be read raises in any case
        raise ValueError(
            f"its audio reference {path} has no sound, and data.sound=required; data.sound=silence uses it with silence"
        )


def reference_file(clip: Clip, source: str) -> Path | None:
    """The file with the sound of `task.audio_reference`; None if the clip has none."""
    return {"target": clip.path, "reference": clip.reference, "column": clip.files.get(COLUMN)}[source]


@dataclass(frozen=True)
class SoundFile:
    """A file with the sound of the windows of a clip.

    rate: at which it is read; None: its own. begin: the time, on the clock of the video that shows the windows, at
    which the sound begins; None: that of the frame from which the windows count, frame 0.
    """

    path: Path
    rate: int | None
    begin: Fraction | None

    @classmethod
    def of(cls, clip: Clip, source: str) -> SoundFile | None:
        """The sound of a clip or of its audio reference; None without sound. source: as `task.audio_reference.source`.

        A supplied reference has the window's frames too, and the window has the sound of these; a file of the list runs
        along the clip, or along its section.
        """
        path = reference_file(clip, source)
        track = None if path is None or is_picture(path) else probe_sound(path)
        if path is None or track is None:
            return None
        section = clip.reference_section if source == "reference" else clip.section
        begin = None if source == "column" or section is None else begin_of(path)
        return cls(path, None if can_resample(track.rate, LTX2_SOUND.sample_rate) else COMMON_RATE, begin)

    def read(self, window: Window, times: Mapping[int, Fraction]) -> Sound:
        """The sound that plays while the frames of a window are shown, stereo in 16 bits.

        times: of the video's frames by number (`media.clip.read_clip`). Where the track begins late or ends early there
        is silence. ValueError names a file whose sound cannot be decoded.
        """
        begin = times[0] if self.begin is None else self.begin
        seconds = len(window.indices) / Fraction(window.fps)
        sound = read_sound(self.path, times[window.indices[0]] - begin, seconds, self.rate)
        return decode_wav(encode_wav(sound))


class PairSounds:
    """The sounds of the windows of a clip: its own (`data.sound`) and that of its audio reference.

    times, reference_times: of the frames of the clip and of its supplied reference, filled while these are read.
    """

    def __init__(self, clip: Clip, config: Config) -> None:
        reference = config.task.reference_sound
        self.target = SoundFile.of(clip, "target") if config.data.sound else None
        self.source = None if reference is None else reference.source
        self.reference = None if self.source is None else SoundFile.of(clip, self.source)
        self.times: dict[int, Fraction] = {}
        self.reference_times: dict[int, Fraction] = {}

    def read(self, window: Window) -> tuple[Sound | None, Sound | None]:
        """The sounds of a window whose frames were read; None for a file without sound, or without such a sound."""
        times = self.reference_times if self.source == "reference" else self.times
        target = None if self.target is None else self.target.read(window, self.times)
        return target, None if self.reference is None else self.reference.read(window, times)


@torch.no_grad()
def encode_sound(vae: AudioVAE, sound: Sound | None, frames: int, fps: float) -> Tensor:
    """Latents (C,l,m) of the sound of a clip of `frames` frames; None: of silence."""
    geometry = vae.geometry
    if sound is None:
        sound = Sound(np.zeros((2, round(frames / fps * geometry.sample_rate)), np.float32), geometry.sample_rate)
    samples = resample(torch.from_numpy(sound.samples)[None], sound.rate, geometry.sample_rate)
    return vae.encode(samples, geometry.latent_frames(frames, fps))[0]
