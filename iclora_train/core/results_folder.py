"""Where an evaluation writes its results: a folder for each protocol, so that none overwrites those of another one.

The protocol is what decides which clips are measured: windows, seeds, strengths, split, budget and sampling. The full
protocol writes to the plain folder (`eval`), `eval=quick` to `eval-quick`. A folder that already holds results of the
same protocol is used again, also one of an earlier version, where every protocol wrote to the plain folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iclora_train.config import Config, Eval
from iclora_train.core.fingerprint import digest, plain
from iclora_train.core.records import DamagedFileError, read_json

PROTOCOL_KEYS = ("windows", "seeds", "strengths", "split")  # of `eval`
OF_EACH = "reference_strengths"  # of `eval`, newer than the others: part of the protocol where it is not empty
KNOWN = {  # name in the folder -> values of PROTOCOL_KEYS; conf/eval has the same
    "full": {key: getattr(Eval(), key) for key in PROTOCOL_KEYS},
    "quick": {"windows": 12, "seeds": [0], "strengths": [1.0, 0.25, 0.0], "split": "heldout"},
}
MAX_LABEL = 100  # characters of eval.label in the name of a folder


def requested(config: Config) -> dict[str, Any]:
    """What was asked for, before a budget reduces it: the entry `plan.requested` of scores.json."""
    of_each = {OF_EACH: strengths} if (strengths := config.eval.reference_strengths) else {}
    protocol = {key: getattr(config.eval, key) for key in PROTOCOL_KEYS}
    return plain({**protocol, **of_each, "sample": asdict(config.sample)})


def results_folder(config: Config, folder: Path) -> Path:
    """The folder of results. folder: that of the full protocol, e.g. `runs/deblur-nano/eval`."""
    if config.eval.label:
        return folder.with_name(f"{folder.name}-{_safe(config.eval.label)}")
    if _stored(folder) is not None and _matches(folder, config):
        return folder
    candidates = list(_candidates(config, folder))
    return next((path for path in candidates if _stored(path) is None or _matches(path, config)), candidates[-1])


def _candidates(config: Config, folder: Path) -> Iterator[Path]:
    """The folders that this protocol may use, the preferred one first. The last one belongs to it alone."""
    request = requested(config)
    values = {key: request[key] for key in PROTOCOL_KEYS}
    name = None if OF_EACH in request else next((name for name, known in KNOWN.items() if known == values), None)
    budget = f"-{config.eval.budget}" if config.eval.budget_seconds else ""
    if name == "full" and not budget:
        yield folder
    if name is not None:
        suffix = budget if name == "full" and budget else f"-{name}{budget}"
        yield folder.with_name(folder.name + suffix)
    size = name or f"{values['windows']}x{len(values['seeds'])}"
    yield folder.with_name(f"{folder.name}-{size}{budget}-{digest(request)[:6]}")


def _stored(folder: Path) -> dict[str, Any] | None:
    """scores.json in a folder; None if there is none, or if it is damaged."""
    try:
        return read_json(folder / "scores.json", dict[str, Any], "") if (folder / "scores.json").exists() else None
    except DamagedFileError:
        return None


def _entry(entries: dict[str, Any], key: str) -> dict[str, Any]:
    """The dictionary at a key; empty if it is missing, or is something else in a damaged file."""
    value = entries.get(key)
    return value if isinstance(value, dict) else {}


def is_of_videos(folder: Path, videos: Path) -> bool:
    """Whether a folder of results is free, or holds those of this folder of videos."""
    scores = _stored(folder)
    judged = None if scores is None else _entry(scores, "adapter").get("path")
    return scores is None or (isinstance(judged, str) and Path(judged).resolve() == videos.resolve())


def _matches(folder: Path, config: Config) -> bool:
    """Whether the results in a folder are those of this protocol. Settings that a file of an earlier version does not
    name count as equal. eval.budget=auto takes results of any budget."""
    scores = _stored(folder) or {}
    settings, plan = _entry(_entry(scores, "provenance"), "settings"), _entry(scores, "plan")
    stored = _entry(plan, "requested") or {**_entry(settings, "eval"), "sample": _entry(settings, "sample")}
    stored, protocol = {OF_EACH: [], **stored}, {OF_EACH: [], **requested(config)}
    sampling = protocol.pop("sample")
    same = all(stored.get(key, value) == value for key, value in protocol.items())
    same = same and all(_entry(stored, "sample").get(key, value) == value for key, value in sampling.items())
    return same and (config.eval.budget == "auto" or plan.get("budget") == config.eval.budget_seconds)


def _safe(label: str) -> str:
    """A label with only the characters that every file system accepts."""
    text = re.sub(r"[^\w.=-]+", "-", label).strip("-.") or "label"
    return text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}-{digest(text)[:6]}"
