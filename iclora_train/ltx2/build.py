"""Builds the frozen transformer from settings: precision, offload, compilation. Adapter weights are always fp32."""

from __future__ import annotations

import torch

from iclora_train.config import Model, require
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.activation_offload import ActivationOffload
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.compile import compile_blocks, set_cuda_graphs


def has_native_bf16() -> bool:
    """Whether this machine has bf16 matmuls in hardware. If not, fp32 is faster."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def base_dtype(precision: str) -> torch.dtype:
    """The dtype of activations for model.precision (auto, fp32, bf16 or fp8) on this machine."""
    if precision in ("auto", "fp8"):
        return torch.bfloat16 if has_native_bf16() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def build_transformer(base: BaseModel, model: Model, device: torch.device | str, audio: bool = False) -> Transformer:
    """The base's frozen transformer in `base_dtype`, with fp8 weights if model.precision=fp8, and with the weights of
    model.weight_offload blocks in host memory. ConfigError for weight offload without a GPU.

    audio: with the audio half, 5.9 of 19 billion parameters in published checkpoints. ConfigError if the base has none.
    """
    on_gpu = torch.device(device).type == "cuda"
    require(
        on_gpu or not model.weight_offload,
        f"model.weight_offload={model.weight_offload} needs a GPU: set model.weight_offload=0 on a CPU",
    )
    return base.transformer(base_dtype(model.precision), device, model.precision == "fp8", model.weight_offload, audio)


def vae_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype in which the VAE decodes sampled clips: on a GPU the transformer's, on a CPU fp32."""
    return base_dtype(precision) if device.type == "cuda" else torch.float32


def compile_from_settings(transformer: Transformer, base: BaseModel, model: Model) -> None:
    """Compile the blocks if model.compile is true, or is null and a real base is on a GPU (`compile_blocks`).

    Attach adapters before. model.activation_budget=null starts with a budget of 1, or of 0 with
    model.activation_checkpointing; `memory_search.plan_memory` replaces that budget later.
    """
    by_default = transformer.patchify_proj.weight.is_cuda and not base.embedded
    if by_default if model.compile is None else model.compile:
        default_budget = 0.0 if model.activation_checkpointing else 1.0
        compile_blocks(transformer, default_budget if model.activation_budget is None else model.activation_budget)
        runner = runner_of(transformer)
        runner.activation_checkpointing = False
        runner.activation_offload = ActivationOffload(model.activation_offload) if model.activation_offload else None
        set_cuda_graphs(transformer, model.cuda_graphs)
