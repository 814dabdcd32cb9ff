"""Groups of things that are linked, directly or through others (union-find)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def connected(nodes: Iterable[T], links: Iterable[tuple[T, T]]) -> list[list[T]]:
    """The groups of `nodes`, in the order of their first nodes; the nodes of a group are in their order, too.

    A link may name things that are not in `nodes`: they connect, and are left out.
    """
    parent: dict[T, T] = {}

    def root(node: T) -> T:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in links:
        parent[root(a)] = root(b)
    groups: dict[T, list[T]] = defaultdict(list)
    for node in nodes:
        groups[root(node)].append(node)
    return list(groups.values())
