"""The audio VAE of the LTX-2 family: waveform <-> normalised latents, around diffusers' AutoencoderKLLTX2Audio."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Audio
from torch import Tensor, nn
from torch.nn import functional

from iclora_train.ltx2.audio.layout import AUDIO_REMEDY, WINDOW, Section, State, geometry_of
from iclora_train.ltx2.audio.mel import MelFrontEnd
from iclora_train.ltx2.audio.tokens import to_latent, to_tokens
from iclora_train.ltx2.weights.assign import load_state


class AudioVAE(nn.Module):
    """Deterministic encode and decode with normalised latents (B,C,l,m): mean 0 and std 1 for each channel and bin.

    Waveforms are stereo (B,2,S) at `geometry.sample_rate`, mel spectrograms (B,2,L,M), L = 4 (l - 1) + 1.
    """

    def __init__(self, arguments: Section, window: int = WINDOW) -> None:
        """arguments: of AutoencoderKLLTX2Audio. window: of the mel front end, in samples."""
        super().__init__()
        self.geometry = geometry_of(arguments)
        self.model: Any = AutoencoderKLLTX2Audio(**arguments)  # Any: diffusers is not typed
        self.mel_bins: int = arguments["mel_bins"]
        self.front_end = MelFrontEnd(self.geometry.sample_rate, window, self.geometry.hop, self.mel_bins)

    @classmethod
    def build(
        cls,
        arguments: Section,
        state: State,
        window: int = WINDOW,
        dtype: torch.dtype = torch.float32,
        source: object = "state_dict",
    ) -> AudioVAE:
        """Build with weights under diffusers' names. source: the file, for messages. ConfigError as in `check_keys`."""
        with torch.device("meta"):
            vae = cls(arguments, window)
        state = {key: tensor.to(dtype) for key, tensor in state.items()}
        load_state(vae.model, state, source, "audio VAE", AUDIO_REMEDY)
        return vae.eval().requires_grad_(False)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std of a token's values, each (C m), fp32."""
        return self.model.latents_mean.float(), self.model.latents_std.float()

    def encode(self, waveform: Tensor, latent_frames: int | None = None) -> Tensor:
        """Waveforms (B,2,S) -> normalised latents (B,C,l,m) in fp32: the mean, never a sample.

        latent_frames: l. A longer waveform is cut after encoding, as ltx-pipelines does; a shorter one is continued by
        silence. None: as many as the waveform has. ValueError for other than two channels."""
        if waveform.ndim != 3 or waveform.shape[1] != 2:
            raise ValueError(f"the audio VAE takes stereo (B, 2, S), got {tuple(waveform.shape)}")
        least = self.front_end.least_samples
        if latent_frames is not None:
            least = max(least, (self.geometry.mel_frames(latent_frames) - 1) * self.geometry.hop)
        waveform = functional.pad(waveform, (0, max(least - waveform.shape[2], 0)))
        mel = self.front_end(waveform.to(self.model.device))
        return self.encode_mel(mel)[:, :, :latent_frames]

    def encode_mel(self, mel: Tensor) -> Tensor:
        """Log mel spectrograms (B,2,L,M) -> normalised latents (B,C,l,m) in fp32, l = (L - 1) / 4 + 1, rounded up."""
        posterior = self.model.encode(mel.to(self.model.device, self.model.dtype)).latent_dist
        mean, std = self._statistics()
        return to_latent((to_tokens(posterior.mode().float()) - mean) / std, self.geometry)

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents (B,C,l,m) -> log mel spectrograms (B,2,L,M) in fp32."""
        geometry = self.geometry
        if latent.ndim != 4 or (latent.shape[1], latent.shape[3]) != (geometry.channels, geometry.bins):
            sizes = f"(B, {geometry.channels}, l, {geometry.bins})"
            raise ValueError(f"the audio VAE takes latents {sizes}, got {tuple(latent.shape)}")
        mean, std = self._statistics()
        tokens = to_tokens(latent.to(self.model.device).float()) * std + mean
        mel: Tensor = self.model.decode(to_latent(tokens, geometry).to(self.model.dtype)).sample
        return mel.float()
