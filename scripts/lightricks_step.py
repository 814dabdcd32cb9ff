"""Lightricks' own transformer in our training step, for `scripts.benchmark --lightricks PATH`.

Their package is not part of this project: PATH is a checkout of github.com/Lightricks/LTX-2. Random weights, the video
stream alone, each block recomputed by their own switch, adapters by peft.
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


class TheirTransformer(nn.Module):
    """ltx-core's LTXModel behind the call of ours."""

    def __init__(self, model: Any, config: TransformerConfig, modality: Any) -> None:
        super().__init__()
        self.patchify_proj, self.transformer_blocks = model.patchify_proj, model.transformer_blocks  # named as ours
        self.model, self.config, self.modality = model, config, modality
        self.run_blocks = BlockRunner()  # read for its setting only: the model runs its blocks itself

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


class TheirBase(RandomBase):
    """The same random base, but its transformer is theirs."""

    def __init__(self, checkout: Path, version: str, size: str = "full") -> None:
        super().__init__(version, size)
        core = checkout / CORE
        if not (core / "ltx_core").is_dir():
            raise SystemExit(
                f"--lightricks {checkout}: there is no {CORE / 'ltx_core'}; give a checkout of Lightricks/LTX-2"
            )
        sys.path.insert(0, str(core))

    def transformer(  # type: ignore[override]
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fp8: bool = False,
        weight_offload: int = 0,
    ) -> TheirTransformer:
        """In `dtype` on the device; neither fp8 nor weight offload is measured."""
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
        return TheirTransformer(model, TransformerConfig.from_metadata(self.config["transformer"]), Modality)
