"""Sound <-> audio latents: the audio VAE and the vocoder of one checkpoint, in either layout.

codec = AudioCodec.open(base.checkpoint).to(device)
sound = read_sound(clip, start, seconds)                                      # iclora_train/media/sound.py
frames = codec.geometry.latent_frames(shape.frames, shape.fps)                # l
latent = codec.encode(sound, frames)                                          # (1,C,l,m), normalised
tokens, times = to_tokens(latent), token_times(codec.geometry, frames)        # (1,l,C m) and (1,1,l,2)
... sampling ...
sound = codec.decode(to_latent(tokens, codec.geometry)).fitted(shape.frames / shape.fps)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor, nn

from iclora_train.config import ConfigError
from iclora_train.core.types import AudioGeometry, Sound
from iclora_train.ltx2.audio.audio_vae import AudioVAE
from iclora_train.ltx2.audio.layout import (
    FIXED_FOLDER,
    WINDOW,
    Section,
    check_rates,
    geometry_of,
    require_fixed,
    vae_arguments,
    vae_key,
    vocoder_arguments,
    vocoder_key,
)
from iclora_train.ltx2.audio.resample import resample
from iclora_train.ltx2.audio.vocoder import Vocoder
from iclora_train.ltx2.weights.model_files import Checkpoint
from iclora_train.ltx2.weights.safetensors_header import Component


def has_audio(checkpoint: Checkpoint) -> bool:
    """Whether sound can be generated with the checkpoint: it has an audio VAE and a vocoder."""
    return {"audio_vae", "vocoder"} <= checkpoint.components.keys()


def audio_geometry(checkpoint: Checkpoint) -> AudioGeometry:
    """Sizes of the checkpoint's audio latents; reads no weights. ConfigError if it has no audio VAE."""
    component = checkpoint.component("audio_vae")
    with _naming(component):
        return geometry_of(vae_config(component)[0])


def open_audio_vae(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> AudioVAE:
    """Load the audio VAE alone, frozen, on the CPU. ConfigError as in `AudioCodec.open`."""
    vae = checkpoint.component("audio_vae")
    with _naming(vae):
        arguments, window = vae_config(vae)
        state = {name if vae.diffusers else vae_key(name): tensor for name, tensor in vae.read()}
        return AudioVAE.build(arguments, state, window, dtype, vae.where)


class AudioCodec(nn.Module):
    """Encodes sound as normalised audio latents, and decodes them."""

    def __init__(self, vae: AudioVAE, vocoder: Vocoder) -> None:
        super().__init__()
        self.vae, self.vocoder = vae, vocoder
        self.geometry = vae.geometry
        self.output_rate = vocoder.sample_rate  # samples per second of decoded sound

    @classmethod
    def open(cls, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> AudioCodec:
        """Load both, frozen, on the CPU. dtype: of the VAE; the vocoder always computes in fp32.

        ConfigError if the checkpoint lacks one of them (the message names model.audio_vae), and for wrong keys."""
        encoder, vocoder = open_audio_vae(checkpoint, dtype), checkpoint.component("vocoder")
        with _naming(vocoder):
            voice = vocoder_config(vocoder, encoder.mel_bins)
            check_rates(voice, encoder.geometry)
            state = {name if vocoder.diffusers else vocoder_key(name): tensor for name, tensor in vocoder.read()}
            return cls(encoder, Vocoder.build(voice, state, vocoder.where))

    @torch.no_grad()
    def encode(self, sound: Sound, latent_frames: int | None = None) -> Tensor:
        """Stereo sound of any rate -> normalised latents (1,C,l,m), fp32 (`AudioVAE.encode`)."""
        waveform = resample(torch.from_numpy(sound.samples)[None], sound.rate, self.geometry.sample_rate)
        return self.vae.encode(waveform, latent_frames)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Sound:
        """Normalised latents (1,C,l,m) -> stereo sound at `output_rate`.

        It is 4 (l - 1) + 1 mel frames long, which is up to 0.05 s shorter than a video with l latent frames of sound:
        `Sound.fitted` adds the silence."""
        waveform = self.vocoder(self.vae.decode(latent))[0]
        return Sound(waveform.clamp(-1, 1).cpu().numpy(), self.output_rate)


def vae_config(component: Component) -> tuple[Section, int]:
    """Arguments of AutoencoderKLLTX2Audio, and the window of the front end, which a diffusers folder lacks."""
    if component.diffusers:
        arguments = _folder_arguments(component, AutoencoderKLLTX2Audio)
        require_fixed(arguments, FIXED_FOLDER, "config.json")
        return arguments, WINDOW
    return vae_arguments(component.config)


def vocoder_config(component: Component, mel_bins: int) -> Section:
    """Arguments of LTX2Vocoder, or of LTX2VocoderWithBWE."""
    if component.diffusers:
        extends = component.config.get("_class_name", LTX2VocoderWithBWE.__name__) == LTX2VocoderWithBWE.__name__
        return _folder_arguments(component, LTX2VocoderWithBWE if extends else LTX2Vocoder)
    return vocoder_arguments(component.config, mel_bins)


def _folder_arguments(component: Component, kind: Any) -> Section:
    """config.json of a diffusers folder -> all arguments of its class, older folders lack some. ConfigError for an
    unknown one."""
    parameters = inspect.signature(kind.__init__).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not inspect.Parameter.empty}
    fields = {key: value for key, value in component.config.items() if not key.startswith("_")}
    unknown = sorted(fields.keys() - defaults.keys())
    if unknown:
        raise ConfigError(f"config.json has {', '.join(unknown)}, which {kind.__name__} does not know")
    return defaults | fields


@contextmanager
def _naming(component: Component) -> Iterator[None]:
    """Errors in the config of a file name the file."""
    try:
        yield
    except ConfigError as error:
        if component.where in str(error):
            raise
        raise ConfigError(f"{component.where}: {error}") from error
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # values of a wrong type, or that disagree
        raise ConfigError(f"{component.where}: config of {component.name} cannot be used ({error})") from error
