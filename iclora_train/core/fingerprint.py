"""What made a shard set or an adapter, as plain JSON that can be compared: settings, sources, base."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from iclora_train.config import Config

RUNTIME_KEYS = (
    "checkpoint",
    "vae",
    "connectors",
    "text_encoder",
    "activation_checkpointing",
    "activation_budget",
    "activation_offload",
    "compile",
    "cuda_graphs",
    "weight_offload",
)  # of `model`: where files are, how memory goes
NOT_CONTENT = {"task": ("name", "family"), "data": ("clips", "root", "batch_size", "tokens_per_batch", "workers")}


def content_settings(config: Config) -> dict[str, Any]:
    """The sections `task` and `data` without the keys that do not change what is in the shards."""
    sections = {"task": asdict(config.task), "data": asdict(config.data)}
    for section, keys in NOT_CONTENT.items():
        for key in keys:
            del sections[section][key]
    return plain(sections)


def config_hash(config: Config) -> str:
    """Short hash of the settings that shape the adapter, wherever its data lies: the same hash, the same training."""
    every = asdict(config)
    chosen = {key: every[key] for key in ("task", "model", "data", "flow", "optim", "seed")}
    for section, places in (("data", ("clips", "root", "workers")), ("model", RUNTIME_KEYS)):
        for place in places:
            del chosen[section][place]
    chosen["max_steps"] = config.trainer.get("max_steps")
    return digest(chosen)[:16]


def plain(value: Any) -> Any:
    """A value as it is after a trip through JSON (tuples become lists)."""
    return json.loads(json.dumps(value))


def digest(value: object) -> str:
    """sha256 of a JSON-able value; equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(old: object, new: object, name: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two JSON-able values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))]
    return [] if old == new else [f"{name}: {old} -> {new}"]
