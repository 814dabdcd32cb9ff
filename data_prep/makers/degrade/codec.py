"""Compression artefacts: video codecs and JPEG."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, check_number, check_range, register
from data_prep.makers.trajectory import Range, Trajectory, log_uniform, uniform
from iclora_train.config import one_of, require
from iclora_train.media.codec_round_trip import CODECS, round_trip


@register("degrade.codec")
@dataclass(frozen=True)
class Codec(Maker):
    """Encode the clip at a low quality and decode it: blocks, ringing, colour bleeding and banding, worse in motion.

    codecs: names to draw from. crf: [from, to] on H.264's scale of 0 to 51, mapped to VP9's 0 to 63 and to MPEG-4's
    quantizers 1 to 31. bits_per_pixel: [from, to] of the target bit rate, used instead with crf: null. keyframes:
    frames between key frames.
    """

    codecs: list[str] = field(default_factory=lambda: list(CODECS))
    crf: Range | None = field(default_factory=lambda: [28.0, 44.0])
    bits_per_pixel: Range | None = None
    keyframes: int = 48

    def __post_init__(self) -> None:
        is_list = isinstance(self.codecs, list) and len(self.codecs) > 0
        require(is_list, f"task.maker_args.codecs={self.codecs!r} must be a list of codecs: {', '.join(CODECS)}")
        for name in self.codecs:
            one_of("task.maker_args.codecs", name, tuple(CODECS))
        exactly_one = (self.crf is None) != (self.bits_per_pixel is None)
        require(exactly_one, "task.maker_args: give one of crf and bits_per_pixel, and null for the other")
        if self.crf is not None:
            check_range("crf", self.crf, 0, 51)
        if self.bits_per_pixel is not None:
            check_range("bits_per_pixel", self.bits_per_pixel, 1e-4)
        check_number("keyframes", self.keyframes, 1)
        require(isinstance(self.keyframes, int), f"task.maker_args.keyframes={self.keyframes} must be a whole number")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        name = self.codecs[rng.integers(len(self.codecs))]
        if self.crf is not None:
            crf = uniform(self.crf, rng)
            return round_trip(frames, source.fps, name, crf=crf, keyframes=self.keyframes), {"codec": name, "crf": crf}
        assert self.bits_per_pixel is not None
        rate = log_uniform(self.bits_per_pixel, rng)
        bits = rate * frames.shape[1] * frames.shape[2] * source.fps
        decoded = round_trip(frames, source.fps, name, bits_per_second=bits, keyframes=self.keyframes)
        return decoded, {"codec": name, "bits_per_pixel": rate}


@register("degrade.jpeg")
@dataclass(frozen=True)
class Jpeg(Trajectory, Maker):
    """Every frame is a JPEG, as in motion JPEG or a video made of stills. quality: [from, to], 1 to 100."""

    quality: Range = field(default_factory=lambda: [30.0, 80.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("quality", self.quality, 1, 100)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        quality = self.draw(self.quality, len(frames), rng)
        decoded = [_jpeg_round_trip(frame, round(q)) for frame, q in zip(frames, quality, strict=True)]
        return np.stack(decoded), {"quality": self.summary(quality)}


def _jpeg_round_trip(frame: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None  # encoded one line above
    return decoded
