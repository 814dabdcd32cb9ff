"""Weights stored in fp8. An official fp8 file (`ltx-2.3-22b-dev-fp8.safetensors`) has, for each such `X.weight`, a
scalar `X.weight_scale` (the weight is their product) and an `X.input_scale` for fp8 activations, unused here.

No official file stores fp8 weights without scales: ltx-core's `fp8_cast` makes them from bf16 while loading. A file
without scales is therefore a repacked one, in which plain casts and lost scales cannot be told apart: refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from iclora_train.config import ConfigError

FP8 = ("F8_E4M3", "F8_E5M2")  # as safetensors names the dtypes
PLAIN = ("F64", "F32", "F16", "BF16")
_SCALES = (".weight_scale", ".input_scale", ".bias_scale")


def is_scale(name: str) -> bool:
    """Whether a key is the companion of a quantised tensor, not a parameter."""
    return name.endswith(_SCALES)


def scale_name(name: str) -> str:
    """The key of the scale of `X.weight` or `X.bias`."""
    return f"{name}_scale"


def dequantize(stored: Tensor, scale: Tensor) -> Tensor:
    """fp8 values times their scalar scale, fp32 (ltx-core: quantization/fp8_cast.py)."""
    return stored.float() * scale.to(stored.device, torch.float32).reshape(())


def require_scales(source: str, stored: dict[str, str], scales: dict[str, tuple[int, ...]]) -> None:
    """ConfigError unless every tensor is of a plain dtype, or of fp8 with a scalar scale.

    stored: dtype of each tensor; scales: shape of each scale, by the name of its tensor.
    """
    _refuse(
        source,
        (name for name, dtype in stored.items() if dtype in FP8 and name not in scales),
        "are fp8 without a .weight_scale, so their size is unknown; give the official fp8 file, or the bf16 one",
    )
    _refuse(
        source,
        (name for name, shape in scales.items() if shape not in ((), (1,))),
        "have a scale that is not one number; give the official fp8 file, or the bf16 one",
    )
    others = {name: dtype for name, dtype in stored.items() if dtype not in FP8 + PLAIN}
    kinds = ", ".join(sorted(set(others.values())))
    _refuse(source, others, f"are stored as {kinds}; only bf16, fp32 and fp8 can be read: give the bf16 or fp8 file")


def _refuse(source: str, names: Iterable[str], why: str) -> None:
    bad = sorted(names)
    if bad:
        raise ConfigError(f"{source}: {len(bad)} weights {why} (first: {bad[0]})")
