"""ConfigError, two checks that raise it, and the text of other errors. No torch import."""

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


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
