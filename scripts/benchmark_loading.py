"""Times the DataLoader of training by number of workers: python -m scripts.benchmark_loading [--step-seconds 1.5]

Writes latent shards of official size with random contents to a temporary folder and reads them with the DataLoader of
training. The files are in the page cache, because they have just been written: a slower disk adds its own time. "needs"
is the time of a batch over the time of a step. Without workers a step becomes longer by that share; with workers it
must stay below 100 %. "waits" is the time for which a step waits for its batch. A step is simulated: the host sleeps
for --step-seconds between batches. With a GPU the batches are copied to it as in training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from iclora_train.core.console import make_console
from iclora_train.core.types import Geometry, LatentPair, VideoShape
from iclora_train.data.datamodule import LatentDataModule
from iclora_train.data.prefetch import Prefetch
from iclora_train.data.shard_sample import Members, pack_latents
from iclora_train.data.shards import ShardSet, ShardWriter

LTX = Geometry(channels=128, spatial=32, temporal=8)
TEXT = (1024, 4096)  # tokens and channels of a caption's features
WARM_UP = 4  # batches before timing, during which the workers start
STEPS = 6  # steps whose waits are timed


def write(folder: Path, shape: VideoShape, clips: int) -> ShardSet:
    """A shard set of train clips, each with a reference of the same size."""
    f, h, w = LTX.latent_size(shape.frames, shape.height, shape.width)

    def samples() -> Iterator[Members]:
        for i in range(clips):
            target, reference = torch.randn(2, LTX.channels, f, h, w)
            pair = LatentPair(f"clip{i:04d}", target, (reference,), torch.randn(TEXT), shape.fps, "a caption")
            yield pack_latents(pair, shape, "random", {})

    writer = ShardWriter(folder, "latents", {"base": {"parts": {}}, "settings": {}})
    writer.write("train-000000.tar", samples())
    writer.finish(["train-000000.tar"])
    return ShardSet.open(folder)


def measure(data: LatentDataModule, batches: int, step: float) -> tuple[float, float]:
    """Seconds per batch without steps in between, and median seconds that a step waits for its batch."""
    gpu = torch.cuda.is_available()
    loader = data.loader(pinned=gpu)
    loaded = iter(Prefetch(loader, torch.device("cuda")) if gpu else loader)
    for _ in range(WARM_UP):
        next(loaded)
    begin = time.perf_counter()
    for _ in range(batches):
        next(loaded)
    per_batch = (time.perf_counter() - begin) / batches
    waits = []
    for _ in range(STEPS):
        time.sleep(step)
        begin = time.perf_counter()
        next(loaded)
        waits.append(time.perf_counter() - begin)
    return per_batch, statistics.median(waits)


def main() -> None:
    """Write the shards, measure with each number of workers, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[960, 544, 89], metavar=("WIDTH", "HEIGHT", "FRAMES"))
    parser.add_argument("--clips", type=int, default=32, help="clips in the set")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--batches", type=int, default=100, help="timed batches")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step-seconds", type=float, default=1.5)
    args = parser.parse_args()
    width, height, frames = args.size
    with tempfile.TemporaryDirectory() as folder:
        shards = write(Path(folder), VideoShape(frames, height, width, 24.0), args.clips)
        make_console(width=120).print(table(shards, args))


def table(shards: ShardSet, args: argparse.Namespace) -> Table:
    """The results, one row per number of workers."""
    size = sum(sample.size for sample in shards.samples) / len(shards) / 1e6  # MB of a clip
    results = Table("workers", "clips/s", "MB/s", "ms per batch", "needs", "waits", caption_justify="left")
    results.title = f"{shards.samples[0].bucket}, {size:.1f} MB per clip, {args.batch_size} clips per batch"
    results.caption = f"page cache warm; steps of {args.step_seconds:g} s"
    for workers in args.workers:
        data = LatentDataModule(shards.folder, args.batch_size, workers=workers)
        per_batch, waits = measure(data, args.batches, args.step_seconds)
        clips = args.batch_size / per_batch
        share = f"loader needs {100 * per_batch / args.step_seconds:.1f} % of a step"
        row: list[Any] = [workers, f"{clips:.0f}", f"{clips * size:.0f}", f"{1e3 * per_batch:.1f}", share]
        results.add_row(*map(str, row), f"{1e3 * waits:.1f} ms")
    return results


if __name__ == "__main__":
    main()
