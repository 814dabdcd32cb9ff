"""A base of official sizes with random weights that never was a file: for measuring what does not depend on values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iclora_train.ltx2.base import Base
from iclora_train.ltx2.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.load import place
from iclora_train.ltx2.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.vae_layout import geometry_of
from scripts.synthetic.configs import GEMMA, MODEL_VERSION, official_config
from scripts.synthetic.layout import Spec, transformer


class RandomBase(Base):
    """The transformer of a version, made on the device within seconds; it has no other part."""

    def __init__(self, version: str, size: str = "full") -> None:
        self.name, self.version, self.family = f"random {version}", MODEL_VERSION[version], "ltx2"
        self.config = official_config(version, size, GEMMA[size][0])
        self.geometry, self.embedded, self.fingerprint = geometry_of(self.config["vae"]), False, "random"

    def transformer(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", fp8: bool = False
    ) -> Transformer:
        """Frozen, in evaluation mode, in `dtype`; fp8: the linears of its blocks, but their gates, in fp8."""
        generator = torch.Generator(device).manual_seed(0)
        specs = {spec.name: spec for spec in transformer(self.config["transformer"])}
        with torch.device("meta"):
            module = Transformer(TransformerConfig.from_metadata(self.config["transformer"]))

        def made(name: str) -> Tensor:
            spec: Spec = specs[name]
            empty = torch.empty(spec.shape, dtype=dtype, device=device)
            return empty.normal_(spec.mean, spec.std, generator=generator)

        for name, parameter in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            linear = module.get_submodule(owner)
            if fp8 and leaf == "weight" and _in_fp8(owner, linear):
                bias = made(f"{owner}.bias") if linear.bias is not None else None
                module.set_submodule(owner, Fp8Linear(*quantize(made(name)), bias))
            elif parameter.is_meta and not isinstance(linear, Fp8Linear):
                place(module, name, made(name))
        return module.eval()


def _in_fp8(name: str, module: nn.Module) -> bool:
    blocks = name.startswith("transformer_blocks.") and not name.endswith("_gate_logits")
    return blocks and isinstance(module, nn.Linear)
