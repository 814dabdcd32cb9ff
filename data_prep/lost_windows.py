"""Windows that could not be made: the file `lost.json` next to the pair shards, and the error at the end of the run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iclora_train.config import ConfigError
from iclora_train.core.atomic_files import write_json
from iclora_train.core.records import Count, FileName, Text, read_json
from iclora_train.data.shards import ShardWriter


@dataclass(frozen=True)
class _LostWindows:
    """An entry of lost.json: some windows of a clip that failed for one reason."""

    clip: Text
    shard: FileName
    windows: list[Count]
    reason: Text


class LostWindowsError(ConfigError):
    """The shards are finished, but some planned windows are missing."""


class LostWindows:
    """Windows of the plan that failed, with the reasons. `lost.json` keeps them until their pair shard is deleted.

    path: the file. others: files of other processes whose entries belong to the same pair shards.
    """

    def __init__(self, pairs: ShardWriter, path: Path, others: Sequence[Path] = ()) -> None:
        self.path = path
        both = f"{pairs.folder} and {pairs.folder.with_name('latents')}"
        remedy = f"delete {both} to make all windows again, or only this file to do without the windows that it lists"
        paths = [path for path in (self.path, *others) if path.exists()]
        entries = [asdict(entry) for path in paths for entry in read_json(path, list[_LostWindows], remedy)]
        self.entries: list[dict[str, Any]] = []
        for entry in entries:
            if pairs.has(entry["shard"]) and entry not in self.entries:
                self.entries.append(entry)

    def add(self, shard: str, clip: str, windows: Iterable[int], reason: str) -> None:
        """Record the windows of a clip that failed. The file is written before the shard."""
        self.entries.append({"clip": clip, "shard": shard, "windows": list(windows), "reason": reason})
        write_json(self.path, self.entries)

    def forget(self, shards: Collection[str]) -> None:
        """Forget the windows of pair shards that are made again."""
        self.entries = [entry for entry in self.entries if entry["shard"] not in shards]

    def raise_if_any(self, shards: Sequence[str]) -> None:
        """LostWindowsError if windows are missing; otherwise remove the file. shards: the plan, in order."""
        position = {shard: i for i, shard in enumerate(shards)}
        self.entries.sort(key=lambda entry: position.get(entry["shard"], len(shards)))
        if not self.entries:
            self.path.unlink(missing_ok=True)
            return
        write_json(self.path, self.entries)
        first = self.entries[0]
        clips = len({entry["clip"] for entry in self.entries})
        windows = sum(len(entry["windows"]) for entry in self.entries)
        raise LostWindowsError(
            f"{clips} clips failed while pairs were made, {windows} windows are missing ({first['clip']}: "
            f"{first['reason']}); {self.path} lists all. The shards are finished without them and can be used. To try "
            f"again, delete {self.path.parent} and {self.path.parent.with_name('latents')} and run the same command"
        )
