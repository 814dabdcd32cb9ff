"""A latent upsampler with random weights in the layout of the published files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.synthetic.layout import Spec
from scripts.synthetic.writer import write

CONFIG: dict[str, Any] = {  # of the published x2 file of 2.3; the file of 2.0 has rational_resampler
    "_class_name": "LatentUpsampler",
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
    "rational_resampler": False,
}


def convolution(name: str, inputs: int, outputs: int, dims: int) -> Iterator[Spec]:
    """A convolution of kernel size 3 whose output has the variance of its input."""
    yield Spec(f"{name}.weight", (outputs, inputs, *(3,) * dims), 1 / math.sqrt(inputs * 3**dims), origin=name)
    yield Spec(f"{name}.bias", (outputs,), 0.1, origin=f"{name}.bias")


def norm(name: str, channels: int) -> Iterator[Spec]:
    yield Spec(f"{name}.weight", (channels,), 0.1, 1.0, origin=name)
    yield Spec(f"{name}.bias", (channels,), 0.1, origin=f"{name}.bias")


def specs(config: dict[str, Any]) -> Iterator[Spec]:
    """Every tensor of an upsampler of this config."""
    channels, width, dims = config["in_channels"], config["mid_channels"], config["dims"]
    yield from convolution("initial_conv", channels, width, dims)
    yield from norm("initial_norm", width)
    for stage in ("res_blocks", "post_upsample_res_blocks"):
        for i in range(config["num_blocks_per_stage"]):
            for k in (1, 2):
                yield from convolution(f"{stage}.{i}.conv{k}", width, width, dims)
                yield from norm(f"{stage}.{i}.norm{k}", width)
    if config["rational_resampler"]:
        yield from convolution("upsampler.conv", width, 4 * width, 2)
        yield Spec("upsampler.blur_down.kernel", (1, 1, 5, 5), 0.0, 1 / 25, origin="kernel")
    else:
        yield from convolution("upsampler.0", width, 4 * width, 2)
    yield from convolution("final_conv", width, channels, dims)


def write_upsampler(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write an upsampler of the published config with `changes`."""
    config = CONFIG | changes
    write(path, list(specs(config)), {"config": json.dumps(config)}, seed)
    return path
