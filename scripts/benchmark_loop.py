"""Times a Trainer whose host waits for the GPU in every batch: python -m scripts.benchmark_loop [--size tiny]

Lightning 2.6 with several processes sends in every batch whether a process received SIGTERM, and reads the answer: the
host waits for the GPU before it launches the next step. This program trains with the Trainer of training, on random
clips and in one process, in turn with and without that wait, and prints milliseconds per step of each and their ratio.

--size full is LTX-2.3. A small model shows the upper end of the cost: there the host is slower than the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in the commands; before torch is imported

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from iclora_train.config import Model
from iclora_train.core.console import make_console
from iclora_train.core.device import default_device, synced_time
from iclora_train.data.batch import Batch
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.train import quiet_lightning
from iclora_train.training.callbacks import MetricsRecorder
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.preemption import Preemption
from scripts.benchmark_step import SHAPES, Variant, batch_of, module_of
from scripts.synthetic.random_base import RandomBase

WARM_UP = 10  # steps before timing, in which blocks are compiled and CUDA graphs captured


class Waits(Callback):
    """Makes the host wait before every batch as Lightning does."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Send a flag through the process group and read it."""
        flag = torch.tensor([0], device=module.device)
        torch.distributed.broadcast(flag, src=0)
        flag.item()


class Clock(Callback):
    """Notes the time of the first and of the last step after WARM_UP."""

    def __init__(self) -> None:
        self.begin = self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Start the clock."""
        if trainer.global_step == WARM_UP:
            self.begin = synced_time(module.device)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop the clock."""
        self.seconds = (synced_time(module.device) - self.begin) / (trainer.max_steps - WARM_UP)


def seconds_per_step(module: ICLoRA, batch: Batch, steps: int, waits: bool) -> float:
    """Seconds of an optimizer step in a Trainer. The batch is on the device already. The module cannot be used again,
    because Lightning moves it to the CPU at the end."""
    clock, preemption = Clock(), Preemption(make_console(stderr=True))
    trainer = Trainer(
        accelerator="gpu" if batch.device.type == "cuda" else "cpu",
        precision="32-true" if module.config.model.precision == "fp32" else "bf16-mixed",
        devices=1,
        max_steps=WARM_UP + steps,
        num_sanity_val_steps=0,
        callbacks=[preemption, MetricsRecorder([], 0, None, preemption, 10), *([Waits()] if waits else []), clock],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader([batch] * (WARM_UP + steps), batch_size=None))
    return clock.seconds


def base_of(size: str) -> BaseModel:
    """nano, or a base with random weights."""
    return open_base(Model(name="nano", checkpoint="nano")) if size == "nano" else RandomBase("2.3", size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=["tiny", "nano", "full"])
    parser.add_argument("--shape", default="S", choices=list(SHAPES))
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp8", "fp32"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    quiet_lightning()
    device = default_device()
    base = base_of(args.size)
    batch = batch_of(base, SHAPES[args.shape], device)
    variant = Variant(args.precision, args.precision, activation_budget=1.0)
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{Path(folder)}/ranks", rank=0, world_size=1)
        times: dict[bool, list[float]] = {True: [], False: []}
        try:
            for waits in [True, False] * args.repeats:
                module = module_of(base, variant, 32, device)
                times[waits].append(seconds_per_step(module, batch, args.steps, waits))
        finally:
            torch.distributed.destroy_process_group()
    row = {"size": args.size, "shape": args.shape, "precision": args.precision}
    row |= {f"ms, host {'waits' if waits else 'goes on'}": [round(1e3 * s, 3) for s in times[waits]] for waits in times}
    print(json.dumps(row | {"ratio": round(median(times[True]) / median(times[False]), 3)}), flush=True)


if __name__ == "__main__":
    main()
