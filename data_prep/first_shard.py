"""After the first shard of a preparation: the time that is left and the size of the result, from what was made."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.clips.windows import Window
from data_prep.estimate import free_bytes, size_text, time_text
from iclora_train.core.console import make_console
from iclora_train.data.shard_index import KINDS, is_written
from iclora_train.data.shard_sample import Members
from iclora_train.data.shards import ShardWriter


class AnnouncingWriter(ShardWriter):
    """Writes latent shards, and prints one line as soon as a shard of this run is finished.

    plan: the windows of every shard. The time counts from the creation of the writer.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], plan: dict[str, list[Window]]) -> None:
        super().__init__(folder, "latents", fingerprint)
        self._begin, self._printed = time.monotonic(), False
        self._to_write = {shard: len(group) for shard, group in plan.items() if not self.has(shard)}

    def write(self, shard: str, samples: Iterable[Members]) -> None:
        """See ShardWriter.write."""
        super().write(shard, samples)
        if not self._printed:
            self._announce()

    def _announce(self) -> None:
        """Print the line, unless nothing is finished yet, or everything."""
        root = self.folder.parent
        finished = [shard for shard in self._to_write if is_written(root, shard)]
        count = sum(self._to_write[shard] for shard in finished)
        left = sum(self._to_write.values()) - count
        if not count or not left:
            return
        self._printed = True
        sizes = {kind: sum((root / kind / shard).stat().st_size for shard in finished) / count for kind in KINDS}
        seconds, needed, free = time.monotonic() - self._begin, sum(sizes.values()) * left, free_bytes(root)
        each = ", ".join(f"{kind} {size_text(size)}" for kind, size in sizes.items())
        done = f"{count} windows took {time_text(seconds)}; one has {each}"
        rest = f"{left:,} more: about {time_text(seconds / count * left)} and {size_text(needed)}"
        make_console(stderr=True).print(f"{done}. {rest}; free: {size_text(free)}", soft_wrap=True, highlight=False)
        if needed > free:
            print(f"warning: the disk of {root} will not hold all shards: make room", file=sys.stderr)
