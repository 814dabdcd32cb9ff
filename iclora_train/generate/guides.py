"""References that begin at a frame of the video (`reference_frame`): keyframes, and clips that guide a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.config import frame_from_start
from iclora_train.diffusion.reference import latent_frame_start
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.kept import encode_frames, read_mask
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.windows import Window
from iclora_train.ltx2.vae.video_vae import VideoVAE


def reference_frames(settings: GenerateSettings, adapter: Adapter) -> list[int | None]:
    """The frame at which each reference begins, negative from the end; None: it runs along the whole video.

    A null setting takes the adapter's value.
    """
    count = len(settings.reference)
    return [adapter.reference_frame] * count if settings.reference_frame is None else settings.reference_frame


def starts_of(frames: Sequence[int | None], length: int) -> list[int | None]:
    """The frames from the start of a video of `length` frames. ConfigError for one that the video does not have."""
    return [None if frame is None else frame_from_start("reference_frame", frame, length) for frame in frames]


@dataclass(frozen=True)
class EncodedReference:
    """latent (B,C,n,h,w). mask: attention weights (1,F,H,W) of its frames. frame: of the window, at which it begins.

    clip: it has no separate first frame (`append_reference`).
    """

    latent: Tensor
    mask: Tensor | None
    frame: int = 0
    clip: bool | None = None


def guides_window(media: InputMedia, start: int, window: Window, fps: float, temporal: int) -> bool:
    """Whether a window has frames of a reference that begins at the video's frame `start`."""
    length = len(media.frame_numbers(fps))
    return (
        start < window.end and window.start < (start if length == 1 else latent_frame_start(start, temporal)) + length
    )


def encode_guide(
    media: InputMedia,
    mask: InputMedia | None,
    frame: int,
    frames: int,
    settings: GenerateSettings,
    size: tuple[int, int],
    fps: float,
    vae: VideoVAE,
) -> EncodedReference:
    """A reference that begins at `frame` of a window of `frames` frames: as many of its frames as there is room for.

    A negative `frame` lies before the window, which then begins with the rest of the clip. A clip after frame 0 snaps
    down to the beginning of a latent frame. It has no first frame of its own there, so its first frame is doubled,
    and the latent frame of the copy dropped (as ComfyUI's LTXVAddGuide does).
    """
    step, snapped = vae.temporal, latent_frame_start(frame, vae.temporal)
    skipped, frame, snapped = max(-snapped, 0), max(frame, 0), max(snapped, 0)
    numbers = media.frame_numbers(fps, start=skipped)
    room = min(len(numbers), frames - snapped)
    single = len(numbers) == 1 or room < (1 if frame == 0 else step)
    count = 1 if single else (room - 1) // step * step + 1 if frame == 0 else room // step * step
    weights = None if mask is None else read_mask(mask, fps, 1, skipped, count, size, settings.fit)

    def encoded(chosen: np.ndarray) -> Tensor:
        return encode_frames(media.read(chosen, size, settings.fit), vae)

    if single or frame == 0:
        return EncodedReference(encoded(numbers[:count]), weights, frame)
    if weights is not None and weights.shape[1] > 1:
        weights = weights.unflatten(1, (-1, step)).mean(2)  # one for each latent frame, none for the first frame alone
    return EncodedReference(encoded(numbers[[0, *range(count)]])[:, :, 1:], weights, snapped, clip=True)
