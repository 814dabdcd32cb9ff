"""The types that every stage passes on: pairs in pixels, pairs as latents, and tokens for the transformer.

Letters in shape comments, everywhere in the project: B clips, F pixel frames, H W pixels; f h w the same on the latent
grid; C latent channels, N tokens, K noise levels of a clip, T text tokens, D width of a vector. Of sound: S samples, L
mel frames, M mel bins; l m the same on the latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class VideoShape:
    """Size of a clip: frames, height and width in pixels, frames per second."""

    frames: int
    height: int
    width: int
    fps: float

    @property
    def bucket(self) -> str:
        """Clips of one bucket can share a batch, e.g. `64x64x9` (width x height x frames)."""
        return f"{self.width}x{self.height}x{self.frames}"


@dataclass(frozen=True)
class Geometry:
    """How a VAE maps sizes: its latent channels, and the pixels per latent cell in space and time.

    Time is causal: pixel frame 0 has its own latent frame, and every later latent frame holds `temporal` pixel frames.
    """

    channels: int
    spatial: int
    temporal: int

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(f, h, w) of a clip. ValueError names the nearest sizes that fit when the clip does not fit the VAE."""
        problems = []
        if frames < 1 or (frames - 1) % self.temporal:
            low = max(frames - 1, 0) // self.temporal * self.temporal + 1
            problems.append(f"frames={frames} is not {self.temporal}k+1 (use {low} or {low + self.temporal})")
        for name, size in (("height", height), ("width", width)):
            if size < self.spatial or size % self.spatial:
                low = max(size // self.spatial, 1) * self.spatial
                problems.append(
                    f"{name}={size} is not a multiple of {self.spatial} (use {low} or {low + self.spatial})"
                )
        if problems:
            raise ValueError("the clip does not fit the VAE: " + "; ".join(problems))
        return (frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial


@dataclass(frozen=True)
class AudioGeometry:
    """How an audio VAE maps sound to latents (C,l,m): mel frames of `hop` samples at `sample_rate`, and `temporal` mel
    frames per latent frame. A latent frame, with its C x m values, is one token.

    Time is causal: latent frame 0 has mel frame 0 alone, and every later latent frame holds `temporal` mel frames.
    """

    channels: int
    bins: int  # m
    sample_rate: int
    hop: int
    temporal: int = 4

    @property
    def width(self) -> int:
        """Values of a token, C x m."""
        return self.channels * self.bins

    def latent_frames(self, frames: int, fps: float) -> int:
        """Latent frames l of the sound of a video of `frames` frames, rounded as diffusers and ltx-core do."""
        return max(round(frames / fps * (self.sample_rate / self.hop / self.temporal)), 1)

    def mel_frames(self, latent_frames: int) -> int:
        """Mel frames L of `latent_frames` latent frames."""
        return self.temporal * (latent_frames - 1) + 1


@dataclass(frozen=True, eq=False)
class Sound:
    """A piece of sound: samples fp32 (channels,S), where 1 is full scale, and samples per second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.rate

    def fitted(self, seconds: float | Fraction) -> Sound:
        """The same sound, cut at its end or continued by silence to this length."""
        count = round(seconds * self.rate)
        padding = max(count - self.samples.shape[1], 0)
        return Sound(np.pad(self.samples[:, :count], ((0, 0), (0, padding))), self.rate)


@dataclass(frozen=True)
class Pair:
    """One training example in pixels: uint8 RGB clips (F,H,W,3). References may be smaller by a declared factor.

    mask: (F,H,W) bool, the part of the target that is made anew (`task.conditions`); None if the task stores none.
    sound: of the target, stereo in 16 bits (`data.sound`); None if the set has no sound, or the clip is silent.
    reference_sound: of `task.audio_reference`, likewise, at the times of the target.
    """

    key: str
    target: np.ndarray
    references: tuple[np.ndarray, ...]
    caption: str
    fps: float
    record: dict[str, object] = field(default_factory=dict)  # how the reference was made, JSON-able
    mask: np.ndarray | None = None
    sound: Sound | None = None
    reference_sound: Sound | None = None


@dataclass(frozen=True)
class LatentPair:
    """One encoded training example: target (C,f,h,w), references (C,f',h',w') each, text (T,D); all float.

    places: of each reference, the target frame that was drawn for it; None where none was. mask: (f,h,w) levels of the
    part of the target that is made anew (`diffusion.kept_latents.mask_to_levels`); None if the pair has none.
    audio: (C,l,m) latents of the target's sound, and audio_text (T,D') the caption's features of the audio stream; None
    without data.sound. heard: whether the sound is the clip's own; False for silence in place of a missing one.
    audio_reference: (C,l,m) latents of `task.audio_reference`; None without it.
    """

    key: str
    target: Tensor
    references: tuple[Tensor, ...]
    text: Tensor
    fps: float
    caption: str = ""
    places: tuple[int | None, ...] = ()
    mask: Tensor | None = None
    audio: Tensor | None = None
    audio_text: Tensor | None = None
    heard: bool = True
    audio_reference: Tensor | None = None


@dataclass(frozen=True)
class StreamTokens:
    """The tokens of one stream of the transformer: those of the target first, then those of references.

    latent     (B,N,C)    noisy target, clean (or less noisy) references
    sigma      (B,K)      the few distinct noise levels of a clip; row 0 is the target's
    level      (B,N)      int64, index of each token's noise level in `sigma`: AdaLN is computed for K rows, not for N
    position   (B,A,N,2)  fp32 [start, end) of a token on the stream's axes
    group      (N,)       int64, 0 = target, i = reference i; a reference that is left out leaves out its number
    loss_mask  (B,N)      bool, tokens that count in the loss
    """

    latent: Tensor
    sigma: Tensor
    level: Tensor
    position: Tensor
    group: Tensor
    loss_mask: Tensor


@dataclass(frozen=True)
class AudioTokens(StreamTokens):
    """The audio input of the transformer; position (B,1,N,2) is in seconds, on the clock of the video's tokens.

    A sound that is given and not generated is all clean: `sigma` is then 0 in row 0 too, as in ltx-core, because the
    video stream sees row 0 (`model.transformer.AudioInput`).
    """


@dataclass(frozen=True)
class Tokens(StreamTokens):
    """The video input of the transformer: target tokens first, then each reference's (`append_reference`).

    position   (B,3,N,2)  fp32 [start, end) of a token in seconds, pixels (height), pixels (width)
    keyframe   (B,N)      bool, the target's first latent frame (LTX-2.5's keyframe embedding); never a reference
    weight     (B,N)      attention weight of reference tokens, at least 0 and usually at most 1; None when all are 1
    absent     (B,N) bool token of a reference that this clip does not have, of weight 0; None when none is
    geometry, fps (B,)    of the target's pixels; they place a reference on the target's coordinates
    """

    keyframe: Tensor
    geometry: Geometry
    fps: Tensor
    weight: Tensor | None = None
    absent: Tensor | None = None
