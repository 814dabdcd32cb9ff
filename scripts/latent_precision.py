"""What storing latents in fp16, bf16 or fp32 costs: python -m scripts.latent_precision [--windows 16] [settings]

Encodes windows of the clips in fp32, rounds their latents to each dtype and decodes them again. Prints one JSON line
per dtype and stream (target, reference):

    error           rms of the rounding error over the standard deviation of the latents
    round_trip_psnr dB of the clips decoded from the rounded latents against the clips
    decoded_psnr    dB of the same against the clips decoded from fp32; null if they are equal
    largest, room   the largest latent, and how often it fits into the largest number of the dtype
    mb              MB per window

Settings are those of data_prep, e.g. conf=canny model=ltx2_3 model.checkpoint=... data.clips=... data.frames=25.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from data_prep.clips.clip_list import list_clips
from data_prep.engines.base import Failure
from data_prep.measure import measure_unit
from data_prep.preview_clips import choose_windows
from data_prep.select_clips import select_clips
from data_prep.write_shards import WorkUnit
from iclora_train.config import Config, to_config
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.core.device import default_device
from iclora_train.core.types import Pair
from iclora_train.ltx2.base_model import open_base
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.pixels import from_uint8

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pairs_of(config: Config, count: int) -> list[Pair]:
    """Pairs of `count` windows of different clips, as data_prep makes them."""
    clips = list_clips(config.data.clips, config.data.heldout_fraction)
    usable, _ = select_clips(clips[:count], config)
    by_id = {probed.clip.id: probed.clip for probed in usable}
    pairs = []
    for window in choose_windows(usable, config.data, count):
        unit_pairs = measure_unit(WorkUnit(by_id[window.clip], [window], config))
        if isinstance(unit_pairs, Failure):
            raise SystemExit(f"error: {unit_pairs.reason}")
        pairs += [measured.pair for measured in unit_pairs]
    return pairs


@torch.inference_mode()
def compare(vae: VideoVAE, clips: list[np.ndarray], stream: str) -> Iterator[dict[str, Any]]:
    """One row per dtype about the latents of uint8 clips (F,H,W,3) of one size."""
    device = default_device()
    videos = [from_uint8(torch.from_numpy(clip)[None].to(device)) for clip in clips]  # (1,3,F,H,W) in [-1, 1]
    latents = [vae.encode(video) for video in videos]
    spread = float(torch.cat([latent.flatten() for latent in latents]).std())
    largest = max(float(latent.abs().max()) for latent in latents)
    exact = [vae.decode(latent) for latent in latents]
    for name, dtype in DTYPES.items():
        rounded = [latent.to(dtype).float() for latent in latents]
        decoded = exact if dtype == torch.float32 else [vae.decode(latent) for latent in rounded]
        yield {
            "stream": stream,
            "dtype": name,
            "error": float(f"{_rms(rounded, latents) / spread:.3g}"),
            "round_trip_psnr": _psnr(decoded, videos),
            "decoded_psnr": _psnr(decoded, exact),
            "deviation": round(spread, 3),
            "largest": round(largest, 2),
            "room": float(f"{torch.finfo(dtype).max / largest:.2g}"),
            "mb": round(latents[0].numel() * dtype.itemsize / 1e6, 4),
        }


def _rms(values: list[Tensor], others: list[Tensor]) -> float:
    """Root mean square of the difference over all values."""
    squares = [((a - b) ** 2).mean() for a, b in zip(values, others, strict=True)]
    return math.sqrt(float(torch.stack(squares).mean()))


def _psnr(videos: list[Tensor], others: list[Tensor]) -> float | None:
    """dB over all clips, whose values lie in [-1, 1]; None if they are equal."""
    clamped = [[video.clamp(-1, 1) for video in group] for group in (videos, others)]
    error = _rms(*clamped)
    return round(20 * math.log10(2 / error), 2) if error else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("settings", nargs="*", help="settings of data_prep; conf=deblur if no conf is named")
    args = parser.parse_intermixed_args()
    settings = args.settings if any(word.startswith("conf=") for word in args.settings) else ["conf=deblur"]
    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = to_config(compose("prep", [*settings, *(w for w in args.settings if w not in settings)]))
    vae = open_base(config.model).vae().to(default_device())
    pairs = pairs_of(config, args.windows)
    for stream, clips in (("target", [p.target for p in pairs]), ("reference", [p.references[0] for p in pairs])):
        for row in compare(vae, clips, stream):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
