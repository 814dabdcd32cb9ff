"""Settings of `generate` with an item for each adapter or for each reference: a single value holds for all of them."""

from __future__ import annotations

from typing import Any

from iclora_train.config import require

LARGEST = 1000  # strength; excludes infinity and NaN


def path_list(key: str, value: Any) -> list[str]:
    """One or several paths, as a list."""
    paths = value if isinstance(value, list) else [value]
    require(
        len(paths) > 0 and all(isinstance(path, str) and path for path in paths),
        f"{key}={value} must be a path or a list of paths",
    )
    return paths


def reference_list(value: Any) -> list[str | None]:
    """The path of each reference, null for one that is left out."""
    paths = value if isinstance(value, list) else [value]
    path_list("reference", [path for number, path in enumerate(paths) if path is not None or number == 0])
    require(paths[-1] is not None, f"reference={value} ends with null: leave it out")
    return paths


def number_list(key: str, value: Any, subject: str, count: int) -> list[float]:
    """One number for each of `count` subjects. subject: the setting `adapter` or `reference`."""
    values = value if isinstance(value, list) else [value] * count
    require(
        all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < LARGEST for n in values),
        f"{key}={value} must be a number below {LARGEST} or a list of such numbers",
    )
    message = f"{key}={value} has {len(values)} numbers, and {subject} has {count}: give one for each"
    require(len(values) == count, message)
    return [float(number) for number in values]


def strength_list(key: str, value: Any, count: int) -> list[float | None]:
    """One strength or null for each of `count` references."""
    values = value if isinstance(value, list) else [value] * count
    numbers = [0.0 if value is None else value for value in values]
    known = number_list(key, numbers if None in values else value, "reference", count)
    require(all(0 <= number <= 1 for number in known), f"{key}={value} must lie in [0, 1]")
    return [None if value is None else number for value, number in zip(values, known, strict=True)]


def frame_list(value: Any, count: int) -> list[int | None] | None:
    """One number of a frame or null for each of `count` references; None if nothing is set."""
    if value is None:
        return None
    frames = value if isinstance(value, list) else [value] * count
    require(
        all(frame is None or type(frame) is int for frame in frames),
        f"reference_frame={value} must be the number of a frame, e.g. -1 for the last, or a list of numbers and nulls",
    )
    require(
        len(frames) == count,
        f"reference_frame={value} has {len(frames)} frames, and reference has {count}: give one for each (null: none)",
    )
    return frames


def mask_list(value: Any, count: int) -> list[str | None]:
    """One mask or null for each of `count` references."""
    masks = value if isinstance(value, list) else [value] * count
    require(
        all(mask is None or isinstance(mask, str) for mask in masks),
        f"attention_mask={value} must be null, a path, or a list of paths and nulls",
    )
    require(
        len(masks) == count,
        f"attention_mask={value} has {len(masks)} masks, and reference has {count}: give one for each (null: none)",
    )
    return masks
