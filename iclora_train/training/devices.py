"""The device of each rank (trainer.accelerator, trainer.devices)."""

from __future__ import annotations

import torch

from iclora_train.config import Config, require
from iclora_train.core.device import device_from
from iclora_train.core.local_ranks import listed_gpus
from iclora_train.core.ranks import local_rank


def require_devices(config: Config, world_size: int, on_this_node: int) -> None:
    """ConfigError if trainer.devices names another number than the launcher has started on this node."""
    devices = config.trainer.get("devices", 1)
    expected = len(listed_gpus(devices)) or devices
    require(
        world_size == 1 or not str(expected).isdecimal() or int(expected) in (1, on_this_node),
        f"trainer.devices={devices}, but the launcher has started {on_this_node} processes on this node: leave it out",
    )


def process_device(config: Config) -> torch.device:
    """The device of this rank (trainer.accelerator, trainer.devices). ConfigError when the GPU is missing.

    The local rank is the number of the GPU, among those that trainer.devices lists if it is a list. Where the launcher
    shows each process a single GPU, it is that one.
    """
    device = device_from("trainer.accelerator", config.trainer.get("accelerator", "auto"), "trainer=auto")
    if device.type == "cpu":
        return device
    listed = listed_gpus(config.trainer.get("devices"))
    number, visible = local_rank(), torch.cuda.device_count()
    require(not listed or number < len(listed), f"trainer.devices={listed} has no GPU for local rank {number}")
    gpu = listed[number] if listed else number if visible > 1 else 0
    require(gpu < visible, f"local rank {number} has no GPU: {visible} are visible here; start one process per GPU")
    return torch.device("cuda", gpu)
