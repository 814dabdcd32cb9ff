"""Media that a video contains unchanged: a first frame, a beginning, an end, or a clip of which a part is made anew."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from iclora_train.config import ConfigError, require
from iclora_train.core.types import VideoShape
from iclora_train.diffusion.kept_latents import KeptLatents, mask_to_cells
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.windows import Window
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.pixels import from_uint8


@dataclass(frozen=True)
class KeptInputs:
    """The media of the settings `first_frame`, `prefix`, `suffix`, `source` and `regenerate`."""

    first_frame: InputMedia | None
    prefix: InputMedia | None
    suffix: InputMedia | None
    source: InputMedia | None
    regenerate: InputMedia | None

    @classmethod
    def open(cls, settings: GenerateSettings) -> KeptInputs:
        """Open all media. ConfigError names the setting and the file that is missing or unreadable."""
        paths = {field.name: getattr(settings, field.name) for field in fields(cls)}
        return cls(**{key: None if path is None else InputMedia.open(key, path) for key, path in paths.items()})

    @property
    def media(self) -> list[InputMedia]:
        """All media that are set."""
        return [media for field in fields(self) if (media := getattr(self, field.name)) is not None]

    def whole(self, settings: GenerateSettings, shape: VideoShape) -> np.ndarray | None:
        """The frames (F,H,W,3) of a video that is kept as a whole, for its sound; None for a video that is made."""
        if self.source is None or settings.regenerate is not None or settings.regenerate_frames is not None:
            return None
        return self.source.read(
            self.source.frame_numbers(shape.fps)[: shape.frames], (shape.height, shape.width), settings.fit
        )

    def check(self, settings: GenerateSettings, shape: VideoShape, temporal: int) -> None:
        """ConfigError if a clip is too short or too long for a video of `shape`; temporal: frames per latent frame."""
        latent_frames = (shape.frames - 1) // temporal + 1
        before = 1 if self.first_frame else len(prefix_numbers(self.prefix, shape.fps, temporal))
        after = len(_suffix_numbers(self.suffix, shape.fps, temporal))
        known = -(-before // temporal) + max(after - 1, 0) // temporal
        parts = [str(media.path) for media in (self.first_frame or self.prefix, self.suffix) if media is not None]
        require(
            known < latent_frames or not (self.prefix or self.suffix),
            f"{' and '.join(parts)} fill the video of {shape.frames} frames: set frames={known * temporal + 1} or more",
        )
        if self.source is not None:
            length = len(self.source.frame_numbers(shape.fps))
            require(
                length >= shape.frames,
                f"source={self.source.path} has {length} frames at {shape.fps:g} fps, the video has {shape.frames}: "
                f"set frames={(length - 1) // temporal * temporal + 1} or less",
            )
        span = settings.regenerate_frames
        require(
            span is None or span[1] <= shape.frames,
            f"regenerate_frames={span} must lie within the {shape.frames} frames of the video",
        )


def prefix_numbers(media: InputMedia | None, fps: float, temporal: int) -> np.ndarray:
    """The last temporal * k + 1 frames of a prefix, so that the new frames follow its end."""
    if media is None:
        return np.empty(0, int)
    numbers = media.frame_numbers(fps)
    return numbers[(len(numbers) - 1) % temporal :]


def _suffix_numbers(media: InputMedia | None, fps: float, temporal: int) -> np.ndarray:
    """The first temporal * k + 1 frames of a suffix. ConfigError if it is shorter than temporal + 1 frames."""
    if media is None:
        return np.empty(0, int)
    numbers = media.frame_numbers(fps)
    if len(numbers) <= temporal:
        raise ConfigError(f"suffix={media.path} has {len(numbers)} frames at {fps:g} fps: it needs {temporal + 1}")
    return numbers[: (len(numbers) - 1) // temporal * temporal + 1]


@torch.inference_mode()
def encode_kept(
    inputs: KeptInputs, settings: GenerateSettings, shape: VideoShape, window: Window, vae: VideoVAE
) -> KeptLatents | None:
    """Encode the kept parts of a window of a video of `shape`; None if no setting keeps anything.

    The first latent frame of a suffix holds one frame only, which a latent frame inside a clip cannot hold: it is
    dropped.
    """
    if not inputs.media:
        return None
    fps = shape.fps
    size = vae.geometry.latent_size(window.frames, shape.height, shape.width)
    kept = KeptLatents.none(1, vae.channels, size)

    def encode(media: InputMedia, numbers: np.ndarray) -> Tensor:
        return encode_frames(media.read(numbers, (shape.height, shape.width), settings.fit), vae)

    def keep(media: InputMedia, numbers: np.ndarray, first: int, joins: bool) -> KeptLatents:
        """`kept` with the frames of a clip that stands at the video's frame `first`. joins: without its own first."""
        begin, end = max(first, window.start), min(first + len(numbers), window.end)
        if begin >= end:
            return kept
        skipped = int(joins and begin == first)
        latent = encode(media, numbers[begin - first : end - first])[:, :, skipped:]
        return kept.with_span(latent, (begin - window.start) // vae.temporal + skipped)

    if inputs.source is not None:
        latent = encode(inputs.source, inputs.source.frame_numbers(fps, start=window.start)[: window.frames])
        kept = kept.with_cells(latent, ~_new_cells(inputs.regenerate, settings, shape, window, size))
    if inputs.suffix is not None:
        numbers = _suffix_numbers(inputs.suffix, fps, vae.temporal)
        kept = keep(inputs.suffix, numbers, shape.frames - len(numbers), True)
    if inputs.prefix is not None:
        kept = keep(inputs.prefix, prefix_numbers(inputs.prefix, fps, vae.temporal), 0, False)
    if inputs.first_frame is not None:
        kept = keep(inputs.first_frame, np.array([0]), 0, False)
    return kept


def _new_cells(
    mask: InputMedia | None,
    settings: GenerateSettings,
    shape: VideoShape,
    window: Window,
    size: tuple[int, int, int],
) -> Tensor:
    """The latent cells (1,f,h,w) bool of a window that are made anew: those of the mask, in `regenerate_frames`; none
    without either."""
    new = torch.full((1, *size), mask is not None or settings.regenerate_frames is not None)
    if mask is not None:
        pixels = read_mask(mask, shape.fps, 1, window.start, window.frames, (shape.height, shape.width), settings.fit)
        new &= mask_to_cells(pixels, size, settings.regenerate_mode)
    if settings.regenerate_frames is not None:
        start, end = (max(frame - window.start, 0) for frame in settings.regenerate_frames)
        span = torch.zeros(window.frames, 1, 1)
        span[start:end] = 1
        new &= mask_to_cells(span, size, settings.regenerate_mode)
    return new


def encode_frames(frames: np.ndarray, vae: VideoVAE) -> Tensor:
    """uint8 frames (F,H,W,3) -> latents (1,C,f,h,w) on the VAE's device."""
    video = torch.from_numpy(frames).to(vae.model.device)[None]  # (1,F,H,W,3)
    return vae.encode(from_uint8(video))


def read_mask(
    media: InputMedia, fps: float, temporal_scale: int, start: int, count: int, size: tuple[int, int], fit: str
) -> Tensor:
    """`count` frames of a mask (1,F,H,W) in [0, 1], from the video's frame `start` on. The last frame of a mask that is
    too short is repeated.

    F is 1 for an image, and where only the last frame is left. temporal_scale: the temporal factor of a reference.
    """
    start = min(start, len(media.frame_numbers(fps)) - 1)
    numbers = media.frame_numbers(fps, temporal_scale, start)[:count]
    if len(numbers) > 1:
        numbers = np.pad(numbers, (0, count - len(numbers)), mode="edge")
    frames = media.read(numbers, size, fit)
    return torch.from_numpy(frames).float().mean(-1)[None] / 255
