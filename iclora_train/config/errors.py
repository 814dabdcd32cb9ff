"""ConfigError, checks that raise it, and the text of other errors. No torch import."""

from __future__ import annotations


class ConfigError(ValueError):
    """Settings that cannot work. The message names the key and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message`, which starts with the key, unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    require(value in choices, f"{key}={value!r} is not one of {', '.join(choices)}")


def frame_from_start(key: str, frame: int, frames: int) -> int:
    """The frame of a clip of `frames` frames that setting `key` names; a negative one counts from the end.

    ConfigError for a frame that the clip does not have.
    """
    require(
        -frames <= frame < frames,
        f"{key}={frame} does not exist in a clip of {frames} frames: choose one from {-frames} to {frames - 1}",
    )
    return frame if frame >= 0 else frames + frame


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
