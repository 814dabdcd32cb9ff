"""Open references and masks, cut them to the size of a video and to a window of it, and encode them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from iclora_train.adapters.file import Adapter
from iclora_train.adapters.metadata import clip_size, trained_fps
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import ConfigError, require
from iclora_train.core.types import VideoShape
from iclora_train.diffusion.sampler import Reference
from iclora_train.generate.guides import (
    EncodedReference,
    encode_guide,
    guides_window,
    reference_layouts,
    start_of,
    with_name,
    with_trained_strengths,
)
from iclora_train.generate.input_media import InputMedia
from iclora_train.generate.kept import KeptInputs, encode_frames, read_mask
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.size import SizeSource
from iclora_train.generate.windows import Window
from iclora_train.ltx2.vae.video_vae import VideoVAE


@dataclass(frozen=True)
class Inputs:
    """All media of a video, opened before any model is loaded: the references that are given, and their masks."""

    references: tuple[InputMedia, ...]
    masks: tuple[InputMedia | None, ...]
    kept: KeptInputs

    @classmethod
    def open(cls, settings: GenerateSettings) -> Inputs:
        """Open all media. ConfigError names the setting and the file that is missing or unreadable."""
        masks = [settings.attention_mask[number] for number in settings.reference_numbers]
        return cls(
            tuple(InputMedia.open("reference", settings.reference[number]) for number in settings.reference_numbers),
            tuple(None if path is None else InputMedia.open("attention_mask", path) for path in masks),
            KeptInputs.open(settings),
        )

    @property
    def media(self) -> list[InputMedia]:
        """References, masks, and what the video keeps."""
        return [*self.references, *(mask for mask in self.masks if mask is not None), *self.kept.media]

    def along(self, settings: GenerateSettings, adapter: Adapter) -> list[tuple[InputMedia, ReferenceLayout]]:
        """The references that run along the whole video."""
        pairs = zip(self.references, reference_layouts(settings, adapter), strict=True)
        return [(media, layout) for media, layout in pairs if layout.frame is None]

    def size_source(self, settings: GenerateSettings, adapter: Adapter) -> SizeSource:
        """What gives the video the sizes that are null.

        The first reference that runs along the video, else what the video keeps, else a reference at one of its frames
        (width, height and rate) with the adapter's training clips (length), else these clips. ConfigError where none of
        them has a size that is needed.
        """
        if along := self.along(settings, adapter):
            return SizeSource.of_media(along[0][0])
        if self.kept.source is not None:
            return SizeSource.of_media(self.kept.source)
        fps, size = trained_fps(adapter.metadata), clip_size(adapter.metadata)
        first = next(iter((*self.kept.media, *self.references)), None)
        length = settings.frames or (None if size is None else size[2])
        width, height = settings.width, settings.height
        if first is not None and length is not None:
            return SizeSource(str(first.path), first.width, first.height, first.fps or fps, length)
        if size is None and (width is None or height is None or length is None):
            raise ConfigError(
                "width, height, frames: set them, as no reference runs along the video and the adapter names no size"
            )
        width, height, length = size or (width, height, length)
        assert width is not None
        assert height is not None
        return SizeSource("the adapter's file", width, height, fps, length)


def require_references(settings: GenerateSettings, adapter: Adapter) -> None:
    """ConfigError unless there is a reference exactly where the adapters take one."""
    names = ", ".join(settings.adapter)
    require(
        bool(settings.reference) or not adapter.in_context,
        f"reference is not set, and adapter={names} takes one, e.g. reference=clip.mp4. If it is a plain LoRA, "
        "`python -m iclora_train.adapters convert --no-reference` says so in its file",
    )
    require(
        adapter.in_context or not settings.reference,
        f"reference={', '.join(map(str, settings.reference))}: adapter={names} is a plain LoRA, which takes no "
        "reference: leave it out, and set the size with width, height, frames",
    )


def check_references(
    inputs: Inputs,
    layouts: Sequence[ReferenceLayout],
    shape: VideoShape,
    temporal: int,
    in_windows: bool,
    echo: Callable[[str], None],
) -> None:
    """`echo` prints a line for a reference with a variable frame rate, and for one that is too short for the video.

    temporal: frames per latent frame. ConfigError if a reference begins outside the video, or is too short for a video
    in windows, because the windows after its end would have none.
    """
    for media, layout in zip(inputs.references, layouts, strict=True):
        name, temporal_scale = with_name(media, layout), layout.temporal_scale
        if media.times is not None and not media.times.is_constant:
            echo(f"{name} has a variable frame rate: its frames are shown at their times, at {shape.fps:g} fps")
        if start_of(layout, shape.frames) is not None:
            continue
        length = len(media.frame_numbers(shape.fps))
        require(
            length >= shape.frames or not in_windows,
            f"reference={name} has {length} frames at {shape.fps:g} fps, the video has {shape.frames}: every "
            f"window needs its part, so set frames={max(length - 1, 0) // temporal * temporal + 1} or less, give a "
            "longer reference, or leave out window_frames",
        )
        numbers = media.frame_numbers(shape.fps, temporal_scale)[: (shape.frames - 1) // temporal_scale + 1]
        count = (len(numbers) - 1) // temporal * temporal + 1
        covered = (count - 1) * temporal_scale + 1
        if covered < shape.frames:
            echo(
                f"{name} has {len(numbers)} frames at {shape.fps / temporal_scale:g} fps: its first {count} "
                f"guide the first {covered} frames of the video, the last {shape.frames - covered} have no reference"
            )


@torch.inference_mode()
def encode_references(
    inputs: Inputs, settings: GenerateSettings, shape: VideoShape, window: Window, adapter: Adapter, vae: VideoVAE
) -> list[Reference]:
    """Encode the part of the references that belongs to a window of a video of `shape`, each with its own factors."""
    layouts = reference_layouts(settings, adapter)
    settings = with_trained_strengths(settings, adapter)
    references = []
    numbers = settings.reference_numbers
    for i, media, mask, layout in zip(numbers, inputs.references, inputs.masks, layouts, strict=True):
        downscale, temporal_scale, _ = layout.placement
        size = (shape.height // downscale, shape.width // downscale)
        start = start_of(layout, shape.frames)
        if start is None:
            part = _encode_along(media, mask, temporal_scale, window, settings, size, shape.fps, vae)
        elif guides_window(media, start, window, shape.fps, vae.temporal):
            part = encode_guide(media, mask, start - window.start, window.frames, settings, size, shape.fps, vae)
        else:
            continue
        strengths = (settings.attention_strength[i], part.mask, settings.reference_strength[i])
        references.append(
            Reference(part.latent, downscale, temporal_scale, *strengths, part.frame, part.clip, number=i)
        )
    return references


def _encode_along(
    media: InputMedia,
    mask: InputMedia | None,
    temporal_scale: int,
    window: Window,
    settings: GenerateSettings,
    size: tuple[int, int],
    fps: float,
    vae: VideoVAE,
) -> EncodedReference:
    """The part of a reference that runs along the window."""
    numbers = media.frame_numbers(fps, temporal_scale, window.start)
    length = min(len(numbers), (window.frames - 1) // temporal_scale + 1)
    count = (length - 1) // vae.temporal * vae.temporal + 1
    weights = None
    if mask is not None:
        weights = read_mask(mask, fps, temporal_scale, window.start, count, size, settings.fit)
    return EncodedReference(encode_frames(media.read(numbers[:count], size, settings.fit), vae), weights)
