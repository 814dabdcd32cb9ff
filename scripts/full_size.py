"""Test a checkpoint at full size on this machine: python -m scripts.full_size CHECKPOINT [--steps 50] ...

Loads the transformer, trains an adapter on one fixed batch (same noise, same noise level) with the project's training
code, exports the adapter and reads it back; encodes captions; encodes and decodes a long clip in tiles. Prints one JSON
line per part: seconds, GiB, losses. Random weights suffice: `python -m scripts.synthetic_checkpoint` writes them.
"""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import torch

from iclora_train.adapters import lora
from iclora_train.config import Config, Flow, Lora, Model, Optim, Task
from iclora_train.core.device import default_device, synced_time
from iclora_train.data.batch import Batch
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import TransformerConfig
from iclora_train.training.dry_run import optimizer_step
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB


class HostPeak:
    """Inside the `with`, samples this process's anonymous memory (no page cache); `gib` is its largest rise."""

    def __enter__(self) -> HostPeak:
        self.start, self.gib, self.stop = anonymous_gib(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _sample(self) -> None:
        while True:
            self.gib = max(self.gib, anonymous_gib() - self.start)
            if self.stop.wait(0.01):
                return


def anonymous_gib() -> float:
    """Anonymous memory of this process now, GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


def device_gib(device: torch.device) -> float:
    """Peak memory of the device since the last call, GiB; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_reserved(device) / GIB
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def report(part: str, **values: Any) -> None:
    """Print one JSON line."""
    print(
        json.dumps({"part": part} | {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}),
        flush=True,
    )


def fixed_batch(base: BaseModel, size: tuple[int, int, int], device: torch.device) -> Batch:
    """A clip of smooth random latents, a dimmed copy of it as the reference, and random text features."""
    generator = torch.Generator().manual_seed(0)
    channels = base.geometry.channels
    grid = base.geometry.latent_size(*size)
    coarse = torch.randn(1, channels, 2, 3, 3, generator=generator)
    target = torch.nn.functional.interpolate(coarse, grid, mode="trilinear").to(device)
    width = TransformerConfig.from_metadata(base.config["transformer"]).text_width
    text = torch.randn(1, 1024, width, generator=generator).to(device)
    fps = torch.tensor([24.0])
    return Batch(target, [0.5 * target], text, fps, keys=["fixed"])


def train(base: BaseModel, args: argparse.Namespace, device: torch.device) -> None:
    """Load the transformer, overfit an adapter, export it, read it back."""
    model = Model(
        name="full", checkpoint=args.checkpoint, precision="bf16" if device.type == "cuda" else "fp32",
        activation_checkpointing=not args.keep_all, lora=Lora(rank=args.rank),
    )  # fmt: skip
    optim = Optim(optimizer={"_target_": "torch.optim.AdamW", "lr": args.rate})
    config = Config(task=Task(name="full", maker="given"), model=model, flow=Flow(first_frame_p=0.0), optim=optim)
    begin = synced_time(device)
    with HostPeak() as host:
        module = ICLoRA(config, base, device)
    count = sum(p.numel() for p in module.transformer.parameters())
    report("load", seconds=synced_time(device) - begin, parameters=count, host_gib=host.gib, gib=device_gib(device))
    batch, optimizer = fixed_batch(base, (args.frames, args.height, args.width), device), module.optimizer()
    losses, seconds = [], []
    for _ in range(args.steps):
        begin = synced_time(device)
        losses.append(optimizer_step(module, optimizer, batch, 0).item())
        seconds.append(synced_time(device) - begin)
    tokens = 2 * batch.target[0, 0].numel()
    steady = sorted(seconds[min(3, len(seconds) - 1) :])
    report(
        "train", steps=args.steps, tokens=tokens, seconds_per_step=steady[len(steady) // 2], first_step=seconds[0],
        first_loss=losses[0], last_loss=losses[-1], gib=device_gib(device),
    )  # fmt: skip
    path = args.out / "adapter.safetensors"
    weights = lora.adapter_weights(module.transformer)
    lora.save(path, lora.Adapter(weights, {"reference_downscale_factor": "1", "base_model_version": base.version}))
    reread = lora.read(path).weights
    equal = weights.keys() == reread.keys() and all(
        torch.equal(a, b.to(a)) for key in weights for a, b in zip(weights[key], reread[key], strict=True)
    )
    report("export", equal=equal, megabytes=path.stat().st_size / 1e6)


@torch.inference_mode()
def text(base: BaseModel, device: torch.device) -> None:
    """Load the text encoder and encode four captions."""
    begin = synced_time(device)
    with HostPeak() as host:
        encoder = base.text(device=device)
    count = sum(p.numel() for p in encoder.parameters())
    report(
        "text load",
        seconds=synced_time(device) - begin,
        parameters=count,
        host_gib=host.gib,
        gib=device_gib(device),
    )
    begin = synced_time(device)
    features = encoder.encode(["a red car drives along a coast road at dusk"] * 4)
    finite = bool(features.isfinite().all())
    report(
        "text encode",
        seconds=synced_time(device) - begin,
        shape=list(features.shape),
        gib=device_gib(device),
        finite=finite,
    )


@torch.inference_mode()
def vae(base: BaseModel, size: str, device: torch.device) -> None:
    """Encode and decode random pixels of WxHxF."""
    width, height, frames = map(int, size.split("x"))
    model = base.vae().to(device)
    video = torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    device_gib(device)
    begin = synced_time(device)
    latent = model.encode(video)
    report("vae encode", size=size, seconds=synced_time(device) - begin, gib=device_gib(device))
    begin = synced_time(device)
    pixels = model.decode(latent)
    report(
        "vae decode",
        size=size,
        seconds=synced_time(device) - begin,
        gib=device_gib(device),
        finite=bool(pixels.isfinite().all()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--out", type=Path, default=Path("full_size"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=544)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--keep-all", action="store_true", help="no activation checkpointing")
    parser.add_argument("--vae", metavar="WxHxF", help="e.g. 1280x704x121")
    parser.add_argument("--text-encoder", metavar="DIR", help="also load this Gemma and encode captions")
    args = parser.parse_args()
    device = default_device()
    args.out.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # allocate the driver's host memory before loading is measured
    base = BaseModel.open(args.checkpoint, text_encoder=args.text_encoder)
    if args.steps:
        train(base, args, device)
    if args.text_encoder:
        text(base, device)
    if args.vae:
        vae(base, args.vae, device)


if __name__ == "__main__":
    main()
