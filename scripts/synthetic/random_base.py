"""A base of official size with random weights, without a file, for measurements that do not depend on the values."""

from __future__ import annotations

import torch
from torch import Tensor

from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.kernels.fp8_linear import Fp8Linear, quantize
from iclora_train.ltx2.load import block_linears
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.runtime.block_runner import BlockRunner
from iclora_train.ltx2.runtime.weight_offload import WeightOffload
from iclora_train.ltx2.vae.layout import geometry_of
from iclora_train.ltx2.weights.assign import assign_tensor
from scripts.synthetic.configs import GEMMA, MODEL_VERSION, official_config
from scripts.synthetic.layout import Spec, transformer


class RandomBase(BaseModel):
    """The transformer of a version, generated on the device within seconds; it has no VAE and no text encoder."""

    def __init__(self, version: str, size: str = "full") -> None:
        self.name, self.version, self.family = f"random {version}", MODEL_VERSION[version], "ltx2"
        self.config = official_config(version, size, GEMMA[size][0])
        self.geometry, self.embedded, self.fingerprint = geometry_of(self.config["vae"]), False, "random"

    def transformer(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fp8: bool = False,
        weight_offload: int = 0,
        audio: bool = False,
    ) -> Transformer:
        """The transformer, frozen and in evaluation mode, in `dtype`.

        fp8: the linears of the blocks, except the gates, are in fp8. weight_offload: number of blocks whose weights lie
        in host memory. audio: with the audio half.
        """
        generator = torch.Generator(device).manual_seed(0)
        specs = {spec.name: spec for spec in transformer(self.config["transformer"])}
        with torch.device("meta"):
            module = Transformer(TransformerConfig.from_metadata(self.config["transformer"], audio))

        def random(name: str) -> Tensor:
            spec: Spec = specs[name]
            empty = torch.empty(spec.shape, dtype=dtype, device=device)
            return empty.normal_(spec.mean, spec.std, generator=generator)

        offload = WeightOffload(module.config.num_layers, weight_offload, device)
        BlockRunner(offload).install(module)
        linears = block_linears(module) if fp8 else set()
        names = [name for name, _ in module.named_parameters()]
        for name in names:
            owner, _, leaf = name.rpartition(".")
            if owner not in linears:
                assign_tensor(module, name, random(name))
            elif leaf == "weight":
                bias = random(f"{owner}.bias") if f"{owner}.bias" in names else None
                module.set_submodule(owner, Fp8Linear(*quantize(random(name)), bias))
            offload.move_to_host(name, module.get_parameter(name))
        return module.eval()
