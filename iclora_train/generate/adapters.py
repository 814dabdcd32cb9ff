"""Open the adapters of a video, check them against the base, combine them and load them into the transformer."""

from __future__ import annotations

from pathlib import Path

import torch

from iclora_train.adapters import lora
from iclora_train.adapters.algebra import combine
from iclora_train.adapters.base_spec import require_same_base
from iclora_train.adapters.convert import import_adapter
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.fuse import fuse
from iclora_train.config import Model, require
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import build_transformer
from iclora_train.ltx2.model.transformer import Transformer


def open_adapter(settings: GenerateSettings, base: BaseModel) -> Adapter:
    """Open all adapters and combine them, at their strengths, into one.

    Its metadata has the reference factors and all triggers. ConfigError when a file does not exist, is not an adapter
    or fits another base, and when the reference factors of the adapters differ.
    """
    adapters = []
    for name in settings.adapter:
        path = Path(name).expanduser()
        require(path.is_file(), f"adapter={name} does not exist: give an adapter's .safetensors file")
        adapter = import_adapter(path)
        require_same_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
        adapters.append(adapter)
    return combine(list(zip(adapters, settings.adapter_strength, strict=True)))


def adapted_transformer(
    base: BaseModel, adapter: Adapter, model: Model, device: torch.device
) -> tuple[Transformer, int]:
    """The transformer with the adapter, and the number of the adapter's audio modules, which are not used.

    The adapter is merged into the weights. It stays a separate LoRA path in two cases: with fp8 weights, whose rounding
    would lose part of the adapter, and with weight offload, because offloaded weights are read-only.
    """
    transformer = build_transformer(base, model, device)
    if model.precision != "fp8" and not model.weight_offload:
        return transformer, fuse(transformer, [(adapter, 1.0)])
    num_audio = lora.load_adapter(transformer, adapter)
    return transformer.to(device).eval(), num_audio
