"""The engine protocol: map a function over items, on workers, and report the items that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from iclora_train.config import ConfigError

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E")

MAX_ATTEMPTS = 2  # per item: a worker may have died for another reason than its item
CALLS_PER_ENCODER = 2  # at the same time: the VAE encodes the batch of one while the other copies or packs its batch


@dataclass(frozen=True)
class Failure:
    """Takes the place of a missing result, with the reason."""

    reason: str


@dataclass
class Task:
    """An item of `Engine.map`, its number, and the number of processes that died on it."""

    number: int
    item: Any
    deaths: int = 0


class Engine(Protocol):
    """Runs work for this process. `close` stops everything that the engine started."""

    asynchronous: bool  # whether work continues while this process does something else

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """`function` of each item, in order. The result is a Failure if the worker process died on every attempt.

        Items are read only a little ahead of the results. A ConfigError of `function` is raised here.
        """
        ...

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """The result of `make`, once for each GPU of the engine. CALLS_PER_ENCODER threads call it at the same time."""
        ...

    def close(self) -> None:
        """Stop all running work at once."""
        ...


def call(function: Callable[[Any], Any], item: object) -> object:
    """`function(item)`, or its ConfigError as a value, because exceptions lose their message between processes."""
    try:
        return function(item)
    except ConfigError as error:
        return error


def unwrap(reply: Any) -> Any:
    """The result in a reply of `call`. Raises the reply if it is a ConfigError."""
    if isinstance(reply, ConfigError):
        raise reply
    return reply
