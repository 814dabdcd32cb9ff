"""Compares a preparation with the time of its VAE: python -m scripts.benchmark_prep [--tasks deblur,canny] [key=value]

For a real base, with its settings: --windows 64 model=ltx2_3 model.checkpoint=... model.text_encoder=... data.clips=...

A preparation makes pairs in worker processes while the VAE encodes, so at best it lasts as long as the VAE alone. For
each task this program prepares train windows in a temporary folder, then encodes the pixels of some of them with the
same VAE in the same batches, and prints one JSON line:

    seconds_per_window    of the preparation, from the start of the workers to the last shard; clips are probed and
                          captions encoded before
    vae_seconds           of the VAE alone for a window: target and references
    ratio                 of the two; 1 if the VAE never waits
    pair_seconds          of one process for a window, by part
    GB_per_1000_windows   of the two shard sets
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from data_prep.checks import CheckLog
from data_prep.clips.clip_list import clips_of
from data_prep.clips.windows import train_windows
from data_prep.engines.base import Failure
from data_prep.engines.local import create_engine
from data_prep.measure import MeasuredPair, measure_unit, time_vae
from data_prep.pipeline import SHARD_CLIPS, check_fit
from data_prep.select_clips import select_clips
from data_prep.write_shards import Job, ShardPlan, process_unit, split_into_units, write_shards
from iclora_train.config import Config, ConfigError, require, to_config
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.ltx2.base_model import open_base
from iclora_train.ltx2.text_features import TextFeatures

TASKS = "deblur,colorize,canny,motion_tracks"
GB = 1e9


def job_of(config: Config) -> Job:
    """The job of data_prep for train windows, of which each clip has the same number."""
    base = open_base(config.model)
    check_fit(config, base.geometry)
    clips = clips_of(config)
    selected, dropped = select_clips(clips, config)
    require(len(selected) > 0, f"data.clips={config.data.clips}: no clip is usable, e.g. {dropped[:1]}")
    usable = [replace(probed, clip=replace(probed.clip, split="train")) for probed in selected]
    windows = train_windows(usable, config.data)
    groups = [windows[i : i + SHARD_CLIPS] for i in range(0, len(windows), SHARD_CLIPS)]
    plan: ShardPlan = {f"train-{i:06d}.tar": group for i, group in enumerate(groups)}
    root, of = Path(config.data.root), {"benchmark": "prep"}
    by_id = {probed.clip.id: probed.clip for probed in usable}
    fingerprints = {"pairs": of, "latents": of}
    return Job(root, fingerprints, plan, by_id, config, base, CheckLog(root, "benchmark"))


def measured_pairs(job: Job, count: int) -> list[MeasuredPair]:
    """The first `count` pairs of the plan, measured in this process."""
    units = (unit for windows in job.plan.values() for unit in split_into_units(windows, job.clips, job.config))
    pairs: list[MeasuredPair] = []
    for unit in units:
        measured = measure_unit(unit)
        if isinstance(measured, Failure):
            raise ConfigError(f"{unit.clip.path}: {measured.reason}")
        pairs += measured
        if len(pairs) >= count:
            break
    return pairs[:count]


def preparation_seconds(job: Job) -> float:
    """Seconds of writing all shards, with started workers and encoded captions."""
    TextFeatures(job.root, job.base).encode_missing(job.captions())
    with closing(create_engine(job.config.engine, job.config.data.workers)) as engine:
        first = [next(split_into_units(windows, job.clips, job.config)) for windows in job.plan.values()]
        list(islice(engine.map(process_unit, first * job.config.data.processes()), len(first)))  # starts the workers
        begin = time.perf_counter()
        write_shards(job, engine)
        return time.perf_counter() - begin


def measure(config: Config, vae_windows: int) -> dict[str, Any]:
    """The row of a task. vae_windows: number of windows whose pixels are kept in memory for the VAE alone."""
    job = job_of(config)
    windows = sum(map(len, job.plan.values()))
    prep = preparation_seconds(job) / windows
    pairs = measured_pairs(job, vae_windows)
    vae = time_vae(pairs, job.base, config.data) / len(pairs)
    parts = {part: sum(pair.seconds[part] for pair in pairs) / len(pairs) for part in pairs[0].seconds}
    return {
        "task": config.task.name,
        "sizes": [f"{data.width}x{data.height}x{data.frames}" for data in config.data.sizes()],
        "windows": windows,
        "workers": config.data.processes(),
        "seconds_per_window": round(prep, 4),
        "vae_seconds": round(vae, 4),
        "ratio": round(prep / vae, 2),
        "pair_seconds": {part: round(seconds, 4) for part, seconds in parts.items()},
        "GB_per_1000_windows": {
            kind: round(sum(file.stat().st_size for file in (job.root / kind).glob("*.tar")) / windows * 1000 / GB, 3)
            for kind in ("pairs", "latents")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=TASKS, help="names as in conf=<task>, separated by commas")
    parser.add_argument("--windows", type=int, default=192, help="train windows of each task")
    parser.add_argument("--vae-windows", type=int, default=16, help="windows for the VAE alone; they stay in memory")
    args, overrides = parser.parse_known_args()
    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for task in args.tasks.split(","):
            with tempfile.TemporaryDirectory() as folder:
                settings = [f"conf={task}", f"data.train_windows={args.windows}", f"data.root='{folder}'", *overrides]
                row = measure(to_config(compose("prep", settings)), args.vae_windows)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
