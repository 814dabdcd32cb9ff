"""The shape legend of the project: what a pair is, what a latent pair is, what the transformer is given.

Letters used in shape comments everywhere: B clips, F pixel frames, H W pixels; f h w the same on the latent grid;
C latent channels, N tokens, K noise levels of a clip, T text tokens, D width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class VideoShape:
    """Size of a clip in pixels: frames, height, width, and frames per second."""

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
    """What a VAE does to sizes: channels C, and pixels per latent cell in space and time (read from the checkpoint).

    Time is causal: pixel frame 0 has a latent frame of its own, then every `temporal` frames share one.
    """

    channels: int
    spatial: int
    temporal: int

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(f, h, w) of a clip. ValueError when the clip does not fit the VAE, with the nearest sizes that do."""
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
class Pair:
    """One training example in pixels: uint8 RGB clips (F,H,W,3). References may be smaller by a declared factor."""

    key: str
    target: np.ndarray
    references: tuple[np.ndarray, ...]
    caption: str
    fps: float
    record: dict[str, object] = field(default_factory=dict)  # how the reference was made, JSON-able


@dataclass(frozen=True)
class LatentPair:
    """One training example, encoded: target (C,f,h,w), references (C,f',h',w') each, text (T,D); all float."""

    key: str
    target: Tensor
    references: tuple[Tensor, ...]
    text: Tensor
    fps: float
    caption: str = ""


@dataclass(frozen=True)
class Tokens:
    """What the transformer is given, target tokens first and then each reference (`append_reference`).

    latent     (B,N,C)    noisy target, clean (or less noisy) references
    sigma      (B,K)      the few distinct noise levels of a clip; row 0 is the target's own
    level      (B,N)      int64, which of those levels a token has: AdaLN is computed for K rows, never for N
    position   (B,3,N,2)  fp32 [start, end) of a token in seconds, pixels (height), pixels (width)
    group      (N,)       int64, 0 = target, i = reference i
    loss_mask  (B,N)      bool, tokens that are learned
    keyframe   (B,N)      bool, the target's first latent frame (LTX-2.5's marker); never a reference
    weight     (B,N)      attention weight of reference tokens in [0, 1], or None when all are 1
    geometry, fps (B,)    of the target's pixels: what places a reference on the target's coordinates
    """

    latent: Tensor
    sigma: Tensor
    level: Tensor
    position: Tensor
    group: Tensor
    loss_mask: Tensor
    keyframe: Tensor
    geometry: Geometry
    fps: Tensor
    weight: Tensor | None = None
