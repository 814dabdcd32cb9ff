"""Settings of `data.sources`: several sets of clips that one run mixes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from iclora_train.config.errors import require
from iclora_train.config.paths import expand_home

_EXAMPLE = "e.g. data.sources='[{clips: /a, weight: 2}, {root: shards/b, weight: 1}]'"


@dataclass
class DataSource:
    """One set of clips. Either `clips` or `root` is set."""

    clips: str | None = None  # as data.clips; prepared into the folder <name> of data.root
    references: str | None = None  # as data.references, of a source with clips
    root: str | None = None  # data.root of another preparation, which is used as it is
    name: str | None = None  # letters, digits and _; null: from the last folder of its path
    weight: float | None = None  # share of the windows of an epoch, relative to the other sources' weights; null: 1
    repeats: int | None = None  # without weights: how many times every window of the source occurs in an epoch; null: 1

    def __post_init__(self) -> None:
        require(
            (self.clips is None) != (self.root is None),
            f"data.sources: a source needs either clips or root, and one has clips={self.clips} root={self.root}; "
            f"{_EXAMPLE}",
        )
        require(
            self.references is None or self.root is None,
            f"data.sources: the source with root={self.root} has references={self.references}: they go with clips",
        )
        self.clips = None if self.clips is None else expand_home(self.clips)
        self.root = None if self.root is None else expand_home(self.root)
        self.name = _name_of(self.clips or self.root or "") if self.name is None else self.name
        require(
            re.fullmatch(r"[A-Za-z0-9_]{1,40}", self.name) is not None,
            f"data.sources: name={self.name!r} may only hold letters, digits and _, at most 40",
        )
        weight, where = self.weight, f"data.sources: {self.name}"
        require(
            weight is None or (weight > 0 and math.isfinite(weight)),
            f"{where}: weight={weight} must be a number above 0",
        )
        require(self.repeats is None or self.repeats >= 1, f"{where}: repeats={self.repeats} must be at least 1")
        require(weight is None or self.repeats is None, f"{where} has weight and repeats: give one of them")

    @property
    def label(self) -> str:
        """The name, which is never null after the checks."""
        assert self.name is not None
        return self.name

    @property
    def share(self) -> str:
        """Its part of an epoch: `weight 2` or `repeats 1`."""
        return f"weight {self.weight:g}" if self.weight is not None else f"repeats {self.repeats or 1}"


def _name_of(path: str) -> str:
    """A name from the last folder of a path without wildcards: `shards/canny-ltx2_3` -> `canny_ltx2_3`, `/own/list.csv`
    -> `own`."""
    parts = [part for part in path.split("/") if part and not re.search(r"[*?\[{]", part)]
    is_file = len(parts) > 1 and re.search(r"\.(csv|tsv|jsonl?|toml|tar)$", parts[-1]) is not None
    name = re.sub(r"[^A-Za-z0-9_]+", "_", parts[-2 if is_file else -1] if parts else "")
    return name.strip("_")[-40:] or "source"


def check_sources(sources: Sequence[DataSource]) -> list[DataSource]:
    """The sources by name, each with a weight if any has one, else with repeats. Their order has no effect on a run.

    ConfigError for two of one name, and for weights beside repeats.
    """
    require(len(sources) > 0, f"data.sources is empty: name a source, {_EXAMPLE}, or null")
    repeated = [name for name, count in Counter(source.label for source in sources).items() if count > 1]
    require(
        not repeated,
        f"data.sources: two sources are called {', '.join(repeated)}: give each a name, "
        "e.g. {clips: /a/videos, name: a}",
    )
    weighted = [source.label for source in sources if source.weight is not None]
    repeating = [source.label for source in sources if source.repeats is not None]
    require(
        not (weighted and repeating),
        f"data.sources: {', '.join(weighted)} has a weight and {', '.join(repeating)} has repeats: give all sources "
        "weights (shares of an epoch), or all of them repeats (times that each window occurs in an epoch)",
    )
    for source in sources:
        if weighted:
            source.weight = source.weight or 1.0
        else:
            source.repeats = source.repeats or 1
    return sorted(sources, key=lambda source: source.label)


def windows_per_epoch(available: Sequence[int], sources: Sequence[DataSource]) -> list[int]:
    """How many train windows of each source an epoch has, of the `available` ones.

    With repeats r_k: r_k times all N_k. With weights w_k: an epoch has as many windows as all sources together, and
    source k the share w_k / sum(w) of them, at least one.
    """
    if all(source.weight is None for source in sources):
        return [count * (source.repeats or 1) for count, source in zip(available, sources, strict=True)]
    return apportion(sum(available), [source.weight or 1.0 for source in sources])


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """`total` divided in proportion to `shares` into whole numbers of at least 1, by the largest remainder.

    The numbers add up to `total`, unless it is too small for at least one each.
    """
    exact = [total * share / math.fsum(shares) for share in shares]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return [max(1, count) for count in counts]
