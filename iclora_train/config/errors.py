"""ConfigError, and two checks that raise it. No torch import."""

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
