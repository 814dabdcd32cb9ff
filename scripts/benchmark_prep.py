"""Clips per second of data_prep's parts alone and together: python -m scripts.benchmark_prep [--task deblur] [...]

decode: the frames of the windows. maker: the reference from frames that are there. pairs: decode, maker, cutting and
the lossless mp4s, as a worker does it. encode: pair shards to latent shards, read and written. together: data_prep with
`--workers` from clips to latents, without its survey. overlap is the rate of all together over that of the slowest of
pairs (times workers, at most the cores) and encode alone: 1 when everything else costs nothing. vae: batches as
data_prep makes them against one clip at a time. One JSON line per measurement.
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

from data_prep.clips.clip_list import list_clips
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
    """What data_prep would make of the train clips."""
    base = open_base(config.model)
    clips = list_clips(config.data.clips, config.data.heldout_fraction)
    usable, _ = select_clips([clip for clip in clips if clip.split == "train"], config)
    windows = train_windows(usable, config.data)
    plan: ShardPlan = {
        f"train-{i // SHARD_CLIPS:06d}.tar": windows[i : i + SHARD_CLIPS] for i in range(0, len(windows), SHARD_CLIPS)
    }
    by_id = {material.clip.id: material.clip for material in usable}
    return Job(Path(config.data.root), fingerprints(config, clips, base), plan, by_id, config, base)


def rate(name: str, count: int, work: Callable[[], object]) -> float:
    """Do it, say how many clips a second that was, and give the number."""
    begin = time.perf_counter()
    work()
    found = count / (time.perf_counter() - begin)
    print(json.dumps({"part": name, "clips_per_second": round(found, 2)}), flush=True)
    return found


def drain(items: Iterable[object]) -> None:
    """Go through all of them and keep none."""
    for _ in items:
        pass


def alone(units: list[WorkUnit], count: int) -> float:
    """Decode, maker and pairs in this process; the rate of pairs."""
    rate("decode", count, lambda: [drain(read_windows(unit.clip.path, unit.windows)) for unit in units])
    task, data = units[0].config.task, units[0].config.data
    maker, scales = (
        build_maker(task.maker, task.maker_args),
        ReferenceScale(task.reference_downscale, task.reference_temporal_scale),
    )
    work = [(unit.clip, unit.windows[0], next(read_windows(unit.clip.path, unit.windows[:1]))) for unit in units]

    def draw() -> None:
        for clip, window, frames in work:
            make_reference(
                frames, window, maker, SourceVideo(clip.path, clip.files), window_seed(data, clip.id, 0, 1), scales
            )

    rate("maker", len(work), draw)
    return rate("pairs", count, lambda: drain(map(process_unit, units)))


def encoded(job: Job, count: int) -> float:
    """Encode alone, from the pair shards of job.root; batched against one at a time."""
    pairs = ShardSet.open(job.root / "pairs")
    encoder = LatentEncoder(job.base, TextFeatures(job.root, job.base))
    read = [pairs.read_pair(i) for i in range(min(count, 16))]
    encoder.encode(read[:1])
    batched = rate("vae, batched", len(read), lambda: [encoder.encode(read)])
    single = rate("vae, one at a time", len(read), lambda: [encoder.encode([pair]) for pair in read])
    print(json.dumps({"batched_over_single": round(batched / single, 2)}))
    return rate("encode", count, lambda: [drain(encoder.encode_shard(pairs, shard)) for shard in pairs.shards])


def together(job: Job, count: int, workers: int) -> float:
    """Everything from clips to latents, with the workers started and the texts there."""
    with closing(create_engine(job.config.engine, workers)) as engine:
        warm = engine.map(
            process_unit, [next(split_into_units(w, job.clips, job.config)) for w in job.plan.values()] * workers
        )
        if any(isinstance(made, Failure) for made in warm):
            raise SystemExit("the clips cannot be read")
        TextFeatures(job.root, job.base).encode_missing([""])
        return rate(f"together, {workers} workers", count, lambda: write_shards(job, engine))


def main() -> None:
    """Measure, a part after the other."""
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
                pairs = alone([u for w in job.plan.values() for u in split_into_units(w, job.clips, config)], count)
            found = together(job, count, workers)
            encode = encode or encoded(job, count)
            slowest = min(pairs * max(min(workers, os.cpu_count() or 1), 1), encode)
            print(json.dumps({"workers": workers, "overlap": round(found / slowest, 2)}), flush=True)


if __name__ == "__main__":
    main()
