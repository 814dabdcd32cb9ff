"""The conditions of a task (`task.conditions`) in an adapter's metadata, and in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from iclora_train.adapters.references import read_json
from iclora_train.config import ConfigError
from iclora_train.config.conditions import Condition, check_conditions, data_mask

CONDITIONS = "target_conditions"  # key of the metadata
SETTINGS = {  # settings of `generate`, any of which gives a condition of this kind
    "first_frame": ("first_frame", "prefix"),
    "prefix": ("prefix",),
    "suffix": ("suffix",),
    "mask": ("source",),
}


def conditions_metadata(conditions: Sequence[Condition]) -> dict[str, str]:
    """The entry of the metadata; none without conditions."""
    return {CONDITIONS: json.dumps([condition.as_dict() for condition in conditions])} if conditions else {}


def conditions_of(metadata: Mapping[str, str]) -> list[Condition]:
    """The conditions in the metadata. None for a text that this project has not written."""
    try:
        conditions = [Condition(**entry) for entry in read_json(metadata.get(CONDITIONS, "[]"))]
        check_conditions(conditions)
    except (ConfigError, ValueError, TypeError):
        return []
    return conditions


def in_words(condition: Condition) -> str:
    """A condition as part of a sentence, e.g. `the first 1 to 17 frames`."""
    share = "" if condition.p == 1 else f" (in {condition.p:.0%} of the training clips)"
    if condition.kind == "first_frame":
        return f"the first frame{share}"
    if condition.kind == "mask":
        if condition.source is not None:
            cells = {"any": "any pixel", "half": "half of the pixels", "all": "all pixels"}[str(condition.mode)]
            return f"all but the part that a mask shows (cells with {cells} in it){share}"
        low, high = condition.cover_bounds
        shapes = " or ".join(condition.shapes or [])
        return f"all but a part of {low:.0%} to {high:.0%} of the picture: {shapes}{share}"
    low, high = condition.frame_bounds
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"the {'first' if condition.kind == 'prefix' else 'last'} {count} frames{share}"


def other_mode(metadata: Mapping[str, str], mode: str) -> list[str]:
    """A line if the adapter was trained with masks of another mode than `regenerate_mode` of `generate`."""
    mask = data_mask(conditions_of(metadata))
    if mask is None or mask.mode == mode:
        return []
    return [f"the adapter was trained with masks of mode {mask.mode}: regenerate_mode={mask.mode}, here it is {mode}"]


def not_given(metadata: Mapping[str, str], settings: Collection[str]) -> list[str]:
    """A line for each usual condition of the adapter that `generate` is not given. settings: those that are set."""
    return [
        f"the adapter was trained with {in_words(condition)}: {SETTINGS[condition.kind][0]}=... gives it to this video"
        for condition in conditions_of(metadata)
        if condition.usual and not set(SETTINGS[condition.kind]) & set(settings)
    ]
