"""Fingerprints of shards and adapters: the settings that made them, as JSON and hashes that can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from iclora_train.config import Config
from iclora_train.config.audio_reference import AudioReference
from iclora_train.config.conditions import NEW_KEYS, data_mask
from iclora_train.config.places import is_drawn
from iclora_train.config.reference_use import KEYS as USE_KEYS
from iclora_train.config.reference_use import TASK_KEYS as TASK_USE_KEYS
from iclora_train.config.references import comparable_references

RUNTIME_KEYS = (
    "checkpoint",
    "vae",
    "connectors",
    "text_encoder",
    "audio_vae",
    "activation_checkpointing",
    "activation_budget",
    "activation_offload",
    "compile",
    "cuda_graphs",
    "weight_offload",
)  # keys of `model` that do not affect the adapter: paths of files, memory and speed
# keys that do not affect the content of shards
NOT_CONTENT = {
    "task": ("name", "family", "conditions", "reference_frame", "reference_slots", "video_given", *TASK_USE_KEYS),
    "data": ("clips", "references", "root", "sources", "batch_size", "tokens_per_batch", "workers", "keep"),
}

# frames of a target that a reference with a temporal factor S has; shards without this entry have 0, S, 2 S, ...
REFERENCE_FRAMES = "0, 1, 1 + S, 1 + 2 S, ..."
# keys of `data` newer than version 0.1: left out while they are null, so that its runs can be resumed
NEW_DATA_KEYS = ("hdr", "references", "sources", "split", "vae_precision", "sound")
# keys of `task` newer than version 0.1, and the values with which they change nothing: left out while they have them
NEW_TASK_KEYS: dict[str, object] = {
    "conditions": [],
    "reference_frame": None,
    "more_references": [],
    "reference_slots": False,
    "audio_reference": asdict(AudioReference()),
    "video_given": False,
    **dict.fromkeys(TASK_USE_KEYS),
}
# keys of `flow` newer than version 0.1, and the values with which they change nothing: left out while they have them
NEW_FLOW_KEYS = {"caption_dropout_p": 0.0, "preserve_base": False, "reference_noise": 0.0, "audio_weight": 1.0}
# keys of `model.lora` newer than version 0.1: left out while they have their defaults, likewise
NEW_LORA_KEYS = ("rank_pattern", "alpha_pattern", "lr_pattern", "rslora")


def content_settings(config: Config) -> dict[str, Any]:
    """The sections `task` and `data` without the keys of NOT_CONTENT; with a temporal factor, also REFERENCE_FRAMES;
    with a reference at a frame that is drawn for each clip, also `reference_frame`; with a mask from the data, also
    `data_mask`; with an audio reference, its source."""
    sections = {"task": asdict(config.task), "data": asdict(config.data)}
    for section, keys in NOT_CONTENT.items():
        for key in keys:
            del sections[section][key]
    mask = data_mask(config.task.conditions)
    if mask is not None:
        sections["task"]["data_mask"] = mask.content()
    if is_drawn(config.task.reference_frame):  # the pixels depend on the frame that is drawn
        sections["task"]["reference_frame"] = config.task.reference_frame
    more = comparable_references(sections["task"].pop("more_references"))
    if more:
        sections["task"]["more_references"] = more
    del sections["task"]["audio_reference"]
    if config.task.reference_sound is not None:
        sections["task"]["audio_reference"] = config.task.audio_reference.content()
    if any(task.reference_temporal_scale > 1 for task in config.task.for_references()):
        sections["task"]["reference_frames"] = REFERENCE_FRAMES
    return plain(sections)


def settings_of_pixels(settings: dict[str, Any]) -> dict[str, Any]:
    """The `content_settings` that the pixels of pairs depend on: without the precision in which the VAE encodes."""
    return {**settings, "data": {key: value for key, value in settings["data"].items() if key != "vae_precision"}}


def config_hash(config: Config) -> str:
    """Short hash of the settings that affect the adapter, apart from the number of batches per step, which depends on
    how a run is started. It does not depend on paths."""
    sections = asdict(config)
    hashed = {key: sections[key] for key in ("task", "model", "data", "flow", "optim", "seed")}
    for key in ("clips", "references", "root", "workers", "keep"):
        del hashed["data"][key]
    hashed["model"] = comparable_model(hashed["model"])
    hashed["data"] = comparable_data(config, hashed["data"])
    hashed["flow"] = {key: value for key, value in hashed["flow"].items() if NEW_FLOW_KEYS.get(key) != value}
    hashed["task"] = comparable_task(hashed["task"])
    hashed["max_steps"] = config.trainer.get("max_steps")
    return digest(hashed)[:16]


def comparable_data(config: Config, section: dict[str, Any]) -> dict[str, Any]:
    """The section `data`, or a part of it, without unset NEW_DATA_KEYS, and with the share of each of data.sources by
    its name: the contents of the sources are compared by the digest of the shards, wherever they lie."""
    section = without_unset(section, NEW_DATA_KEYS)
    if config.data.sources is not None:
        section["sources"] = {source.label: source.share for source in config.data.sources}
    return section


def comparable_task(section: dict[str, Any]) -> dict[str, Any]:
    """The section `task` without unset NEW_TASK_KEYS, so that adapters keep the hash of version 0.1, and its
    conditions and further references without their unset newer keys."""
    conditions = [without_unset(entry, NEW_KEYS) for entry in section["conditions"]]
    more = [without_unset(entry, USE_KEYS) for entry in section.get("more_references", [])]
    section = {**section, "conditions": conditions, "more_references": more}
    return {key: value for key, value in section.items() if key not in NEW_TASK_KEYS or value != NEW_TASK_KEYS[key]}


def comparable_model(section: dict[str, Any]) -> dict[str, Any]:
    """The section `model` without RUNTIME_KEYS, unset NEW_LORA_KEYS and an audio stream that training does not use."""
    lora = {key: value for key, value in section["lora"].items() if value or key not in NEW_LORA_KEYS}
    unused = ("audio",) if section.get("audio") != "on" else ()
    return {key: value for key, value in {**section, "lora": lora}.items() if key not in (*RUNTIME_KEYS, *unused)}


def without_unset(section: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The section of the settings without those of `keys` that are null."""
    return {key: value for key, value in section.items() if value is not None or key not in keys}


def plain(value: Any) -> Any:
    """The value after a round trip through JSON (tuples become lists)."""
    return json.loads(json.dumps(value))


def digest(value: object) -> str:
    """sha256 of a JSON-able value. Equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(old: object, new: object, name: str = "") -> list[str]:
    """`key: old -> new` for every leaf that differs between two JSON-able values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))]
    return [] if old == new else [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    """A value in a message."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
