"""The VAE's round trip of a few pairs: their stored latents are decoded and compared with the pixels."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.checks import Report, check_vae, evenly_spaced
from data_prep.engines.base import Engine, Failure
from data_prep.write_shards import Job, WorkUnit, make_each
from iclora_train.core.device import default_device
from iclora_train.core.progress import progress_bar
from iclora_train.core.types import Pair
from iclora_train.data.shards import ShardSet

WINDOWS_PER_CHECK = 64  # at least two windows are checked, and one more for each of these, up to checks.vae_pairs


def check_with_vae(job: Job, engine: Engine) -> None:
    """Log the round trip of some of the pairs. Pixels that are not kept are made again from their clips."""
    pairs, latents = (ShardSet.open(job.root / kind) for kind in ("pairs", "latents"))
    checks = job.config.checks
    numbers = evenly_spaced(len(pairs), min(checks.vae_pairs, max(2, len(pairs) // WINDOWS_PER_CHECK)))
    row = {sample.key: i for i, sample in enumerate(latents.samples)}
    reports, device = [], default_device()
    if numbers:
        vae = job.base.vae().to(device)
        with progress_bar("pairs through the VAE", len(numbers), "clip") as bar:
            for i, pair in zip(numbers, _pixels(job, pairs, numbers, engine), strict=True):
                sample = pairs.samples[i]
                if pair is not None and sample.key in row:
                    stored = latents.read_latents(row[sample.key])
                    streams = [stored.target, *stored.references]
                    findings = check_vae(pair, [stream.to(device) for stream in streams], vae.decode, checks)
                    reports.append(Report(pair.key, sample.source, sample.split, pair.caption, tuple(findings)))
                bar.advance()
    job.log.add(reports)


def _pixels(job: Job, pairs: ShardSet, numbers: list[int], engine: Engine) -> Iterator[Pair | None]:
    """The pairs with these numbers. None if the clip of one can no longer be read."""
    windows = {window.key: window for group in job.plan.values() for window in group}
    lost = [i for i in numbers if pairs.record(i).keep]
    samples = [pairs.samples[i] for i in lost]
    units = [WorkUnit(job.clips[s.source], [windows[s.key]], job.config) for s in samples]
    again = engine.map(pixels_of, units)
    for i in numbers:
        if i not in lost:
            yield pairs.read_pair(i)
        else:
            result = next(again)
            yield None if isinstance(result, Failure) else result[0]


def pixels_of(unit: WorkUnit) -> list[Pair] | Failure:
    """The pairs of a unit. Failure as in `make_each`."""
    return make_each(unit, lambda pair, _: pair)
