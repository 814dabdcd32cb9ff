"""Read a finished clip, its reference and its mask, and align them in size and time."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from eval.diagnosis.facts import ClipFacts
from eval.diagnosis.settings import DiagnoseSettings
from eval.metrics import Clip
from iclora_train.generate.input_media import InputMedia
from iclora_train.media.frame_times import temporal_subsample

DEFAULT_RATE = 25.0  # frames per second, if neither the clip nor its reference has a rate


@dataclass(frozen=True)
class AlignedClips:
    """A clip and its reference at the same moments.

    clip: the whole clip (F,H,W,3). shown: its frames that have a reference, (n,H,W,3). reference: at the size of the
    clip, (n,H,W,3). files: clip and reference as they are stored. fps: of the clip. available, needed: frames of the
    reference that there are, and that a reference for the whole clip has. mask: mean of the attention mask in [0, 1].
    """

    clip: Clip
    shown: Clip
    reference: Clip
    files: tuple[InputMedia, InputMedia]
    fps: float
    available: int
    needed: int
    mask: float | None


def read_aligned(settings: DiagnoseSettings, facts: ClipFacts) -> AlignedClips:
    """Read all media. ConfigError names the setting and the file that is missing or unreadable."""
    clip_file, reference_file = InputMedia.open("clip", facts.clip), InputMedia.open("reference", facts.reference)
    fps = clip_file.fps or settings.fps or reference_file.fps or DEFAULT_RATE
    size = (clip_file.height, clip_file.width)
    clip = clip_file.read(clip_file.frame_numbers(fps), size, "crop")
    moments = temporal_subsample(np.arange(len(clip)), facts.temporal_scale)
    numbers = reference_file.frame_numbers(fps, facts.temporal_scale)
    is_still = reference_file.times is None and len(reference_file.pictures) == 1
    count = min(len(moments), len(numbers))
    small = (max(size[0] // facts.downscale, 1), max(size[1] // facts.downscale, 1))
    read = reference_file.read(numbers[:count], small, settings.fit)
    reference = np.stack([cv2.resize(f, size[::-1], interpolation=cv2.INTER_LINEAR) for f in read]).astype(np.uint8)
    return AlignedClips(
        clip,
        clip[moments[:count]],
        reference,
        (clip_file, reference_file),
        fps,
        len(numbers),
        count if is_still else len(moments),
        None if facts.attention_mask is None else _coverage(facts.attention_mask),
    )


def _coverage(name: str) -> float:
    """Mean of an attention mask, white is 1."""
    mask = InputMedia.open("attention_mask", name)
    fps = mask.fps or DEFAULT_RATE
    return float(mask.read(mask.frame_numbers(fps), (mask.height, mask.width), "stretch").mean() / 255)
