"""How each reference is used: its size and rate as the adapter was trained, and the frame at which it begins.

A reference at a frame (`reference_frame`) is a keyframe, or a clip that guides a part of the video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

import numpy as np
from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import ConfigError, frame_from_start, require
from iclora_train.config.places import frame_in_words
from iclora_train.config.references import FIRST
from iclora_train.diffusion.reference import latent_frame_start
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.kept import encode_frames, read_mask
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.windows import Window
from iclora_train.ltx2.vae.video_vae import VideoVAE


def reference_layouts(settings: GenerateSettings, adapter: Adapter) -> list[ReferenceLayout]:
    """The layout of each given reference: the adapter's, in order, with the frames of `reference_frame` if it is set.

    An adapter that was trained with one reference takes any number of them, all in its way. ConfigError if an adapter
    that was trained with several gets more than these, and if another one is told to leave one out.
    """
    trained, count = adapter.references, len(settings.reference)
    names = ", ".join(layout.name for layout in trained)
    require(
        count <= len(trained) or len(trained) == 1,
        f"reference has {count} items, and the adapter was trained with {len(trained)} references: {names}. Give one "
        "for each, in this order",
    )
    require(
        len(settings.reference_numbers) == count or len(trained) > 1,
        f"reference={settings.reference}: null leaves out one of the references that the adapter was trained with, and "
        "it was trained with one",
    )
    layouts = trained * count if len(trained) == 1 else trained[:count]
    if settings.reference_frame is not None:
        layouts = [
            replace(layout, frame=frame, temporal_scale=layout.temporal_scale if frame is None else 1)
            for layout, frame in zip(layouts, settings.reference_frame, strict=True)
        ]
    chosen = [layouts[number] for number in settings.reference_numbers]
    for layout in chosen:
        if layout.is_drawn:
            of = "" if layout.name == FIRST else f" for {layout.name}"
            raise ConfigError(
                f"reference_frame is not set{of}: the adapter was trained with a picture at "
                f"{frame_in_words(layout.frame)} of the video. Say where it stands, e.g. reference_frame=24, or a list "
                "with a frame for each reference"
            )
    return chosen


def with_trained_strengths(settings: GenerateSettings, adapter: Adapter) -> GenerateSettings:
    """The settings with a strength and an attention strength for each reference: where they are null, the usual ones of
    its training (`ReferenceUse.usual`)."""
    trained = [layout.use.usual for layout in adapter.references] or [(1.0, 1.0)]
    usual = [trained[number if len(trained) > 1 else 0] for number in range(len(settings.reference))]
    strengths, attentions = (
        [of_all[which] if value is None else value for value, of_all in zip(values, usual, strict=True)]
        for which, values in enumerate((settings.reference_strength, settings.attention_strength))
    )
    return replace(settings, reference_strength=strengths, attention_strength=attentions)


def unusual_places(settings: GenerateSettings, adapter: Adapter, frames: int) -> list[str]:
    """A line for each picture at another frame than training drew, in a video of `frames` frames."""
    trained, lines = adapter.references, []
    for number, layout in zip(settings.reference_numbers, reference_layouts(settings, adapter), strict=True):
        bounds = trained[0 if len(trained) == 1 else number].frame
        start = start_of(layout, frames)
        if isinstance(bounds, tuple) and start is not None:
            first, last = (frame if frame >= 0 else frames + frame for frame in bounds)
            if not first <= start <= last:
                lines.append(
                    f"{layout.name}: reference_frame={layout.frame} is not a place that the adapter was trained with, "
                    f"which is {frame_in_words(bounds)}"
                )
    return lines


def missing_references(settings: GenerateSettings, adapter: Adapter) -> list[str]:
    """A line for each reference that the adapter was trained with and that is not given."""
    return [
        f"reference {layout.name} ({layout.in_words}) is not given: "
        + (
            "every training clip had it"
            if layout.p == 1
            else f"{layout.p:.0%} of the training clips had it, so the adapter knows videos without it"
        )
        for number, layout in enumerate(adapter.references)
        if number not in settings.reference_numbers
    ]


def common_factor(layouts: Sequence[ReferenceLayout]) -> int:
    """The factor by which width and height must be divisible, so that every reference fits its own grid."""
    return lcm(*(layout.downscale for layout in layouts))


def start_of(layout: ReferenceLayout, length: int) -> int | None:
    """The frame at which a reference begins, from the start of a video of `length` frames; None: it runs along it.

    ConfigError, with the reference's name, for a frame that the video does not have.
    """
    if layout.frame is None:
        return None
    assert isinstance(layout.frame, int), "reference_layouts requires a number"
    key = "reference_frame" if layout.name == FIRST else f"{layout.name}: reference_frame"
    return frame_from_start(key, layout.frame, length)


def with_name(media: InputMedia, layout: ReferenceLayout) -> str:
    """A reference in a message: its file, with the name of a further reference."""
    return str(media.path) if layout.name == FIRST else f"{media.path} ({layout.name})"


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
