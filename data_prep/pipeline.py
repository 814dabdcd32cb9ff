"""Run a preparation from start to end: clips, windows, pair shards, latent shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.captions.stored import add_missing_captions
from data_prep.checks import CheckLog, require_no_failure
from data_prep.checks.dataset import (
    finish_checks,
    read_check_totals,
    write_report,
)
from data_prep.clip_cache import FOLDER, ClipCache
from data_prep.clips.clip_list import SPLITS, Clip, clips_of
from data_prep.clips.notes import listing_notes
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.webdataset import with_local_clips
from data_prep.clips.windows import Window, heldout_windows, train_windows
from data_prep.engines.local import create_engine
from data_prep.forecast import show_forecast
from data_prep.given_masks import mask_maker
from data_prep.lost_windows import LostWindowsError
from data_prep.reference_makers import makers_of_references
from data_prep.select_clips import select_clips
from data_prep.selection import require_train_pairs, selection_report, show_selection
from data_prep.settle_clips import settle_clips, stored_changes, with_splits
from data_prep.share import IN_PROGRESS, remove_progress, show_share, writing_share
from data_prep.sound import fingerprint_of_sound, require_audio_half
from data_prep.vae_check import check_with_vae
from data_prep.write_shards import Job, ShardPlan, write_shards
from iclora_train.config import Config, ConfigError
from iclora_train.config.paths import user_path
from iclora_train.config.places import frame_range, is_drawn
from iclora_train.config.references import reference_keys
from iclora_train.config.share import Share
from iclora_train.core.atomic_files import LockedFolderError, exclusive, sha256
from iclora_train.core.fingerprint import content_settings, digest, plain, settings_of_pixels, without_unset
from iclora_train.core.progress import progress_bar
from iclora_train.core.types import Geometry
from iclora_train.data.prompts import template_fields
from iclora_train.data.shard_index import ShardError, require_fingerprint
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel, open_base

RECIPE = 1  # increase it when the same settings produce different pixels
Fingerprints = dict[str, dict[str, Any]]  # of "pairs" and "latents"
SHARD_CLIPS = 64  # windows in a shard
# of `data`, newer than the first shards
NEW_SETTINGS = ("buckets", "pick", "stride", "cuts", "hdr", "captioner", "prompt", "split", "vae_precision", "sound")


def prepare(config: Config) -> Path:
    """Write data.root/pairs and data.root/latents for a task, or finish an interrupted run. Returns data.root.

    ConfigError names the setting or file to change. Unusable clips are dropped and listed in data.root/report.json.
    """
    root = Path(config.data.root)
    base = open_base(config.model)
    check_fit(config, base.geometry)
    makers_of_references(config.task)
    mask_maker(config.task)
    require_audio_half(config, base)
    config = with_local_clips(config)
    clips = add_missing_captions(clips_of(config), config)
    # a finished set needs no cache, and nothing is left in it
    cache = ClipCache(None if (root / "latents" / "index.json").exists() else root / IN_PROGRESS / FOLDER)
    made_from = fingerprints(config, clips, base, cache)
    totals = _totals_if_finished(root, made_from)
    if totals is not None:
        require_no_failure(totals, root)
        return root
    for kind, fingerprint in with_splits(made_from, stored_changes(root / "pairs")).items():
        require_fingerprint(root / kind, fingerprint)
    if config.share is None:
        with exclusive(root, "set another data.root"):
            _write_all(root, clips, base, made_from, config, cache)
    else:
        _prepare_share(root, clips, base, made_from, config, cache)
    return root


def _prepare_share(
    root: Path, clips: list[Clip], base: BaseModel, made_from: Fingerprints, config: Config, cache: ClipCache
) -> None:
    """Write the share's shards, and everything else if no shard is missing then."""
    share = Share.parse(config.share or "")
    with writing_share(root, share):
        if _totals_if_finished(root, made_from) is not None:
            return  # meanwhile
        complete = _write_all(root, clips, base, made_from, config, cache, share)
    if complete:
        try:
            with exclusive(root, "set another data.root"):
                if _totals_if_finished(root, made_from) is None:
                    _write_all(root, clips, base, made_from, config, cache)
        except LockedFolderError:
            print("the process of another share writes the index and the report")


def _totals_if_finished(root: Path, made_from: Fingerprints) -> dict[str, Any] | None:
    """Totals of the checks of a preparation with these fingerprints, None if it is not finished.

    made_from: the fingerprints without the changes of the splits, which the finished shards hold themselves.
    """
    totals = read_check_totals(root)
    expected = with_splits(made_from, stored_changes(root / "pairs"))
    finished = totals is not None and all(_is_finished(root / kind, of) for kind, of in expected.items())
    return totals if finished else None


def _write_all(
    root: Path,
    clips: list[Clip],
    base: BaseModel,
    made_from: Fingerprints,
    config: Config,
    cache: ClipCache,
    share: Share | None = None,
) -> bool:
    """Write both shard sets, the report and the contact sheet. A share writes its shards only.

    made_from: as in `_totals_if_finished`. Returns whether all shards are written.
    """
    notes = listing_notes(config.data.clips, clips, template_fields(config.data.prompt or ""), config.data.references)
    for note in notes:
        print(note)
    usable, dropped = select_clips(clips, config, cache)
    log = CheckLog(root, digest(made_from["pairs"]))
    splits = settle_clips(root, usable, made_from["pairs"], log, config, cache)
    fingerprint = with_splits(made_from, splits.changes)
    for kind, of in fingerprint.items():
        require_fingerprint(root / kind, of)
    windows = _windows(splits.clips, config)
    report = selection_report(windows, splits, dropped, notes, config)
    if share is None:
        write_report(root, report)
    show_selection(report, root / "report.json")
    lost = None
    plan = _plan(windows) if windows["train"] else {}
    if plan:
        by_id = {probed.clip.id: probed.clip for probed in splits.clips}
        show_forecast(job := Job(root, fingerprint, plan, by_id, config, base, log, share))
        with closing(create_engine(config.engine, config.data.workers)) as engine:
            try:
                write_shards(job, engine)
            except LostWindowsError as error:
                lost = error
            if share is None:
                check_with_vae(job, engine)
    if share is not None:
        return show_share(root, share, plan)
    remove_progress(root)
    finish_checks(root, log, report, config)
    require_train_pairs(root, report, config)
    if lost is not None:
        raise lost
    return True


def check_fit(config: Config, geometry: Geometry) -> None:
    """ConfigError unless targets and references of every size fit the VAE."""
    for data in config.data.sizes():
        size = f"{data.width}x{data.height}x{data.frames}"
        keys = f"data.buckets={size}" if config.data.buckets else "data.frames, data.height, data.width"
        try:
            geometry.latent_size(data.frames, data.height, data.width)
        except ValueError as error:
            raise ConfigError(f"{keys}: {error}") from error
        for number, task in enumerate(config.task.for_references()):
            space, time = task.reference_downscale, task.reference_temporal_scale
            scaled = replace(geometry, spatial=geometry.spatial * space, temporal=geometry.temporal * time)
            try:
                scaled.latent_size(data.frames, data.height, data.width)
            except ValueError as error:
                space_key, time_key, _ = reference_keys(number)
                factors = f"{space_key}={space}, {time_key}={time}"
                raise ConfigError(f"{keys}: with the references of {factors}, {error}") from error
            if is_drawn(task.reference_frame):
                frame_range(f"{keys}: {reference_keys(number)[2]}", task.reference_frame, data.frames)


def fingerprints(config: Config, clips: list[Clip], base: BaseModel, cache: ClipCache | None = None) -> Fingerprints:
    """Fingerprints of the pair shards and the latent shards: settings, contents of the sources, base model."""
    settings = _without_unset(content_settings(config))
    with progress_bar("fingerprinting", len(clips), "clip") as bar:
        known = cache or ClipCache()
        content_digest = lru_cache(None)(lambda path: known.digest(path, _content_digest))  # clips may share a file
        sources = {clip.id: _clip_identity(clip, config, content_digest) for clip in bar.track(clips)}
    pairs = {"recipe": RECIPE, "settings": settings_of_pixels(settings), "sources": sources}
    networks = _network_digests([task.maker_args for task in config.task.for_references()])
    optional = {"checks": config.checks.decisive(), "networks": networks}
    pairs |= {name: value for name, value in optional.items() if value}
    parts = {**base.latent_fingerprints, **fingerprint_of_sound(config, base)}
    return {
        "pairs": pairs,
        "latents": {"settings": settings, "pairs": digest(pairs), "base": {"parts": parts}},
    }


def _without_unset(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without NEW_SETTINGS that are null, so that shards older than these settings stay valid."""
    return {**settings, "data": without_unset(settings["data"], NEW_SETTINGS)}


def _clip_identity(clip: Clip, config: Config, content_digest: Callable[[Path], str]) -> dict[str, Any]:
    """The entry of a clip in the fingerprint. Clips with unreadable files are dropped later by `select_clips`."""
    files = {"video": clip.path} | ({"reference": clip.reference} if clip.reference else {}) | dict(clip.files)
    identity: dict[str, Any] = {"split": clip.split, "caption": clip.caption}
    identity |= {name: content_digest(path) for name, path in files.items()}
    for name, section in (("video", clip.section), ("reference", clip.reference_section)):
        if section is not None and name in identity:
            identity |= {name: digest([identity[name], section.bounds]), f"{name}_section": section.bounds}
    if clip.cuts is not None:
        identity["cuts"] = clip.cuts
    if config.data.prompt is not None:
        identity["row"] = {name: clip.row.get(name, "") for name in template_fields(config.data.prompt)}
    return identity


def _network_digests(args: object) -> dict[str, str]:
    """Content digests, by path, of the files and folders that a maker's arguments name as `model`."""
    if isinstance(args, list):
        return {path: value for arg in args for path, value in _network_digests(arg).items()}
    if not isinstance(args, dict):
        return {}
    model = args.get("model")
    digests = {model: _content_digest(user_path(model))} if isinstance(model, str) else {}
    return digests | {path: value for arg in args.values() for path, value in _network_digests(arg).items()}


def _content_digest(path: Path) -> str:
    """sha256 of a file, or of the file names and contents in a folder."""
    if os.path.isdir(path):
        return digest(
            {str(file.relative_to(path)): _content_digest(file) for file in path.rglob("*") if os.path.isfile(file)}
        )
    try:
        return sha256(path) if os.path.isfile(path) else "missing"
    except OSError:
        return "missing"


def _is_finished(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether the folder holds a finished shard set with this fingerprint that opens without error."""
    try:
        shards = ShardSet.open(folder)
        if shards.kind == "latents":
            shards.empty_text()
        return shards.fingerprint == plain(fingerprint)
    except ShardError:
        return False


def _windows(usable: list[ProbedClip], config: Config) -> dict[str, list[Window]]:
    """Windows by split."""
    clips = {split: [probed for probed in usable if probed.clip.split == split] for split in SPLITS}
    fixed = {split: heldout_windows(clips[split], config.data) for split in ("val", "heldout")}
    return {"train": train_windows(clips["train"], config.data), **fixed}


def _plan(windows: dict[str, list[Window]]) -> ShardPlan:
    """Shards of up to SHARD_CLIPS windows. Each shard is independent, so that an interrupted run can continue."""
    return {
        f"{split}-{i // SHARD_CLIPS:06d}.tar": group[i : i + SHARD_CLIPS]
        for split, group in windows.items()
        for i in range(0, len(group), SHARD_CLIPS)
    }
