"""Open references and masks, cut them to size and length, and encode them for the sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from iclora_train.core.types import VideoShape
from iclora_train.diffusion.sampler import Reference
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.kept import KeptInputs, encode_frames, read_mask
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.vae.video_vae import VideoVAE


@dataclass(frozen=True)
class Inputs:
    """All media of a video, opened before any model is loaded."""

    references: tuple[InputMedia, ...]
    masks: tuple[InputMedia | None, ...]
    kept: KeptInputs

    @classmethod
    def open(cls, settings: GenerateSettings) -> Inputs:
        """Open all media. ConfigError names the setting and the file that is missing or unreadable."""
        masks = settings.attention_mask
        return cls(
            tuple(InputMedia.open("reference", path) for path in settings.reference),
            tuple(None if path is None else InputMedia.open("attention_mask", path) for path in masks),
            KeptInputs.open(settings),
        )

    @property
    def media(self) -> list[InputMedia]:
        """References, masks, and what the video keeps."""
        return [*self.references, *(mask for mask in self.masks if mask is not None), *self.kept.media]


@torch.inference_mode()
def encode_references(
    inputs: Inputs,
    settings: GenerateSettings,
    shape: VideoShape,
    factors: tuple[int, int],
    vae: VideoVAE,
    echo: Callable[[str], None],
) -> list[Reference]:
    """Encode the references of a video of `shape`; `factors` are the spatial and temporal reference factors.

    `echo` prints a line for a reference that is too short.
    """
    (downscale, temporal_scale), device = factors, vae.model.device
    size = (shape.height // downscale, shape.width // downscale)
    references = []
    for i, media in enumerate(inputs.references):
        if media.times is not None and not media.times.is_constant:
            echo(f"{media.path} has a variable frame rate: its frames are shown at their times, at {shape.fps:g} fps")
        numbers = media.frame_numbers(shape.fps, temporal_scale)[: (shape.frames - 1) // temporal_scale + 1]
        count = (len(numbers) - 1) // vae.temporal * vae.temporal + 1
        covered = (count - 1) * temporal_scale + 1
        if covered < shape.frames:
            echo(
                f"{media.path} has {len(numbers)} frames at {shape.fps / temporal_scale:g} fps: its first {count} "
                f"guide the first {covered} frames of the video, the last {shape.frames - covered} have no reference"
            )
        mask = inputs.masks[i]
        weights = None if mask is None else read_mask(mask, shape.fps, temporal_scale, count, size, settings.fit)
        references.append(
            Reference(
                encode_frames(media.read(numbers[:count], size, settings.fit), vae),
                downscale,
                temporal_scale,
                settings.attention_strength[i],
                None if weights is None else weights.to(device),
                settings.reference_strength[i],
            )
        )
    return references
