"""The whole of data_prep on one page: clips, windows, pair shards, latent shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep.clips import SPLITS, Clip, list_clips
from data_prep.encode import Encoder, encode_shard
from data_prep.makers import make
from data_prep.pairs import make_pairs
from data_prep.progress import show, steps
from data_prep.texts import Texts
from data_prep.windows import Window, heldout_windows, train_windows, unfit
from iclora_train.config import Config, ConfigError, require
from iclora_train.files import alone, sha256, write_whole
from iclora_train.fingerprint import content_settings, digest, plain
from iclora_train.ltx2.base import Base
from iclora_train.ltx2.chosen import base_of
from iclora_train.members import Members, pair_members
from iclora_train.pair import Geometry
from iclora_train.shards import ShardError, ShardSet, ShardWriter
from iclora_train.video import ClipInfo, probe

RECIPE = 1  # raise it when the same settings make other pixels than before
SHARD_CLIPS = 64

Plan = dict[str, list[Window]]  # shard name -> its windows, ordered by clip and start


def prepare(config: Config) -> Path:
    """Make data.root/pairs and data.root/latents for a task, or finish what a killed run left; returns data.root.

    ConfigError names the setting or file that is in the way; what cannot be used of the clips is dropped and listed in
    data.root/report.json.
    """
    root = Path(config.data.root)
    base = base_of(config.model)
    check_fit(config, base.geometry)
    make(config.task.maker, config.task.maker_args)
    clips = list_clips(config.data.clips, config.data.heldout_fraction)
    made_by = fingerprints(config, clips, base)
    if all(_is_done(root / kind, of) for kind, of in made_by.items()):
        return root
    with alone(root, "set another data.root"):
        _make(root, clips, base, made_by, config)
    return root


def _make(root: Path, clips: list[Clip], base: Base, made_by: dict[str, dict[str, Any]], config: Config) -> None:
    """Both shard sets and the report."""
    usable, dropped = survey(clips, config)
    windows = _windows(usable, config)
    report = {"kept": _counts(windows), "dropped": dropped}
    with write_whole(root / "report.json") as file:
        file.write(json.dumps(report, indent=1).encode())
    show(report)
    require(len(windows["train"]) > 0, f"data.clips={config.data.clips}: no train clip could be used; see the table")
    plan = _plan(windows)
    _write_pairs(root / "pairs", made_by["pairs"], plan, {clip.id: clip for clip, _ in usable}, config)
    _write_latents(root / "latents", made_by["latents"], ShardSet.open(root / "pairs"), base)


def check_fit(config: Config, geometry: Geometry) -> None:
    """ConfigError unless targets and references of the set size fit the VAE."""
    data, task = config.data, config.task
    down, slow = task.reference_downscale, task.reference_temporal_scale
    try:
        geometry.latent_size(data.frames, data.height, data.width)
    except ValueError as error:
        raise ConfigError(f"data.frames, data.height, data.width: {error}") from error
    size = f"{data.width}x{data.height}x{data.frames}"
    require(
        data.height % down == 0 and data.width % down == 0 and (data.frames - 1) % slow == 0,
        f"task.reference_downscale={down}, task.reference_temporal_scale={slow} do not divide a target of {size}",
    )
    try:
        geometry.latent_size((data.frames - 1) // slow + 1, data.height // down, data.width // down)
    except ValueError as error:
        raise ConfigError(f"a reference {down}x smaller and {slow}x slower than data's {size}: {error}") from error


def fingerprints(config: Config, clips: list[Clip], base: Base) -> dict[str, dict[str, Any]]:
    """What makes the pair shards and the latent shards: settings, sources by content, base."""
    settings = content_settings(config)
    with steps("fingerprinting", len(clips)) as bar:
        sources = {clip.id: _identity(clip) for clip in bar.track(clips)}
    pairs = {"recipe": RECIPE, "settings": settings, "sources": sources}
    return {
        "pairs": pairs,
        "latents": {"settings": settings, "pairs": digest(pairs), "base": {"parts": base.latent_fingerprints}},
    }


def _identity(clip: Clip) -> dict[str, str]:
    """What a clip contributes to the fingerprint. A file that cannot be opened will be dropped by `survey`."""
    files = {"video": clip.path} | ({"reference": clip.reference} if clip.reference else {})
    hashes = {name: sha256(path) if path.is_file() else "missing" for name, path in files.items()}
    return {"split": clip.split, "caption": clip.caption, **hashes}


def _is_done(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether a finished and undamaged-looking shard set of this fingerprint is there."""
    try:
        return ShardSet.open(folder).fingerprint == plain(fingerprint)
    except ShardError:
        return False


def survey(clips: list[Clip], config: Config) -> tuple[list[tuple[Clip, ClipInfo]], list[dict[str, str]]]:
    """Decode every clip once: those that can be used, and those that cannot with the reason."""
    usable, dropped = [], []
    with steps("reading clips", len(clips)) as bar:
        for clip in bar.track(clips):
            try:
                info = probe(clip.path)
                reason = unfit(info, config.data) or _unpaired(clip, info, config.task.maker)
            except ValueError as error:
                reason = str(error)
            if reason:
                dropped.append({"clip": clip.id, "reason": reason})
            else:
                usable.append((clip, info))
    return usable, dropped


def _unpaired(clip: Clip, info: ClipInfo, maker: str) -> str | None:
    """Why a clip's own reference video cannot be used, or None."""
    if clip.reference is None:
        return "no reference is given in the list, and task.maker=given needs one" if maker == "given" else None
    count = probe(clip.reference).frames
    return None if count == info.frames else f"its reference has {count} frames, the clip has {info.frames}"


def _windows(usable: list[tuple[Clip, ClipInfo]], config: Config) -> dict[str, list[Window]]:
    """Windows by split."""
    of = {split: [(clip, info) for clip, info in usable if clip.split == split] for split in SPLITS}
    rest = {split: heldout_windows(of[split], config.data) for split in ("val", "heldout")}
    return {"train": train_windows(of["train"], config.data), **rest}


def _counts(windows: dict[str, list[Window]]) -> dict[str, dict[str, int]]:
    return {split: {"clips": len({w.clip for w in ws}), "windows": len(ws)} for split, ws in windows.items()}


def _plan(windows: dict[str, list[Window]]) -> Plan:
    """Shards of up to SHARD_CLIPS windows. Each is made without the others, so that a killed run can go on."""
    return {
        f"{split}-{i // SHARD_CLIPS:06d}.tar": group[i : i + SHARD_CLIPS]
        for split, group in windows.items()
        for i in range(0, len(group), SHARD_CLIPS)
    }


def _write_pairs(folder: Path, fingerprint: dict[str, Any], plan: Plan, clips: dict[str, Clip], config: Config) -> None:
    writer = ShardWriter(folder, "pairs", fingerprint)
    with steps("making pairs", sum(map(len, plan.values()))) as bar:
        for shard, windows in plan.items():
            if writer.has(shard):
                bar.skip(len(windows))
            else:
                writer.write(shard, bar.track(_pair_samples(windows, clips, config)))
    writer.finish(list(plan))


def _pair_samples(windows: list[Window], clips: dict[str, Clip], config: Config) -> Iterator[Members]:
    """The pairs of one shard; each clip is decoded once."""
    for name, group in groupby(windows, key=lambda window: window.clip):
        for pair in make_pairs(clips[name], list(group), config):
            yield pair_members(pair, name)


def _write_latents(folder: Path, fingerprint: dict[str, Any], pairs: ShardSet, base: Base) -> None:
    writer = ShardWriter(folder, "latents", fingerprint)
    texts = Texts(folder.parent, base)
    texts.make(["", *(pairs.caption(i) for i in range(len(pairs)))])
    writer.write_empty(texts.read(""))
    encoder = None
    with steps("encoding", len(pairs)) as bar:
        for shard, facts in pairs.shards.items():
            if writer.has(shard):
                bar.skip(facts["count"])
                continue
            encoder = encoder or Encoder(base, texts)
            writer.write(shard, bar.track(encode_shard(pairs, shard, encoder)))
    writer.finish(list(pairs.shards))
