"""Parts of the target that are known: clean latents in place of noise, which the sampler leaves unchanged.

A first frame, the beginning or the end of a clip, or everything outside a mask. Their tokens have noise level 0, as in
ltx-core's VideoConditionByLatentIndex and VideoConditionByMask at strength 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iclora_train.config import one_of
from iclora_train.config.diffusion import CELL_MODES
from iclora_train.diffusion.reference import mask_to_grid


@dataclass(frozen=True)
class KeptLatents:
    """latent (B,C,f,h,w), of the target's size, is used where mask (B,f,h,w) bool is True."""

    latent: Tensor
    mask: Tensor

    @classmethod
    def none(cls, batch: int, channels: int, size: tuple[int, int, int]) -> KeptLatents:
        """Nothing is kept of a target of latent size (f,h,w)."""
        return cls(torch.zeros(batch, channels, *size), torch.zeros(batch, *size, dtype=torch.bool))

    def with_span(self, latent: Tensor, start: int) -> KeptLatents:
        """Keep a part (B,C,n,h,w) from latent frame `start` on. ValueError if it does not lie in the target."""
        frames, n = self.mask.shape[1], latent.shape[2]
        if not 0 <= start <= frames - n or latent.shape[3:] != self.latent.shape[3:]:
            raise ValueError(
                f"latents of size {tuple(latent.shape[2:])} at latent frame {start} do not lie in a target of size "
                f"{tuple(self.mask.shape[1:])}"
            )
        spread = torch.zeros_like(self.latent, device=latent.device)
        spread[:, :, start : start + n] = latent
        mask = torch.zeros_like(self.mask)
        mask[:, start : start + n] = True
        return self.with_cells(spread, mask)

    def with_cells(self, latent: Tensor, mask: Tensor) -> KeptLatents:
        """Keep latent (B,C,f,h,w) where mask (B,f,h,w) bool is True, in place of the latents kept there before."""
        mask = mask.to(latent.device)
        kept = torch.where(mask[:, None], latent.to(self.latent.dtype), self.latent.to(latent.device))
        return KeptLatents(kept, self.mask.to(latent.device) | mask)

    def fill(self, target: Tensor) -> Tensor:
        """The target (B,C,f,h,w) with the kept latents in it."""
        return torch.where(self.mask.to(target.device)[:, None], self.latent.to(target), target)


def mask_to_cells(mask: Tensor, size: tuple[int, int, int], mode: str) -> Tensor:
    """The cells (B,f,h,w) bool of a latent grid that a pixel mask (B,F,H,W), (F,H,W) or (H,W) covers.

    A pixel belongs to the mask if its value is at least 0.5. mode: a cell is covered if `any` of its pixels, at least
    `half` of them, or `all` belong to the mask. Frames are grouped as by the causal VAE (`mask_to_grid`).
    """
    one_of("mode", mode, tuple(CELL_MODES))
    return _covered(mask_to_grid((mask >= 0.5).float(), size), mode)


def mask_to_levels(mask: Tensor, size: tuple[int, int, int]) -> Tensor:
    """By how many of CELL_MODES a mask covers each cell: uint8 (B,f,h,w); mask and size as in `mask_to_cells`.

    0: no pixel of the cell, 1: any, 2: half, 3: all. `levels_to_cells` gives the cells of each mode without the pixels.
    """
    share = mask_to_grid((mask >= 0.5).float(), size)
    return torch.stack([_covered(share, mode) for mode in CELL_MODES]).sum(0).to(torch.uint8)


def levels_to_cells(levels: Tensor, mode: str) -> Tensor:
    """The cells (bool) that a mask of these levels covers: `mask_to_cells` of the mask itself."""
    return levels > list(CELL_MODES).index(mode)


def _covered(share: Tensor, mode: str) -> Tensor:
    """The cells that are covered, from the share of their pixels that belong to the mask."""
    threshold = CELL_MODES[mode]
    return share > 0 if threshold == 0 else share >= threshold - 1e-6
