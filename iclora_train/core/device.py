"""The device of this process: a GPU if there is one, unless a setting says otherwise; copies to it, and its time."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from iclora_train.config import require


def default_device() -> torch.device:
    """The current CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_from(key: str, value: str, remedy: str) -> torch.device:
    """The device that the setting `key` selects: `auto`, `cpu`, or `gpu`/`cuda`.

    ConfigError when a GPU is requested and none is available. remedy: the setting to use instead.
    """
    if value in ("gpu", "cuda"):
        require(torch.cuda.is_available(), f"{key}={value}, but this machine has no CUDA device: set {remedy}")
    return torch.device("cpu") if value == "cpu" else default_device()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device. On CUDA the copy starts from pinned memory, so that the host does not wait."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # expanded tensors cannot be pinned


def synced_time(device: torch.device) -> float:
    """Time in seconds after all queued work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
