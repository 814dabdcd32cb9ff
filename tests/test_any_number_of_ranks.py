"""The same clips, the same random values and the same adapter on 1, 2 and 4 ranks, also when a run goes on with another
number of ranks. Real processes on a CPU, connected by gloo."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from iclora_train import train as command
from iclora_train.core.console import make_console
from iclora_train.core.process_group import process_group
from iclora_train.core.ranks import SINGLE
from iclora_train.core.types import LatentPair, VideoShape
from iclora_train.data.batch import Batch
from iclora_train.data.datamodule import LatentDataModule
from iclora_train.data.shard_sample import pack_latents
from iclora_train.data.shards import ShardSet, ShardWriter
from iclora_train.diffusion.loss import ClipLosses
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.train import quiet_lightning
from iclora_train.training.lightning_module import ICLoRA
from tests.command import read_csv
from tests.tiny import CHANNELS, SETTINGS, TEXT, composed, write_tiny_base

pytestmark = pytest.mark.slow

STEPS, SAVED = 6, 3  # three epochs; the step with a checkpoint
BATCHES_PER_STEP = 8
RANKS = (1, 2, 4)
CLIPS = {"32x32x5": 40, "64x32x5": 5}  # in batches of 3 and 1: 2 steps an epoch, one of them of both buckets
OVERRIDES = [
    *("conf=deblur", *SETTINGS, "data.tokens_per_batch=192", "model.lora.rank=2", "trainer.accelerator=cpu", "seed=5"),
    *("optim=adamw", "optim.optimizer.lr=0.01", "optim.ema=0.9", "optim.clip_norm=0.05", "optim.warmup_steps=2"),
    *("optim.decay=cosine", "optim.decay_from=0.3", f"trainer.max_steps={STEPS}"),
    *("flow.reference_p=0.5", "flow.first_frame_p=0.3", "flow.attention_strength_p=0.5", "flow.region_mask_p=0.5"),
    *("flow.locality=0.5", "logger=csv", "validation.loss_every=0", "validation.clips_every=0"),
    f"validation.checkpoint_every={SAVED}",
]


class DoubleICLoRA(ICLoRA):
    """The training of `ICLoRA`, with weights, latents and optimizer in fp64."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.double()
        assert self.average is not None
        self.average = [value.double() for value in self.average]

    def losses(self, batch: Batch, generator: Generator) -> ClipLosses:
        return super().losses(batch.map_tensors(Tensor.double), generator)


@dataclass
class Run:
    """What a run of `ranks` ranks left in its folder."""

    folder: Path
    ranks: int
    resumed: Path | None = None
    adapter: list[Tensor] = field(default_factory=list)
    average: list[Tensor] = field(default_factory=list)

    def read(self) -> Run:
        self.adapter, self.average = torch.load(self.folder / "result.pt", weights_only=True)
        return self

    def rows(self) -> list[dict[str, str]]:
        return read_csv(self.folder / "metrics.csv")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"step-{SAVED:08d}.ckpt"


def write_shards(folder: Path, base: Path) -> None:
    """Write clips of noise in the buckets of CLIPS."""
    model, generator = BaseModel.open(str(base)), torch.Generator().manual_seed(0)
    writer, samples = ShardWriter(folder, "latents", {"base": {}, "settings": {}}), []
    for bucket, count in CLIPS.items():
        width, height, frames = map(int, bucket.split("x"))
        size = model.geometry.latent_size(frames, height, width)
        for i in range(count):
            target = torch.randn(CHANNELS, *size, generator=generator)
            text = torch.randn(TEXT["tokens"], TEXT["output"], generator=generator)
            pair = LatentPair(f"{bucket}-{i}", target, (0.5 * target,), text, 25.0)
            samples.append(pack_latents(pair, VideoShape(frames, height, width, 25.0), "a", {}))
    writer.write("train-000000.tar", samples)
    writer.write_empty_text(torch.zeros(TEXT["tokens"], TEXT["output"]))
    writer.finish(["train-000000.tar"])


def train_rank(root: Path, run: Run, rank: int, port: int) -> None:
    """Train as rank `rank`, with the environment that torchrun sets."""
    ranks = {"WORLD_SIZE": run.ranks, "LOCAL_WORLD_SIZE": run.ranks, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in {**SINGLE, **ranks, "MASTER_PORT": port}.items()})
    torch.set_num_threads(1)
    quiet_lightning()
    accumulated = f"trainer.accumulate_grad_batches={BATCHES_PER_STEP // run.ranks}"
    config = composed(*OVERRIDES, f"model.checkpoint={root}/base", accumulated)
    command.ICLoRA = DoubleICLoRA  # type: ignore[misc]
    with process_group(torch.device("cpu")):
        base, shards = open_base(config.model), ShardSet.open(root / "latents")
        module, trainer = command.build(config, base, shards, run.folder, make_console(file=io.StringIO()))
        data = LatentDataModule(shards.folder, 1, config.data.tokens_per_batch, config.seed)
        trainer.fit(module, data, ckpt_path=run.resumed, weights_only=True)
    if rank == 0:
        torch.save(([p.detach() for p in module.adapter], module.average), run.folder / "result.pt")


def train(root: Path, name: str, ranks: int, resumed: Path | None = None) -> Run:
    run = Run(root / name, ranks, resumed)
    run.folder.mkdir()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=train_rank, args=(root, run, rank, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * ranks
    return run.read()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_shards(folder / "latents", write_tiny_base(folder / "base"))
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[int, Run]:
    """A run of each number of ranks; the metrics of a step are the same for all."""
    return {ranks: train(root, f"ranks{ranks}", ranks) for ranks in RANKS}


def assert_same(run: Run, expected: Run) -> None:
    """Rows of metrics are compared from the step on that the run began with. They are rounded to fp32."""
    for values, others in ((run.adapter, expected.adapter), (run.average, expected.average)):
        assert_close(values, others, rtol=0, atol=1e-10)
    rows, others = run.rows(), expected.rows()[SAVED if run.resumed else 0 :]
    for row, other in zip(rows, others, strict=True):
        assert {name: float(value or 0) for name, value in row.items()} == pytest.approx(
            {name: float(value or 0) for name, value in other.items()}, rel=1e-6
        )


def test_any_number_of_ranks_trains_the_same_adapter(root: Path, runs: dict[int, Run]) -> None:
    start = train_start(root)
    assert max((a - b).abs().max() for a, b in zip(runs[1].adapter, start, strict=True)) > 0.01
    for ranks in RANKS[1:]:
        assert_same(runs[ranks], runs[1])


def train_start(root: Path) -> list[Tensor]:
    config = composed(*OVERRIDES, f"model.checkpoint={root}/base")
    return [p.detach().double() for p in ICLoRA(config, open_base(config.model)).adapter]


@pytest.mark.parametrize(("begun", "resumed"), [(1, 4), (4, 1), (4, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(root: Path, runs: dict[int, Run], begun: int, resumed: int) -> None:
    run = train(root, f"{begun}to{resumed}", resumed, runs[begun].checkpoint)
    assert_same(run, runs[1])
    assert [path.name for path in run.checkpoint.parent.iterdir()] == [f"step-{STEPS:08d}.ckpt"]
