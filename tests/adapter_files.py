"""Random adapters for a tiny LTX-2.3, their files, and comparisons of the weight differences that they add."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.file import Adapter

LTX = {"reference_downscale_factor": "2", "base_model_family": "ltx", "base_model_version": "2.3"}
BLOCK = "transformer_blocks.0."
VIDEO = [f"{BLOCK}{name}" for name in ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ff.net.0.proj", "ff.net.2")]
AUDIO = [f"{BLOCK}{name}" for name in ("audio_attn1.to_v", "audio_to_video_attn.to_q", "audio_ff.net.2")]
TOP_LEVEL = ["patchify_proj", "adaln_single.linear", "audio_adaln_single.linear", "av_ca_a2v_gate_adaln_single.linear"]
QUERY = "diffusion_model.transformer_blocks.0.attn1.to_q"
NO_WEIGHTS = {f"{QUERY}.lora_A.weight": None, f"{QUERY}.lora_B.weight": None}
BARE_QUERY = QUERY.removeprefix("diffusion_model.")

PUBLISHED = BaseSpec(  # a few linears with as many inputs as in the published models
    "ltx", "2.3", None, {name: (8, 2048 if name in AUDIO else 4096) for name in VIDEO + AUDIO + TOP_LEVEL}
)


def adapter_for(spec: BaseSpec, names: list[str], rank: int = 3, seed: int = 0, **metadata: str) -> Adapter:
    """A random adapter for linears of a base."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in names:
        out_features, in_features = spec.linears[name]
        a, b = torch.randn(rank, in_features, generator=generator), torch.randn(out_features, rank, generator=generator)
        weights[name] = (a, 0.1 * b)
    return Adapter(weights, {**LTX, **spec.metadata, **metadata})


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors with the keys of our format."""
    pairs = adapter.weights.items()
    a = {f"diffusion_model.{name}.lora_A.weight": a for name, (a, _) in pairs}
    return a | {f"diffusion_model.{name}.lora_B.weight": b for name, (_, b) in pairs}


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    return {name: b @ a for name, (a, b) in adapter.weights.items()}


def same(adapter: Adapter, expected: dict[str, Tensor], tolerance: float = 1e-6) -> bool:
    """Whether the product B A of every linear is as expected, within `tolerance` of the largest entry."""
    assert adapter.weights.keys() == expected.keys()
    return all(relative_error(b @ a, expected[name]) < tolerance for name, (a, b) in adapter.weights.items())


def relative_error(result: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected entry."""
    return float((result.float() - expected.float()).abs().max() / expected.float().abs().max())


def write(path: Path, changes: dict[str, Tensor | None], metadata: dict[str, str] | None = None) -> Path:
    """A small adapter file with some keys changed or (None) removed."""
    tensors: dict[str, Tensor | None] = {
        f"{QUERY}.lora_A.weight": torch.ones(2, 4),
        f"{QUERY}.lora_B.weight": torch.ones(4, 2),
        **changes,
    }
    save_file({key: t for key, t in tensors.items() if t is not None}, path, LTX if metadata is None else metadata)
    return path


def kohya(expected: Adapter, path: Path) -> Adapter:
    """lora_down, lora_up and alpha = rank / 2: the weight difference is half of `expected`."""
    tensors = {}
    for name, (a, b) in expected.weights.items():
        flat = "lora_unet_" + name.replace(".", "_")
        alpha = torch.tensor(a.shape[0] / 2)
        tensors |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b, f"{flat}.alpha": alpha}
    save_file(tensors, path, {"ss_reference_downscale_factor": "2", "ss_network_alpha": "1.5"})
    return Adapter({name: (a, b / 2) for name, (a, b) in expected.weights.items()}, expected.metadata)
