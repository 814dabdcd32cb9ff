"""Read a finished clip, its references and their masks, and align them in size and time."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.diagnosis.facts import ClipFacts
from eval.diagnosis.references import ReferenceFacts
from eval.diagnosis.settings import DiagnoseSettings
from eval.metrics import Clip
from iclora_train.config import frame_from_start
from iclora_train.diffusion.reference import latent_frame_start
from iclora_train.generate.input_media import InputMedia
from iclora_train.media.frame_times import temporal_subsample

DEFAULT_RATE = 25.0  # frames per second, if neither the clip nor a reference has a rate
LATENT_FRAME = 8  # frames of a latent frame of LTX: a reference of several frames begins where one begins


@dataclass(frozen=True)
class AlignedReference:
    """A reference and the frames of the clip at the same moments.

    shown: these frames of the clip, (n,H,W,3). frames: of the reference, at the size of the clip, (n,H,W,3). file: the
    reference as it is stored. available, needed: frames that there are, and that a reference for the whole clip has.
    mask: mean of the attention mask in [0, 1].
    """

    facts: ReferenceFacts
    shown: Clip
    frames: Clip
    file: InputMedia
    available: int
    needed: int
    mask: float | None


@dataclass(frozen=True)
class AlignedClips:
    """A clip (F,H,W,3) at `fps`, as it is stored (`file`), and its references."""

    clip: Clip
    file: InputMedia
    fps: float
    references: list[AlignedReference]


def read_aligned(settings: DiagnoseSettings, facts: ClipFacts) -> AlignedClips:
    """Read all media. ConfigError names the setting and the file that is missing or unreadable."""
    file = InputMedia.open("clip", facts.clip)
    files = [InputMedia.open("reference", reference.path) for reference in facts.references]
    rates = (file.fps, settings.fps, *(of_reference.fps for of_reference in files))
    fps = next((rate for rate in rates if rate), DEFAULT_RATE)
    clip = file.read(file.frame_numbers(fps), (file.height, file.width), "crop")
    parts = zip(facts.references, files, strict=True)
    return AlignedClips(clip, file, fps, [_aligned(clip, fps, part, media, settings.fit) for part, media in parts])


def _aligned(clip: Clip, fps: float, facts: ReferenceFacts, file: InputMedia, fit: str) -> AlignedReference:
    """A reference beside the frames of the clip that it belongs to."""
    downscale, temporal_scale, _ = facts.layout.placement
    numbers = file.frame_numbers(fps, temporal_scale)
    moments = _moments(facts, len(clip), len(numbers))
    is_still = file.times is None and len(file.pictures) == 1
    count, (height, width) = min(len(moments), len(numbers)), clip.shape[1:3]
    small = (max(height // downscale, 1), max(width // downscale, 1))
    read = file.read(numbers[:count], small, fit)
    frames = np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_LINEAR) for f in read]).astype(np.uint8)
    return AlignedReference(
        facts,
        clip[moments[:count]],
        frames,
        file,
        len(numbers),
        count if is_still or facts.layout.frame is not None else len(moments),
        None if facts.attention_mask is None else _coverage(facts.attention_mask),
    )


def _moments(facts: ReferenceFacts, length: int, available: int) -> NDArray[np.int64]:
    """The frames of a clip of `length` frames to which those of the reference belong.

    ConfigError for a frame at which it would begin outside the clip.
    """
    if facts.layout.frame is None:
        return temporal_subsample(np.arange(length), facts.layout.temporal_scale)
    assert isinstance(facts.layout.frame, int), "diagnosis.references requires a number"
    start = frame_from_start(f"{facts.name or 'reference'}: reference_frame", facts.layout.frame, length)
    return np.arange(start if available == 1 else latent_frame_start(start, LATENT_FRAME), length)


def _coverage(name: str) -> float:
    """Mean of an attention mask, white is 1."""
    mask = InputMedia.open("attention_mask", name)
    fps = mask.fps or DEFAULT_RATE
    return float(mask.read(mask.frame_numbers(fps), (mask.height, mask.width), "stretch").mean() / 255)
