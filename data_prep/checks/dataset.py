"""The checks beyond a single pair: clips of two splits that are alike, what the VAE makes of pairs; and the end of a
preparation, at which all findings are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from data_prep.checks import (
    CheckLog,
    Report,
    check_vae,
    evenly_spaced,
    find_duplicates,
    frames_to_hash,
    make_signature,
    require_no_failure,
    write_results,
)
from data_prep.clips.probed_clip import ProbedClip
from iclora_train.config import Config
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.device import default_device
from iclora_train.core.progress import progress_bar
from iclora_train.data.shards import ShardSet
from iclora_train.data.video import read_clip
from iclora_train.ltx2.base_model import BaseModel


def drop_duplicates(
    usable: list[ProbedClip], sources: dict[str, Any], notes: CheckLog, config: Config
) -> list[ProbedClip]:
    """The clips without those that show the same as one of another split; what was found is noted."""
    if not notes.has("clips"):
        signatures = []
        with progress_bar("comparing clips", len(usable), "clip") as bar:
            for material in bar.track(usable):
                clip, info = material.clip, material.info
                frames = read_clip(clip.path, set(frames_to_hash(info.frames, info.fps)))
                signatures.append(make_signature(clip.id, clip.split, sources[clip.id]["video"], frames))
        notes.write("clips", find_duplicates(signatures, config.checks))
    twice = {report.clip for report, _ in notes.read("clips") if not report.kept}
    return [material for material in usable if material.clip.id not in twice]


@torch.inference_mode()
def check_pairs_with_vae(pairs: ShardSet, base: BaseModel, notes: CheckLog, config: Config) -> None:
    """Note what the VAE makes of some of the pairs."""
    numbers = evenly_spaced(len(pairs), config.checks.vae_pairs)
    device = default_device()
    reports = []
    if numbers:
        vae = base.vae().to(device)
        with progress_bar("pairs through the VAE", len(numbers), "clip") as bar:
            for i in bar.track(numbers):
                pair, sample = pairs.read_pair(i), pairs.samples[i]
                found = check_vae(pair, vae.encode, vae.decode, config.checks, device)
                reports.append(Report(pair.key, sample.source, sample.split, pair.caption, tuple(found)))
    notes.add(reports)


def finish_checks(root: Path, notes: CheckLog, report: dict[str, Any], config: Config) -> None:
    """Everything that was found: on the screen, in report.json, checks.jsonl and contact.html. ConfigError when a check
    that must not object did."""
    totals = write_results(root, notes, report, config)
    write_report(root, report | {"checks": totals})
    require_no_failure(totals, root)


def read_check_totals(root: Path) -> dict[str, Any] | None:
    """What the checks found, if an earlier run came to its end: the report gets it last."""
    path = root / "report.json"
    found: dict[str, Any] | None = json.loads(path.read_text()).get("checks") if path.exists() else None
    return found


def write_report(root: Path, report: dict[str, Any]) -> None:
    """Write root/report.json."""
    with write_atomic(root / "report.json") as file:
        file.write(json.dumps(report, indent=1).encode())
