"""The adapters of a video: opened, checked against the base, made one, and put into the transformer."""

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
    """All adapters at their strengths as one, whose metadata has the reference factors and all triggers.

    ConfigError for a file that is not there, is no adapter or is for another base, and when the adapters' reference
    factors differ.
    """
    adapters = []
    for given in settings.adapter:
        path = Path(given).expanduser()
        require(path.is_file(), f"adapter={given} does not exist: give an adapter's .safetensors file")
        adapter = import_adapter(path)
        require_same_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
        adapters.append(adapter)
    return combine(list(zip(adapters, settings.adapter_strength, strict=True)))


def adapted_transformer(
    base: BaseModel, adapter: Adapter, model: Model, device: torch.device
) -> tuple[Transformer, int]:
    """The transformer with the adapter, and how many audio modules of the adapter are not used here.

    The adapter is added into the weights. To fp8 weights it would be lost in their rounding, and those in host memory
    are not to be written: it runs beside them.
    """
    transformer = build_transformer(base, model, device)
    if model.precision != "fp8" and not model.weight_offload:
        return transformer, fuse(transformer, [(adapter, 1.0)])
    passed = lora.load_adapter(transformer, adapter)
    return transformer.to(device).eval(), passed
