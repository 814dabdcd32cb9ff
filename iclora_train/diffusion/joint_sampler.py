"""Sample video and sound together: both streams are denoised in the same steps, on the same noise levels.

As in ltx-pipelines and diffusers, the levels follow the video's number of tokens, and the sound has them too. Sound
that is given stays clean at noise level 0, and the video is made for it (ltx-pipelines' `a2vid`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from iclora_train.core.types import AudioGeometry, AudioTokens, Geometry
from iclora_train.diffusion.audio_reference import append_audio_reference, sound_times
from iclora_train.diffusion.guidance import guided_velocities
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.reference import from_tokens
from iclora_train.diffusion.sampler import (
    SAMPLERS,
    Reference,
    SamplerSettings,
    VideoState,
    clean_clip,
    clip_tokens,
    draw_noises,
)
from iclora_train.ltx2.audio.tokens import to_latent, to_tokens
from iclora_train.ltx2.model.transformer import AudioInput, Transformer


@dataclass(frozen=True)
class AudioStream:
    """The sound of a batch of clips: l = `frames` latent frames.

    text (B,T,D'): features of the audio stream. clean (B,C,l,m): latents of a sound that stays as it is. start
    (B,C,l,m): clean latents to begin from, noised to the first level. noise (B,C,l,m): drawn from the seeds of the
    clips if it is None. reference (B,C,l',m): clean latents of an audio reference, placed as `config.audio_reference`
    describes.
    """

    geometry: AudioGeometry
    frames: int
    text: Tensor
    clean: Tensor | None = None
    start: Tensor | None = None
    noise: Tensor | None = None
    reference: Tensor | None = None
    placement: str = "av2av"

    def tokens(self, batch: int) -> AudioTokens:
        """The clean tokens at noise level 1, or at 0 where the sound stays as it is; those of the reference at 0."""
        begin = self.clean if self.clean is not None else self.start
        if begin is None:
            begin = torch.zeros(batch, self.geometry.channels, self.frames, self.geometry.bins)
        device = self.text.device
        latent = to_tokens(begin).to(device, torch.float32)
        zeros = torch.zeros(latent.shape[:2], dtype=torch.long, device=device)
        tokens = AudioTokens(
            latent=latent,
            sigma=torch.full((batch, 1), float(self.clean is None), device=device),
            level=zeros,
            position=sound_times(self.geometry, self.frames, 0, self.placement, device, batch),
            group=zeros[0],
            loss_mask=zeros == 0,
        )
        if self.reference is None:
            return tokens
        return append_audio_reference(tokens, self.reference.to(device), self.placement, self.geometry)


@torch.no_grad()
def sample_with_sound(
    transformer: Transformer,
    text: Tensor,
    size: tuple[int, int, int],
    geometry: Geometry,
    fps: float | Tensor,
    settings: SamplerSettings,
    seeds: Sequence[int],
    audio: AudioStream,
    references: Sequence[Reference] = (),
    kept: KeptLatents | None = None,
    start: Tensor | None = None,
    on_step: Callable[[int], None] = lambda i: None,
) -> tuple[Tensor, Tensor]:
    """Latent clips (B,C,f,h,w) and their sound (B,C,l,m). The arguments are those of `sampler.sample`.

    The noise of the sound is drawn after that of video and references, which is the same as without sound. It then
    depends on the number of references: `AudioStream.noise` gives the same to samples with and without them.
    """
    shape, batch = (geometry.channels, *size), len(seeds)
    clip, heard = clean_clip(start, batch, shape, settings, text.device), audio.tokens(batch)
    if settings.sigmas[0] != 1 and audio.start is None and audio.clean is None:
        raise ValueError(f"sigmas begin at {settings.sigmas[0]}: give the sound to start from")
    sound_shape = (audio.geometry.channels, audio.frames, audio.geometry.bins)
    shapes = [shape, *(tuple(ref.latent.shape[1:]) for ref in references), sound_shape]
    *noises, sound_noise = draw_noises(seeds, shapes)
    tokens = clip_tokens(clip, kept, geometry, fps, references)
    if kept is not None and bool(kept.mask.all()):  # the sound of a given video: the audio stream sees noise level 0
        tokens = replace(tokens, sigma=torch.cat([torch.zeros_like(tokens.sigma[:, :1]), tokens.sigma[:, 1:]], dim=1))
    video = VideoState.begin(tokens, noises, settings)
    m = heard.sigma.gather(1, heard.level)[..., None]  # (B,n,1), 1 is denoised, 0 stays clean
    level = settings.sigmas[0] * m
    noise = to_tokens(sound_noise if audio.noise is None else audio.noise).to(heard.latent)
    noise = F.pad(noise, (0, 0, 0, heard.latent.shape[1] - audio.frames))  # none for the reference
    sound = (1 - level) * heard.latent + level * noise
    count = video.x[0].numel()
    guidance = settings.audio if audio.clean is None else settings.audio.of_given_sound()

    def derivative(state: Tensor, sigma: float) -> Tensor:
        """Of both streams in one vector (B,NC+nc), so that every sampler works on both."""
        x, sound = state[:, :count].view_as(video.x), state[:, count:].view_as(heard.latent)
        v, sound_v = guided_velocities(
            transformer,
            replace(video.tokens, latent=video.model_input(x), sigma=sigma * video.tokens.sigma),
            text,
            settings.guidance,
            settings.between,
            AudioInput(replace(heard, latent=sound, sigma=sigma * heard.sigma), audio.text),
            guidance,
        )
        return torch.cat([video.slope(x, v, sigma).flatten(1), (m * sound_v).flatten(1)], dim=1)

    state = torch.cat([video.x.flatten(1), sound.flatten(1)], dim=1)
    state = SAMPLERS[settings.sampler](derivative, state, settings.sigmas, on_step)
    x, sound = state[:, :count].view_as(video.x), state[:, count:].view_as(heard.latent)
    return from_tokens(x[:, : prod(size)], size), to_latent(sound[:, : audio.frames], audio.geometry)
