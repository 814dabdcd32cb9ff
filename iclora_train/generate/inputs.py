"""References, masks and the first frame as the sampler takes them: opened, cut to size and length, encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iclora_train.core.types import VideoShape
from iclora_train.data.pixels import from_uint8
from iclora_train.diffusion.sampler import Reference
from iclora_train.generate.media import InputMedia
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.vae.video_vae import VideoVAE


@dataclass(frozen=True)
class Inputs:
    """Everything a user gives in pixels, opened before anything heavy is loaded."""

    references: tuple[InputMedia, ...]
    masks: tuple[InputMedia | None, ...]
    first_frame: InputMedia | None

    @classmethod
    def open(cls, settings: GenerateSettings) -> Inputs:
        """ConfigError names the setting and the file that is missing or unreadable."""
        masks = settings.attention_mask
        return cls(
            tuple(InputMedia.open("reference", path) for path in settings.reference),
            tuple(None if path is None else InputMedia.open("attention_mask", path) for path in masks),
            None if settings.first_frame is None else InputMedia.open("first_frame", settings.first_frame),
        )

    @property
    def sources(self) -> list[InputMedia]:
        """All of them."""
        return [source for source in (*self.references, *self.masks, self.first_frame) if source is not None]


@torch.inference_mode()
def encode_references(
    inputs: Inputs,
    settings: GenerateSettings,
    shape: VideoShape,
    factors: tuple[int, int],
    vae: VideoVAE,
    say: Callable[[str], None],
) -> list[Reference]:
    """The references of a video of `shape`, smaller and slower by `factors`; `say` is told of one that is too short."""
    (downscale, temporal_scale), device = factors, vae.model.device
    size = (shape.height // downscale, shape.width // downscale)
    references = []
    for i, source in enumerate(inputs.references):
        numbers = source.frame_numbers(shape.fps, temporal_scale)[: (shape.frames - 1) // temporal_scale + 1]
        count = (len(numbers) - 1) // vae.temporal * vae.temporal + 1
        guided = (count - 1) * temporal_scale + 1
        if guided < shape.frames:
            say(
                f"{source.path} has {len(numbers)} frames at {shape.fps / temporal_scale:g} fps: its first {count} "
                f"guide the first {guided} frames of the video, the other {shape.frames - guided} go without it"
            )
        mask = inputs.masks[i]
        references.append(
            Reference(
                encode_frames(source.read(numbers[:count], size, settings.fit), vae),
                downscale,
                temporal_scale,
                settings.attention_strength[i],
                None if mask is None else _mask(mask, shape.fps, temporal_scale, count, size, settings.fit).to(device),
                settings.reference_strength[i],
            )
        )
    return references


@torch.inference_mode()
def encode_first_frame(source: InputMedia, shape: VideoShape, fit: str, vae: VideoVAE) -> Tensor:
    """The first picture of `source` as latents (1,C,1,h,w) of a video of `shape`."""
    return encode_frames(source.read(np.array([0]), (shape.height, shape.width), fit), vae)


def encode_frames(frames: np.ndarray, vae: VideoVAE) -> Tensor:
    """uint8 frames (F,H,W,3) -> latents (1,C,f,h,w) on the VAE's device."""
    video = torch.from_numpy(frames).to(vae.model.device)[None]  # (1,F,H,W,3)
    return vae.encode(from_uint8(video))


def _mask(source: InputMedia, fps: float, temporal_scale: int, count: int, size: tuple[int, int], fit: str) -> Tensor:
    """Weights (1,F,H,W) in [0, 1] on the reference's pixels, cut to size and length like the reference. A clip that is
    too short holds its last frame; F is 1 for a still one.
    """
    numbers = source.frame_numbers(fps, temporal_scale)[:count]
    if len(numbers) > 1:
        numbers = np.pad(numbers, (0, count - len(numbers)), mode="edge")
    frames = source.read(numbers, size, fit)
    return torch.from_numpy(frames).float().mean(-1)[None] / 255
