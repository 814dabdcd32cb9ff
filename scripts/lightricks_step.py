"""Lightricks' transformer in this project's training step, for `scripts.benchmark --lightricks PATH`.

PATH is a checkout of github.com/Lightricks/LTX-2, which is not part of this project. The model has random weights and
only the video stream. It uses Lightricks' activation checkpointing and peft's LoRA layers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iclora_train.core.types import Tokens
from iclora_train.ltx2.model.transformer import TransformerConfig
from iclora_train.ltx2.runtime.block_runner import BlockRunner
from scripts.synthetic.random_base import RandomBase

CORE = Path("packages", "ltx-core", "src")


class LightricksTransformer(nn.Module):
    """ltx-core's LTXModel with the interface of `model.transformer.Transformer`."""

    def __init__(self, model: Any, config: TransformerConfig, modality: Any) -> None:
        super().__init__()
        self.patchify_proj, self.transformer_blocks = model.patchify_proj, model.transformer_blocks  # the same names
        self.model, self.config, self.modality = model, config, modality
        self.run_blocks = BlockRunner()  # only for its setting activation_checkpointing

    def forward(self, tokens: Tokens, text: Tensor, num_outputs: int | None = None) -> Tensor:
        """Tokens and text (B,T,D') -> velocity (B,num_outputs,C)."""
        dtype = self.patchify_proj.weight.dtype
        self.model.set_gradient_checkpointing(self.run_blocks.activation_checkpointing)
        video = self.modality(
            latent=tokens.latent.to(dtype),
            sigma=tokens.sigma[:, 0],
            timesteps=tokens.sigma.gather(1, tokens.level.long())[..., None],
            positions=tokens.position,
            context=text.to(dtype),
        )
        velocity: Tensor = self.model(video, None, None)[0]
        return velocity[:, :num_outputs]


class LightricksBase(RandomBase):
    """A random base with Lightricks' transformer."""

    def __init__(self, checkout: Path, version: str, size: str = "full") -> None:
        super().__init__(version, size)
        core = checkout / CORE
        if not (core / "ltx_core").is_dir():
            raise SystemExit(
                f"--lightricks {checkout}: {CORE / 'ltx_core'} is missing; give a checkout of Lightricks/LTX-2"
            )
        sys.path.insert(0, str(core))

    def transformer(  # type: ignore[override]
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fp8: bool = False,
        weight_offload: int = 0,
    ) -> LightricksTransformer:
        """The transformer in `dtype` on the device. fp8 and weight offload are not supported."""
        from ltx_core.model.transformer.modality import Modality  # noqa: PLC0415
        from ltx_core.model.transformer.model_configurator import LTXVideoOnlyModelConfigurator  # noqa: PLC0415

        assert not fp8
        assert not weight_offload
        generator = torch.Generator(device).manual_seed(0)
        with torch.device("meta"):
            model = LTXVideoOnlyModelConfigurator.from_metadata({"config": self.config})
        model = model.to(dtype).to_empty(device=device)
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.02, generator=generator)
        return LightricksTransformer(model, TransformerConfig.from_metadata(self.config["transformer"]), Modality)
