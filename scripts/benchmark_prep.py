"""Measure clips per second of data_prep, by part and in total: python -m scripts.benchmark_prep [--task deblur] [...]

Parts: decode (frames of the windows), maker (references from decoded frames), pairs (decode, maker, crop and lossless
mp4s, as in a worker), encode (pair shards to latent shards, with reading and writing), total (clips to latents with
`--workers`, without probing the clips), vae (batches as data_prep encodes them, against one clip at a time). `overlap`
is the total rate over the rate of the slowest part: pairs (times workers, at most the number of cores) or encode. It is
1 if nothing else costs time. Prints one JSON line per measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from hydra import compose, initialize_config_dir

from data_prep.clips.clip_list import clips_of
from data_prep.clips.windows import train_windows, window_seed
from data_prep.encode_latents import LatentEncoder
from data_prep.engines.base import Failure
from data_prep.engines.local import create_engine
from data_prep.makers import build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, make_reference, read_windows
from data_prep.pipeline import SHARD_CLIPS, fingerprints
from data_prep.select_clips import select_clips
from data_prep.write_shards import Job, ShardPlan, WorkUnit, process_unit, split_into_units, write_shards
from iclora_train.config import Config, to_config
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import open_base
from iclora_train.ltx2.text_features import TextFeatures


def job_of(config: Config) -> Job:
    """The job of data_prep for the train clips."""
    base = open_base(config.model)
    clips = clips_of(config)
    usable, _ = select_clips([clip for clip in clips if clip.split == "train"], config)
    windows = train_windows(usable, config.data)
    plan: ShardPlan = {
        f"train-{i // SHARD_CLIPS:06d}.tar": windows[i : i + SHARD_CLIPS] for i in range(0, len(windows), SHARD_CLIPS)
    }
    by_id = {probed.clip.id: probed.clip for probed in usable}
    return Job(Path(config.data.root), fingerprints(config, clips, base), plan, by_id, config, base)


def rate(name: str, count: int, work: Callable[[], object]) -> float:
    """Run `work`, print its rate in clips per second, and return the rate."""
    begin = time.perf_counter()
    work()
    clips_per_second = count / (time.perf_counter() - begin)
    print(json.dumps({"part": name, "clips_per_second": round(clips_per_second, 2)}), flush=True)
    return clips_per_second


def drain(items: Iterable[object]) -> None:
    """Consume an iterable."""
    for _ in items:
        pass


def measure_pairs(units: list[WorkUnit], count: int) -> float:
    """Measure decode, maker and pairs in this process. Returns the rate of pairs."""
    rate(
        "decode",
        count,
        lambda: [drain(read_windows(unit.clip.path, unit.windows, unit.clip.section)) for unit in units],
    )
    task, data = units[0].config.task, units[0].config.data
    maker = build_maker(task.maker, task.maker_args)
    scales = ReferenceScale(task.reference_downscale, task.reference_temporal_scale)
    decoded = [
        (unit.clip, unit.windows[0], next(read_windows(unit.clip.path, unit.windows[:1], unit.clip.section)))
        for unit in units
    ]

    def make_references() -> None:
        for clip, window, frames in decoded:
            make_reference(
                frames, window, maker, SourceVideo(clip.path, clip.files), window_seed(data, clip.id, 0, 1), scales
            )

    rate("maker", len(decoded), make_references)
    return rate("pairs", count, lambda: drain(map(process_unit, units)))


def measure_encoding(job: Job, count: int) -> float:
    """Measure encoding from the pair shards of job.root, and batches against one clip at a time."""
    pairs = ShardSet.open(job.root / "pairs")
    encoder = LatentEncoder(job.base, TextFeatures(job.root, job.base))
    read = [pairs.read_pair(i) for i in range(min(count, 16))]
    encoder.encode(read[:1])
    batched = rate("vae, batched", len(read), lambda: [encoder.encode(read)])
    single = rate("vae, one at a time", len(read), lambda: [encoder.encode([pair]) for pair in read])
    print(json.dumps({"batched_over_single": round(batched / single, 2)}))
    return rate("encode", count, lambda: [drain(encoder.encode_shard(pairs, shard)) for shard in pairs.shards])


def measure_total(job: Job, count: int, workers: int) -> float:
    """Measure clips to latents, with started workers and cached text features."""
    with closing(create_engine(job.config.engine, workers)) as engine:
        first_units = [next(split_into_units(windows, job.clips, job.config)) for windows in job.plan.values()]
        results = engine.map(process_unit, first_units * workers)  # starts the workers
        if any(isinstance(result, Failure) for result in results):
            raise SystemExit("the clips cannot be read")
        TextFeatures(job.root, job.base).encode_missing([""])
        return rate(f"total, {workers} workers", count, lambda: write_shards(job, engine))


def main() -> None:
    """Measure one part after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="deblur")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="settings of data_prep, e.g. model=ltx2_3 data.train_windows=64")
    args = parser.parse_args()
    register_schema()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(conf_dir()), version_base="1.3"):
        encode = pairs = 0.0
        for workers in args.workers:
            root = f"data.root={folder}/{workers}"
            config = to_config(compose("prep", [f"conf={args.task}", "data.train_windows=192", root, *args.overrides]))
            job = job_of(config)
            count = sum(map(len, job.plan.values()))
            if not pairs:
                units = [u for windows in job.plan.values() for u in split_into_units(windows, job.clips, config)]
                pairs = measure_pairs(units, count)
            total = measure_total(job, count, workers)
            encode = encode or measure_encoding(job, count)
            slowest = min(pairs * max(min(workers, os.cpu_count() or 1), 1), encode)
            print(json.dumps({"workers": workers, "overlap": round(total / slowest, 2)}), flush=True)


if __name__ == "__main__":
    main()
