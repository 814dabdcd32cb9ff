"""The sound of the targets (`data.sound`): read for each window, stored with the pair, encoded by the audio VAE.

A window has the sound that plays while its frames are shown. It is stored in 16 bits at the file's own rate, and
resampled for the audio VAE afterwards, so that stored pairs give the same latents as pairs that were just made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from data_prep.clips.clip_list import Clip
from data_prep.clips.windows import Window
from iclora_train.config import Config, require
from iclora_train.core.fingerprint import digest
from iclora_train.core.types import AudioGeometry, Sound
from iclora_train.ltx2.audio.audio_vae import AudioVAE
from iclora_train.ltx2.audio.codec import audio_geometry
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.picture import is_picture
from iclora_train.media.sound import decode_wav, encode_wav, frame_seconds, probe_sound, read_sound, resample

LTX2_SOUND = AudioGeometry(channels=8, bins=16, sample_rate=16000, hop=160)  # of every published LTX-2


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


def has_sound(clip: Clip) -> bool:
    """Whether a clip has a sound track."""
    return not is_picture(clip.path) and probe_sound(clip.path) is not None


def sounds_of(clip: Clip, windows: Sequence[Window]) -> Iterator[Sound | None]:
    """The sound of each window, stereo in 16 bits; None for a clip without sound.

    Where the track begins late or ends early there is silence. ValueError names a file whose sound cannot be decoded.
    """
    if not has_sound(clip):
        yield from (None for _ in windows)
        return
    first = {window.indices[0] for window in windows}
    starts = frame_seconds(clip.path, first, max(first), clip.section)
    for window in windows:
        seconds = len(window.indices) / Fraction(window.fps)
        sound = read_sound(clip.path, starts[window.indices[0]], seconds)
        yield decode_wav(encode_wav(sound))


@torch.no_grad()
def encode_sound(vae: AudioVAE, sound: Sound | None, frames: int, fps: float) -> Tensor:
    """Latents (C,l,m) of the sound of a clip of `frames` frames; None: of silence."""
    geometry = vae.geometry
    if sound is None:
        sound = Sound(np.zeros((2, round(frames / fps * geometry.sample_rate)), np.float32), geometry.sample_rate)
    samples = torch.from_numpy(resample(sound, geometry.sample_rate).samples)
    return vae.encode(samples[None], geometry.latent_frames(frames, fps))[0]
