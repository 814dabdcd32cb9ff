"""Linked things are in one group, in the order of the nodes."""

from __future__ import annotations

import itertools
import random

from iclora_train.core.groups import connected


def test_groups_are_those_that_the_links_reach() -> None:
    """Compared with a search along the links, for random graphs."""
    rng = random.Random(0)
    for _ in range(50):
        nodes = list(range(12))
        links = [(rng.choice(nodes), rng.choice(nodes)) for _ in range(rng.randrange(12))]
        reached = {(a, a) for a in nodes} | {pair for a, b in links for pair in ((a, b), (b, a))}
        for middle, a, b in itertools.product(nodes, nodes, nodes):  # Warshall's transitive closure
            if (a, middle) in reached and (middle, b) in reached:
                reached.add((a, b))
        expected = dict.fromkeys(tuple(b for b in nodes if (a, b) in reached) for a in nodes)
        assert connected(nodes, links) == [list(group) for group in expected]


def test_links_through_other_things_connect() -> None:
    assert connected(["b", "a", "c"], [("a", "recording 1"), ("c", "recording 1")]) == [["b"], ["a", "c"]]
