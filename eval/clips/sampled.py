"""Clips of a cell, from the shipping sampler or from disk: what is made once is kept under a hash of what made it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from eval.clips.attention_masks import fade_masks, half_masks
from eval.clips.clip_source import ClipCache, ClipSource
from eval.clips.conditions import Condition, Item, all_conditions
from eval.clips.judged_adapter import JudgedAdapter
from eval.clips.windows import HeldOut, Window
from eval.metrics import Clip
from iclora_train.adapters import lora
from iclora_train.config import Config
from iclora_train.diffusion.guidance import guidance_from
from iclora_train.diffusion.noise_schedule import make_sigmas
from iclora_train.diffusion.sampler import Reference, sample
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import build_transformer, compile_from_settings


class SampledClips(ClipSource):
    """Makes the clips of a cell with the base, the adapter and the held-out latents."""

    def __init__(self, config: Config, base: BaseModel, judged: JudgedAdapter, held: HeldOut, store: ClipCache) -> None:
        super().__init__(config, base, judged, held, store)
        self.transformer = build_transformer(base, config.model, self.device)
        if judged.adapter is not None:
            lora.load_adapter(self.transformer, judged.adapter)
        self.transformer.to(self.device).eval()
        compile_from_settings(self.transformer, base, config.model)
        self.precision = str(self.transformer.patchify_proj.weight.dtype)
        f, h, w = self.size
        reference = held.latents(held.windows[0]).references[0]  # (C,f',h',w')
        self.seeds = list(config.eval.seeds)
        self.cells = all_conditions(config.eval.strengths, fade=min(f, reference.shape[1]) > 1)
        self.sigmas = make_sigmas(config.sample, config.flow, f * h * w)
        self.empty = held.empty_text()[None].to(self.device)  # (1,T,D)
        unprompted = self.empty if config.sample.guidance > 1 else None
        self.guidance = guidance_from(config.sample, unprompted, self.transformer.config.num_layers)

    def specification(self, cell: Condition, batch: Sequence[Item]) -> dict[str, Any]:
        """Everything that shapes these clips, JSON-able: the name of the cell is not among it."""
        return {
            **self._common(),
            "adapter": self.judged.sha256 if cell.adapter else None,
            "reference": cell.reference,
            "strength": cell.strength,
            "half_mask": cell.mask == "half",
            **({"mask": cell.mask} if cell.mask == "fade" else {}),
            **({"text": "empty"} if cell.empty_prompt else {}),
            "factors": [self.config.task.reference_downscale, self.config.task.reference_temporal_scale],
            "sigmas": self.sigmas,
            **self._guided(),
            "items": [
                [item.window.key, self._giver(cell, item).key, item.window.mask_left, item.seed] for item in batch
            ],
        }

    def _guided(self) -> dict[str, Any]:
        settings = self.config.sample
        stg = {"stg": [settings.stg_scale, *settings.stg_blocks]} if settings.stg_scale else {}
        return {"guidance": settings.guidance, **stg, **({"rescale": settings.rescale} if settings.rescale else {})}

    def _giver(self, cell: Condition, item: Item) -> Window:
        """The window whose reference is given."""
        return self.held.windows[item.window.partner] if cell.reference == "other" else item.window

    def clips(self, cell: Condition, batch: Sequence[Item]) -> tuple[Clip, float]:
        """As `ClipSource.clips`: sampled, or read back."""
        return self.kept(self.specification(cell, batch), lambda: self._make(cell, batch))

    def clip(self, cell: Condition, batch: Sequence[Item], i: int) -> Clip:
        """As `ClipSource.clip`: sampled with its batch, or read back alone."""
        return self.kept(self.specification(cell, batch), lambda: self._make(cell, batch), slice(i, i + 1))[0][0]

    def _make(self, cell: Condition, batch: Sequence[Item]) -> Tensor:
        own = [self.held.latents(item.window) for item in batch]
        text = torch.stack([pair.text for pair in own]).to(self.device)  # (B,T,D)
        if cell.empty_prompt:
            text = self.empty.expand(len(own), -1, -1)
        with nullcontext() if cell.adapter else lora.adapter_off(self.transformer):
            latent = sample(
                self.transformer,
                text,
                self.size,
                self.base.geometry,
                torch.tensor([pair.fps for pair in own]),
                self.sigmas,
                [item.noise_seed for item in batch],
                self._references(cell, batch),
                guidance=self.guidance,
            )
        return self._decode(latent)

    def _references(self, cell: Condition, batch: Sequence[Item]) -> list[Reference]:
        if cell.reference == "none":
            return []
        task = self.config.task
        given = [self.held.latents(self._giver(cell, item)).references for item in batch]
        result = []
        for stacked in (torch.stack(clips) for clips in zip(*given, strict=True)):  # (B,C,f,h,w)
            mask = None
            if cell.mask == "half":
                mask = half_masks([item.window.mask_left for item in batch], stacked.shape[-1])
            elif cell.mask == "fade":
                mask = fade_masks(len(batch), stacked.shape[2])
            result.append(
                Reference(
                    stacked.to(self.device),
                    task.reference_downscale,
                    task.reference_temporal_scale,
                    cell.strength,
                    mask,
                )
            )
        return result
