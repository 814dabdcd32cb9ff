"""The whole of data_prep on one page: clips, windows, pair shards, latent shards."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.checks import CheckLog, require_no_failure
from data_prep.checks.dataset import (
    check_pairs_with_vae,
    drop_duplicates,
    finish_checks,
    read_check_totals,
    write_report,
)
from data_prep.clips.captions import add_missing_captions
from data_prep.clips.clip_list import SPLITS, Clip, list_clips
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.windows import Window, heldout_windows, train_windows
from data_prep.engines.local import create_engine
from data_prep.makers import build_maker
from data_prep.select_clips import ids_without_caption, select_clips
from data_prep.write_shards import Job, LostWindowsError, ShardPlan, write_shards
from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import exclusive, sha256
from iclora_train.core.fingerprint import content_settings, digest, plain
from iclora_train.core.progress import progress_bar
from iclora_train.core.types import Geometry
from iclora_train.data.prompts import template_fields
from iclora_train.data.shards import ShardError, ShardSet, require_fingerprint
from iclora_train.ltx2.base_model import BaseModel, open_base

RECIPE = 1  # raise it when the same settings make other pixels than before
SHARD_CLIPS = 64
LATER = ("buckets", "pick", "stride", "cuts", "captioner", "prompt")  # of `data`, newer than the first shards


def prepare(config: Config) -> Path:
    """Make data.root/pairs and data.root/latents for a task, or finish what a killed run left; returns data.root.

    ConfigError names the setting or file that is in the way; what cannot be used of the clips is dropped and listed in
    data.root/report.json.
    """
    root = Path(config.data.root)
    base = open_base(config.model)
    check_fit(config, base.geometry)
    build_maker(config.task.maker, config.task.maker_args)
    template_fields(config.data.prompt or "")
    images = all(size.frames == 1 for size in config.data.sizes())
    clips = add_missing_captions(list_clips(config.data.clips, config.data.heldout_fraction, images), config)
    made_by = fingerprints(config, clips, base)
    found = read_check_totals(root)
    if found is not None and all(_is_done(root / kind, of) for kind, of in made_by.items()):
        require_no_failure(found, root)
        return root
    for kind, of in made_by.items():
        require_fingerprint(root / kind, of)
    with exclusive(root, "set another data.root"):
        _make(root, clips, base, made_by, config)
    return root


def _make(root: Path, clips: list[Clip], base: BaseModel, made_by: dict[str, dict[str, Any]], config: Config) -> None:
    """Both shard sets, the report and the contact sheet."""
    usable, dropped = select_clips(clips, config)
    notes = CheckLog(root, digest(made_by["pairs"]))
    usable = drop_duplicates(usable, made_by["pairs"]["sources"], notes, config)
    silent = ids_without_caption(usable) if config.data.prompt is None else []
    windows = _windows(usable, config)
    report = {"kept": _counts(windows), "dropped": dropped} | ({"without_caption": silent} if silent else {})
    write_report(root, report)
    show(report)
    if silent:
        print(f"{len(silent)} clips have no caption, only the trigger; {root / 'report.json'} names them")
    lost = None
    if windows["train"]:
        by_id = {material.clip.id: material.clip for material in usable}
        try:
            with closing(create_engine(config.engine, config.data.workers)) as engine:
                write_shards(Job(root, made_by, _plan(windows), by_id, config, base, notes), engine)
        except LostWindowsError as error:
            lost = error
        check_pairs_with_vae(ShardSet.open(root / "pairs"), base, notes, config)
    finish_checks(root, notes, report, config)
    require(len(windows["train"]) > 0, f"data.clips={config.data.clips}: no train clip could be used; see the table")
    kept = ShardSet.open(root / "pairs").splits.get("train", 0)
    require(kept > 0, f"the checks left out every training pair; {root / 'contact.html'} shows them and says why")
    if lost is not None:
        raise lost


def check_fit(config: Config, geometry: Geometry) -> None:
    """ConfigError unless targets and references of every size fit the VAE."""
    task = config.task
    down, slow = task.reference_downscale, task.reference_temporal_scale
    for data in config.data.sizes():
        size = f"{data.width}x{data.height}x{data.frames}"
        keys = f"data.buckets={size}" if config.data.buckets else "data.frames, data.height, data.width"
        try:
            geometry.latent_size(data.frames, data.height, data.width)
        except ValueError as error:
            raise ConfigError(f"{keys}: {error}") from error
        require(
            data.height % down == 0 and data.width % down == 0 and (data.frames - 1) % slow == 0,
            f"task.reference_downscale={down}, task.reference_temporal_scale={slow} do not divide a target of {size}",
        )
        try:
            geometry.latent_size((data.frames - 1) // slow + 1, data.height // down, data.width // down)
        except ValueError as error:
            raise ConfigError(f"a reference {down}x smaller and {slow}x slower than data's {size}: {error}") from error


def fingerprints(config: Config, clips: list[Clip], base: BaseModel) -> dict[str, dict[str, Any]]:
    """What makes the pair shards and the latent shards: settings, sources by content, base."""
    settings = _without_unset(content_settings(config))
    with progress_bar("fingerprinting", len(clips), "clip") as bar:
        sources = {clip.id: _identity(clip, config) for clip in bar.track(clips)}
    pairs = {"recipe": RECIPE, "settings": settings, "sources": sources}
    networks = _networks(config.task.maker_args)
    more = {"checks": config.checks.decisive(), "networks": networks}
    pairs |= {name: value for name, value in more.items() if value}
    return {
        "pairs": pairs,
        "latents": {"settings": settings, "pairs": digest(pairs), "base": {"parts": base.latent_fingerprints}},
    }


def _without_unset(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those of LATER that are null, so that shards from before these existed stay good."""
    data = {key: value for key, value in settings["data"].items() if value is not None or key not in LATER}
    return {**settings, "data": data}


def _identity(clip: Clip, config: Config) -> dict[str, Any]:
    """What a clip contributes to the fingerprint; a file that cannot be opened will be dropped by `survey`."""
    files = {"video": clip.path} | ({"reference": clip.reference} if clip.reference else {}) | dict(clip.files)
    about: dict[str, Any] = {"split": clip.split, "caption": clip.caption}
    about |= {name: _content(path) for name, path in files.items()}
    if clip.cuts is not None:
        about["cuts"] = clip.cuts
    if config.data.prompt is not None:
        about["row"] = {name: clip.row.get(name, "") for name in template_fields(config.data.prompt)}
    return about


def _networks(args: object) -> dict[str, str]:
    """Contents of the files and folders that a maker's arguments name as `model`, by path."""
    if isinstance(args, list):
        return {path: found for arg in args for path, found in _networks(arg).items()}
    if not isinstance(args, dict):
        return {}
    own = args.get("model")
    found = {own: _content(Path(own).expanduser())} if isinstance(own, str) else {}
    return found | {path: of for arg in args.values() for path, of in _networks(arg).items()}


def _content(path: Path) -> str:
    """sha256 of a file, or of the names and contents in a folder."""
    if path.is_dir():
        return digest({str(file.relative_to(path)): _content(file) for file in path.rglob("*") if file.is_file()})
    return sha256(path) if path.is_file() and os.access(path, os.R_OK) else "missing"


def _is_done(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether a finished and undamaged-looking shard set of this fingerprint is there."""
    try:
        return ShardSet.open(folder).fingerprint == plain(fingerprint)
    except ShardError:
        return False


def _windows(usable: list[ProbedClip], config: Config) -> dict[str, list[Window]]:
    """Windows by split."""
    of = {split: [material for material in usable if material.clip.split == split] for split in SPLITS}
    rest = {split: heldout_windows(of[split], config.data) for split in ("val", "heldout")}
    return {"train": train_windows(of["train"], config.data), **rest}


def _counts(windows: dict[str, list[Window]]) -> dict[str, dict[str, int]]:
    return {split: {"clips": len({w.clip for w in ws}), "windows": len(ws)} for split, ws in windows.items()}


def _plan(windows: dict[str, list[Window]]) -> ShardPlan:
    """Shards of up to SHARD_CLIPS windows. Each is made without the others, so that a killed run can go on."""
    return {
        f"{split}-{i // SHARD_CLIPS:06d}.tar": group[i : i + SHARD_CLIPS]
        for split, group in windows.items()
        for i in range(0, len(group), SHARD_CLIPS)
    }


def show(report: dict[str, Any]) -> None:
    """The table of kept and dropped clips, on stdout."""
    table = Table("split", "clips", "windows", title="kept")
    for split, counts in report["kept"].items():
        table.add_row(split, str(counts["clips"]), str(counts["windows"]))
    console = Console()
    console.print(table)
    if report["dropped"]:
        dropped = Table("clip", "why", title="dropped")
        for clip in report["dropped"]:
            dropped.add_row(clip["clip"], clip["reason"])
        console.print(dropped)
