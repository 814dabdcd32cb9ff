"""The engine protocol: map tasks over workers and collect the ones that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from iclora_train.config import ConfigError

T = TypeVar("T")


R = TypeVar("R")


E = TypeVar("E")


MAX_ATTEMPTS = 2  # a worker may have died of something else than its item


@dataclass(frozen=True)
class Failure:
    """In place of a result: why there is none."""

    reason: str


class Engine(Protocol):
    """Does work for this process; `close` ends all that it started."""

    asynchronous: bool  # whether the work goes on while this process does something else

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | Failure]:
        """`function` of each item, in order; Failed where the process that worked on it died twice.

        Items are taken only a little ahead of the results. A ConfigError of `function` is raised here.
        """
        ...

    def encoders(self, make: Callable[[], E]) -> list[E]:
        """What `make` gives, once for each GPU that the engine has."""
        ...

    def close(self) -> None:
        """Stop at once what is still being worked on."""
        ...


def call(function: Callable[[Any], Any], item: object) -> object:
    """`function(item)`, or the ConfigError that it raised: an exception loses its message's form between processes."""
    try:
        return function(item)
    except ConfigError as error:
        return error


def unwrap(reply: Any) -> Any:
    """What `answer` gave: the result, or its ConfigError raised."""
    if isinstance(reply, ConfigError):
        raise reply
    return reply
