"""Audio latents as tokens of the transformer, and the times of the tokens.

Sources: diffusers' LTX2Pipeline (`_pack_audio_latents`) and LTX2AudioVideoRotaryPosEmbed (`prepare_audio_coords`),
ltx-core's AudioPatchifier, and its Dub-It pipeline for references before the target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iclora_train.core.types import AudioGeometry


def to_tokens(latent: Tensor) -> Tensor:
    """Latents (B,C,l,m) -> tokens (B,l,C m): one per latent frame, channels slower than bins."""
    return latent.transpose(1, 2).flatten(2)


def to_latent(tokens: Tensor, geometry: AudioGeometry) -> Tensor:
    """Tokens (B,l,C m) -> latents (B,C,l,m)."""
    return tokens.unflatten(2, (geometry.channels, geometry.bins)).transpose(1, 2)


def token_times(geometry: AudioGeometry, frames: int, device: torch.device | str = "cpu") -> Tensor:
    """Times of `frames` tokens: fp32 (1,1,l,2), [start, end) in seconds, as positions with one axis. Clips share them.

    Token 0 lasts one mel frame, every later one `temporal` mel frames: 0, 0.01, 0.05, 0.09, ... for LTX-2.
    """
    edges = torch.arange(frames + 1, dtype=torch.float32, device=device) * geometry.temporal
    edges = (edges + 1 - geometry.temporal).clamp(min=0) * geometry.hop / geometry.sample_rate
    return torch.stack([edges[:-1], edges[1:]], dim=-1)[None, None]


def times_before(geometry: AudioGeometry, times: Tensor) -> Tensor:
    """The times (1,1,l,2) of a reference that ends one latent frame before the target begins: they are negative."""
    return times - times[..., -1:, 1:] - geometry.temporal * geometry.hop / geometry.sample_rate
