"""Several processes prepare one data set: each makes its share of the shards, and the last one the index and report.

A shard belongs to a share by its position in the plan, which follows from the settings and the clips. Shares write to
one data.root at the same time. They hold a shared lock on it; index and report need the exclusive one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from iclora_train.config.share import Share
from iclora_train.core.atomic_files import exclusive, shared
from iclora_train.data.shard_index import is_written

T = TypeVar("T")
IN_PROGRESS = "in-progress"  # folder in data.root that is removed when the index is written: locks and lost windows
# of the shares, and what is known of the clips


def share_folder(root: Path, share: Share) -> Path:
    """The folder of a share in data.root."""
    return root / IN_PROGRESS / f"share-{share.number}-of-{share.count}"


@contextmanager
def writing_share(root: Path, share: Share) -> Iterator[None]:
    """Be the only process that writes this share of data.root, beside the processes of the other shares."""
    with shared(root), exclusive(share_folder(root, share), "start each share once"):
        yield


def own_shards(plan: dict[str, T], share: Share | None) -> dict[str, T]:
    """The part of a plan, by name of the shard, that a share writes; None: all."""
    return {shard: of for i, (shard, of) in enumerate(plan.items()) if share is None or share.owns(i)}


def lost_files(root: Path, share: Share | None) -> tuple[Path, Sequence[Path]]:
    """The file of lost windows that this process writes, and those of the shares that it takes over."""
    if share is not None:
        return share_folder(root, share) / "lost.json", ()
    return root / "pairs" / "lost.json", sorted(root.glob(f"{IN_PROGRESS}/share-*/lost.json"))


def show_share(root: Path, share: Share, plan: Iterable[str]) -> bool:
    """Print which shards the share has written. Returns whether all shards are written."""
    shards = list(plan)
    print(f"share {share}: {len(own_shards(dict.fromkeys(shards), share))} of {len(shards)} shards are finished")
    if share.count > len(shards):
        print(f"{share.count - len(shards)} of {share.count} shares have no shard: ask for {len(shards)} at most")
    missing = [shard for shard in shards if not is_written(root, shard)]
    if missing:
        print(f"{len(missing)} shards of other shares are missing; the last share to finish writes the index")
    return not missing


def remove_progress(root: Path) -> None:
    """Remove the folder IN_PROGRESS, when the index is written."""
    shutil.rmtree(root / IN_PROGRESS, ignore_errors=True)
