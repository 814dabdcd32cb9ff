"""VAE round trips of some pairs, and the final report of a preparation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from data_prep.checks import (
    CheckLog,
    Report,
    check_vae,
    evenly_spaced,
    read_totals,
    require_no_failure,
    write_results,
)
from iclora_train.config import Config
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.device import default_device
from iclora_train.core.progress import progress_bar
from iclora_train.core.records import DamagedFileError
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel


@torch.inference_mode()
def check_pairs_with_vae(pairs: ShardSet, base: BaseModel, log: CheckLog, config: Config) -> None:
    """Log the VAE round trip of some of the pairs."""
    numbers = evenly_spaced(len(pairs), config.checks.vae_pairs)
    device = default_device()
    reports = []
    if numbers:
        vae = base.vae().to(device)
        with progress_bar("pairs through the VAE", len(numbers), "clip") as bar:
            for i in bar.track(numbers):
                pair, sample = pairs.read_pair(i), pairs.samples[i]
                findings = check_vae(pair, vae.encode, vae.decode, config.checks, device)
                reports.append(Report(pair.key, sample.source, sample.split, pair.caption, tuple(findings)))
    log.add(reports)


def finish_checks(root: Path, log: CheckLog, report: dict[str, Any], config: Config) -> None:
    """Show all findings and write them to report.json, checks.jsonl and contact.html.

    ConfigError if a check with action=fail has a problem.
    """
    totals = write_results(root, log, report, config)
    write_report(root, report | {"checks": totals})
    require_no_failure(totals, root)


def read_check_totals(root: Path) -> dict[str, Any] | None:
    """Totals of the checks if an earlier run finished, else None: report.json receives the totals last.

    A damaged report.json is written again from the logs of the checks.
    """
    path = root / "report.json"
    if not path.exists():
        return None
    try:
        return read_totals(path)
    except DamagedFileError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def write_report(root: Path, report: dict[str, Any]) -> None:
    """Write root/report.json."""
    with write_atomic(root / "report.json") as file:
        file.write(json.dumps(report, indent=1).encode())
