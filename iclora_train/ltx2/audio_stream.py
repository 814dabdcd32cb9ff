"""Whether the audio stream can be sampled beside the video's (`model.audio`): what is in the way, in words."""

from __future__ import annotations

import torch

from iclora_train.config import Model
from iclora_train.ltx2.audio.codec import has_audio
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import base_dtype

RESERVE = 4 << 30  # bytes that weights leave free on a GPU at least, for the activations of a short clip
NO_AUDIO_HALF = "the checkpoint has no audio half; an official one has it"


def checkpoint_obstacle(base: BaseModel) -> str | None:
    """Why the audio stream of this checkpoint cannot be sampled; None if it can."""
    if not base.has_audio_half:
        return NO_AUDIO_HALF
    if not has_audio(base.checkpoint):
        return "the checkpoint has no audio VAE or vocoder: set model.audio_vae to their file"
    return None


def memory_obstacle(base: BaseModel, model: Model, free: int) -> str | None:
    """Why model.audio=auto leaves the audio stream out on a GPU with `free` bytes: its weights take the room that the
    video stream has without them."""
    needed = weight_bytes(base, model, audio=True) + RESERVE
    if needed <= free or weight_bytes(base, model, audio=False) + RESERVE > free:
        return None
    return (
        f"with its weights {needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free: set model.audio=on "
        "to try, model.precision=fp8 or model.weight_offload"
    )


def device_obstacle(base: BaseModel, model: Model, device: torch.device) -> str | None:
    """`memory_obstacle` on this device as it is now; None on a CPU."""
    return memory_obstacle(base, model, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def weight_bytes(base: BaseModel, model: Model, audio: bool) -> int:
    """Bytes of the transformer's weights on the GPU: without the blocks of model.weight_offload; in fp8 a byte per
    weight of a block's linear."""
    blocks = base.config["transformer"]["num_layers"]
    on_gpu = max(blocks - model.weight_offload, 0) / blocks
    total, full = 0.0, base_dtype(model.precision).itemsize
    for name, shape in base.checkpoint.transformer(audio).shapes.items():
        in_block = name.startswith("transformer_blocks.")
        size = 1 if in_block and len(shape) == 2 and model.precision == "fp8" else full
        total += torch.Size(shape).numel() * size * (on_gpu if in_block else 1)
    return round(total)


def streams_in_words(obstacle: str | None) -> str:
    """`video and audio streams`, or `the video stream alone` with what is in the way of the other."""
    return "video and audio streams" if obstacle is None else f"the video stream alone ({obstacle})"
