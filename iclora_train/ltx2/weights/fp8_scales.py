"""The fp8 weights and scales of official files.

An official fp8 file (`ltx-2.3-22b-dev-fp8.safetensors`) has for each fp8 `X.weight` a scalar `X.weight_scale`; the
weight is their product. It also has an `X.input_scale` for fp8 activations, which this code does not use.

No official file stores fp8 weights without scales: ltx-core's `fp8_cast` makes them from bf16 while loading. A file
without scales was therefore repacked. Plain casts and lost scales look the same in such a file, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from iclora_train.config import ConfigError

FP8 = ("F8_E4M3", "F8_E5M2")  # as safetensors names the dtypes
UNSCALED = ("F64", "F32", "F16", "BF16")  # dtypes that need no scale
_SCALE_SUFFIXES = (".weight_scale", ".input_scale", ".bias_scale")


def is_scale(name: str) -> bool:
    """Whether a key is a scale of a quantized tensor and not a parameter."""
    return name.endswith(_SCALE_SUFFIXES)


def scale_name(name: str) -> str:
    """The key of the scale of `X.weight` or `X.bias`."""
    return f"{name}_scale"


def dequantize(stored: Tensor, scale: Tensor) -> Tensor:
    """fp8 values times their scalar scale, fp32 (ltx-core: quantization/fp8_cast.py)."""
    return stored.float() * scale.to(stored.device, torch.float32).reshape(())


def require_scales(source: str, dtypes: dict[str, str], scales: dict[str, tuple[int, ...]]) -> None:
    """ConfigError unless every tensor is in bf16, fp16, fp32 or fp64, or in fp8 with a scalar scale.

    dtypes: dtype of each tensor. scales: shape of each scale, by the name of its tensor.
    """
    _refuse(
        source,
        (name for name, dtype in dtypes.items() if dtype in FP8 and name not in scales),
        "are fp8 without a .weight_scale, so their values are unknown; give the official fp8 file, or the bf16 one",
    )
    _refuse(
        source,
        (name for name, shape in scales.items() if shape not in ((), (1,))),
        "have a scale that is not one number; give the official fp8 file, or the bf16 one",
    )
    unreadable = {name: dtype for name, dtype in dtypes.items() if dtype not in FP8 + UNSCALED}
    kinds = ", ".join(sorted(set(unreadable.values())))
    _refuse(
        source, unreadable, f"are stored as {kinds}; only bf16, fp32 and fp8 can be read: give the bf16 or fp8 file"
    )


def _refuse(source: str, names: Iterable[str], reason: str) -> None:
    refused = sorted(names)
    if refused:
        raise ConfigError(f"{source}: {len(refused)} weights {reason} (first: {refused[0]})")
