"""`python -m data_prep preview conf=<task>`: a few pairs to look at, and the cost of the whole preparation.

Writes `data.root`/preview and nothing else: `contact.html`, one mp4 per pair (references left of the target), and
`preview.json`, from which a preparation with the same settings takes its first estimate.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Column, Table

from data_prep.checks.report import limits_of, summarize
from data_prep.checks.sheet import write_contact_sheet
from data_prep.clips.captions import caption_of
from data_prep.clips.clip_list import SPLITS, Clip, clips_of
from data_prep.clips.webdataset import with_local_clips
from data_prep.clips.windows import Window
from data_prep.engines.base import Failure
from data_prep.engines.local import create_engine
from data_prep.estimate import MB, Cost, Machine, Work, estimate, require_room, show_estimate
from data_prep.measure import MeasuredPair, Totals, measure_unit, reason_not_to_encode, text_bytes, time_vae
from data_prep.pipeline import SHARD_CLIPS, check_fit
from data_prep.preview_clips import WINDOWS, ClipSample, choose_windows, sample_clips
from data_prep.preview_file import FOLDER, write_cost
from data_prep.sound import geometry_of_sound, require_audio_half
from data_prep.write_shards import WorkUnit
from iclora_train.config import Config, ConfigError, require
from iclora_train.core.atomic_files import exclusive, write_atomic
from iclora_train.core.console import make_console
from iclora_train.core.progress import progress_bar, status
from iclora_train.core.types import Geometry, Pair
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.frame_times import simultaneous_frames
from iclora_train.media.shard_clip import encode_clip

LTX2 = Geometry(channels=128, spatial=32, temporal=8)  # of every published LTX-2 VAE, where no checkpoint is named
LTX2_TEXT = 1024 * 4096 * 2  # bytes of the features of a caption of LTX-2.3, in fp16
CLIP_HEIGHT = 288  # of the mp4s, at most


def preview(config: Config, base: BaseModel | None) -> Path:
    """Write data.root/preview and print the estimate. Returns the folder. base: None if none is named yet."""
    geometry = LTX2 if base is None else base.geometry
    check_fit(config, geometry)
    if base is not None:
        require_audio_half(config, base)
    clips = clips_of(with_local_clips(config, most=1))
    folder = Path(config.data.root) / FOLDER
    with exclusive(folder, "set another data.root"):
        _clear(folder)
        with progress_bar("choosing clips", None, "clip") as bar:
            sample = sample_clips(clips, config, bar)
        windows = choose_windows(sample.usable, config.data)
        require(len(windows) > 0, _nothing_usable(config, sample))
        reason = "no model.checkpoint is named" if base is None else reason_not_to_encode(base)
        pairs, cost = _measure(windows, sample, config, geometry, None if reason else base)
        _write_pictures(folder, pairs, windows, sample, config)
        write_cost(config, cost)
    _show(folder, pairs, cost, sample, config, reason)
    return folder


def _clear(folder: Path) -> None:
    """Remove an earlier preview, but not the lock."""
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _nothing_usable(config: Config, sample: ClipSample) -> str:
    first = sample.dropped[0] if sample.dropped else {"clip": "?", "reason": "no clip was read in time"}
    number = sum(sample.probed.values())
    return f"data.clips={config.data.clips}: none of {number} clips can be used ({first['clip']}: {first['reason']})"


def _measure(
    windows: list[Window], sample: ClipSample, config: Config, geometry: Geometry, base: BaseModel | None
) -> tuple[list[MeasuredPair], Cost]:
    """Make the pairs, one unit of work per window, and encode them if there is a base."""
    by_id = {probed.clip.id: probed.clip for probed in sample.usable}
    units = [WorkUnit(by_id[window.clip], [window], config) for window in windows]
    totals, pairs = Totals(), []
    sound = geometry_of_sound(config, base)
    workers = min(WINDOWS, Machine.here(config).cores) if config.data.processes() else 0
    with closing(create_engine("local", workers)) as engine, progress_bar("making pairs", len(units), "clip") as bar:
        for result in bar.track(engine.map(measure_unit, units)):
            for pair in _pairs_or_raise(result):
                pairs.append(pair)
                totals.add(pair, geometry, sound)
    if base is not None:
        with status("encoding"):
            totals.add_seconds("vae", time_vae(pairs, base, config.data))
    text = LTX2_TEXT if base is None else text_bytes(base, sound is not None)
    return pairs, totals.cost(text, sample.timed, sample.seconds)


def _pairs_or_raise(result: list[MeasuredPair] | Failure) -> list[MeasuredPair]:
    if isinstance(result, Failure):
        raise ConfigError(f"a pair of the preview cannot be made: {result.reason}")
    return result


def _write_pictures(
    folder: Path, pairs: list[MeasuredPair], windows: list[Window], sample: ClipSample, config: Config
) -> None:
    """Write the contact sheet and one mp4 for each pair."""
    for measured in pairs:
        with write_atomic(folder / f"{measured.pair.key}.mp4") as file:
            file.write(encode_clip(_side_by_side(measured.pair), measured.pair.fps, lossless=False))
    totals = summarize((measured.report for measured in pairs), limits_of(config))
    split_of = {probed.clip.id: probed.clip.split for probed in sample.usable}
    groups = {split: [window for window in windows if split_of[window.clip] == split] for split in SPLITS}
    kept = {split: {"clips": len({w.clip for w in group}), "windows": len(group)} for split, group in groups.items()}
    report = {"kept": kept, "dropped": sample.dropped}
    max_bytes = int(config.checks.sheet_megabytes * 2**20)

    def entries() -> Iterator[tuple[Any, bytes]]:
        return ((measured.report, measured.picture) for measured in pairs)

    write_contact_sheet(folder / "contact.html", entries, totals, report, f"{config.task.name}, preview", max_bytes)


def _side_by_side(pair: Pair) -> np.ndarray:
    """The references and the target, from left to right, uint8 (F,h,w,3) with even sides for players."""
    frames, height, width = pair.target.shape[:3]
    scale = min(1.0, CLIP_HEIGHT / height)
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    columns = []
    for clip in (*pair.references, pair.target):
        numbers = simultaneous_frames(frames, len(clip))
        columns.append(np.stack([cv2.resize(clip[i], size, interpolation=cv2.INTER_AREA) for i in numbers]))
    return np.concatenate(columns, axis=2)


def _work(sample: ClipSample, config: Config) -> Work:
    """The work of the whole preparation, judged from the clips that were probed."""
    counts, each = sample.windows(config.data), sample.pixels_per_window(config.data)
    windows = sum(counts.values())
    captions = {caption for clip in sample.listed if (caption := _caption_or_none(clip, config)) is not None}
    used = min(len(captions), windows)
    texts = min(used + windows // SHARD_CLIPS, windows)  # a clip at the border of two shards has its text in both
    fixed = round((windows - counts["train"]) * each)
    return Work(windows, round(windows * each), len(sample.listed), used, texts, fixed)


def _caption_or_none(clip: Clip, config: Config) -> str | None:
    try:
        return caption_of(clip, config)
    except ValueError:  # its row lacks a column: the clip will be dropped
        return None


def _show(
    folder: Path, pairs: list[MeasuredPair], cost: Cost, sample: ClipSample, config: Config, reason: str | None
) -> None:
    """Print the windows, the estimate and where to look."""
    columns = (Column("window", overflow="fold"), "size", "MB", "checks")
    console, table = make_console(), Table(*columns, title="pairs of the preview")
    for measured in pairs:
        frames, height, width = measured.pair.target.shape[:3]
        verdict = measured.report.reason or measured.report.verdict
        table.add_row(measured.pair.key, f"{width}x{height}x{frames}", f"{measured.pair_bytes / MB:.3g}", verdict)
    console.print(table)
    for clip in sample.dropped:
        console.print(f"dropped: {clip['clip']}: {clip['reason']}", soft_wrap=True)
    if reason:
        console.print(f"not encoded by the VAE: {reason}", soft_wrap=True)
    without = sum(not clip.caption for clip in sample.listed) if config.data.prompt is None else 0
    if without:
        by = "gets one from data.captioner" if config.data.captioner else "is used with the trigger alone"
        console.print(f"{without} of {len(sample.listed)} clips have no caption; each of them {by}", soft_wrap=True)
    work, machine = _work(sample, config), Machine.here(config)
    result = estimate(cost, work, machine)
    show_estimate(cost, work, machine, result)
    require_room(result, machine, config)
