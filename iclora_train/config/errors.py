"""The error that a user's settings raise, and two checks that raise it. No torch import."""

from __future__ import annotations


class ConfigError(ValueError):
    """The user's settings cannot work; the message names the key and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` (start it with the key) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    require(value in choices, f"{key}={value!r} is not one of {', '.join(choices)}")
