"""Guidance: one velocity from several passes (`MultiModalGuider` of Lightricks' ltx-core, video only).

    x0 = c + (scale - 1) (c - negative) + stg_scale (c - perturbed),  rescaled by  r std(c) / std(x0) + 1 - r

c, negative and perturbed are predicted clean latents: with the prompt, with the negative prompt, and with the prompt
while the self-attention of some blocks returns its values. All passes see the same references. The first sum is
computed on velocities, which is equivalent. The standard deviations are of clean latents, not of velocities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iclora_train.config import Sampling, require
from iclora_train.core.types import Tokens
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.weights.versions import VERSIONS


@dataclass(frozen=True)
class Guidance:
    """Scales of the passes. negative_text (B,T,D), or (1,T,D) for all clips, is required unless scale is 1.

    scale: classifier-free guidance (arXiv 2207.12598), 1 is off. stg_scale: spatio-temporal guidance (arXiv 2411.18664)
    by perturbing `stg_blocks`, 0 is off. rescale: the r of the module docstring (arXiv 2305.08891, section 3.4), 0 is
    off.
    """

    scale: float = 1.0
    negative_text: Tensor | None = None
    stg_scale: float = 0.0
    stg_blocks: tuple[int, ...] = VERSIONS["2.0"].stg_blocks  # as the default of config.Sampling
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scale != 1 and self.negative_text is None:
            raise ValueError(f"guidance of scale {self.scale} needs a negative text")

    @property
    def passes(self) -> int:
        """Passes of the transformer in a step."""
        return 1 + (self.negative_text is not None and self.scale != 1) + (self.stg_scale != 0)

    @classmethod
    def from_config(cls, config: Sampling, negative_text: Tensor | None, num_blocks: int) -> Guidance:
        """The guidance of a config for a transformer with `num_blocks` blocks.

        ConfigError when `sample.stg_blocks` names a block that the transformer does not have.
        """
        outside = [block for block in config.stg_blocks if block >= num_blocks]
        require(
            config.stg_scale == 0 or not outside,
            f"sample.stg_blocks={config.stg_blocks}: the base has the blocks 0 to {num_blocks - 1}",
        )
        return cls(config.guidance, negative_text, config.stg_scale, tuple(config.stg_blocks), config.rescale)


def guided_velocity(transformer: Transformer, tokens: Tokens, text: Tensor, guidance: Guidance, between: str) -> Tensor:
    """The guided velocity (B,N,C), fp32, of all tokens; text (B,T,D). A pass whose scale is off is skipped."""
    predicted: Tensor = transformer(tokens, text, between).float()
    total = predicted
    if guidance.negative_text is not None and guidance.scale != 1:
        negative_text = guidance.negative_text.expand(len(text), -1, -1)
        negative = transformer(tokens, negative_text, between).float()
        total = negative + guidance.scale * (predicted - negative)
    if guidance.stg_scale != 0:
        perturbed = transformer(tokens, text, between, guidance.stg_blocks).float()
        total = total + guidance.stg_scale * (predicted - perturbed)
    if guidance.rescale == 0 or total is predicted:
        return total
    return _rescale(tokens, predicted, total, guidance.rescale)


def _rescale(tokens: Tokens, predicted: Tensor, total: Tensor, rescale: float) -> Tensor:
    """Scale the guided velocity `total` (B,N,C) so that its clean latents have nearly the unguided standard deviation.

    The deviation is taken over all tokens of a clip; a clean reference counts with its own latents.
    """
    sigma = tokens.sigma.gather(1, tokens.level)[..., None]  # (B,N,1)
    unguided, clean = tokens.latent - sigma * predicted, tokens.latent - sigma * total
    factor = rescale * unguided.std((1, 2), keepdim=True) / clean.std((1, 2), keepdim=True) + 1 - rescale
    return torch.where(sigma > 0, total + (1 - factor) * clean / sigma, total)
