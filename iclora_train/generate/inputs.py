"""Open references, masks and the first frame, cut them to size and length, and encode them for the sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iclora_train.core.types import VideoShape
from iclora_train.diffusion.sampler import Reference
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.pixels import from_uint8


@dataclass(frozen=True)
class Inputs:
    """All media of a video, opened before any model is loaded."""

    references: tuple[InputMedia, ...]
    masks: tuple[InputMedia | None, ...]
    first_frame: InputMedia | None

    @classmethod
    def open(cls, settings: GenerateSettings) -> Inputs:
        """Open all media. ConfigError names the setting and the file that is missing or unreadable."""
        masks = settings.attention_mask
        return cls(
            tuple(InputMedia.open("reference", path) for path in settings.reference),
            tuple(None if path is None else InputMedia.open("attention_mask", path) for path in masks),
            None if settings.first_frame is None else InputMedia.open("first_frame", settings.first_frame),
        )

    @property
    def media(self) -> list[InputMedia]:
        """References, masks and the first frame."""
        return [media for media in (*self.references, *self.masks, self.first_frame) if media is not None]


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
        references.append(
            Reference(
                encode_frames(media.read(numbers[:count], size, settings.fit), vae),
                downscale,
                temporal_scale,
                settings.attention_strength[i],
                None if mask is None else _mask(mask, shape.fps, temporal_scale, count, size, settings.fit).to(device),
                settings.reference_strength[i],
            )
        )
    return references


@torch.inference_mode()
def encode_first_frame(media: InputMedia, shape: VideoShape, fit: str, vae: VideoVAE) -> Tensor:
    """Encode the first picture of `media` as latents (1,C,1,h,w) of a video of `shape`."""
    return encode_frames(media.read(np.array([0]), (shape.height, shape.width), fit), vae)


def encode_frames(frames: np.ndarray, vae: VideoVAE) -> Tensor:
    """uint8 frames (F,H,W,3) -> latents (1,C,f,h,w) on the VAE's device."""
    video = torch.from_numpy(frames).to(vae.model.device)[None]  # (1,F,H,W,3)
    return vae.encode(from_uint8(video))


def _mask(media: InputMedia, fps: float, temporal_scale: int, count: int, size: tuple[int, int], fit: str) -> Tensor:
    """Attention weights (1,F,H,W) in [0, 1] on the reference's pixels, cut to size and length like the reference.

    The last frame of a mask that is too short is repeated. F is 1 for an image.
    """
    numbers = media.frame_numbers(fps, temporal_scale)[:count]
    if len(numbers) > 1:
        numbers = np.pad(numbers, (0, count - len(numbers)), mode="edge")
    frames = media.read(numbers, size, fit)
    return torch.from_numpy(frames).float().mean(-1)[None] / 255
