"""Open the tar of a shard, and list its samples."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from iclora_train.core.records import from_json
from iclora_train.core.regular_files import open_regular
from iclora_train.data.shard_index import REMEDY, ShardError, ShardSample, split_of
from iclora_train.data.shard_sample import ClipRecord
from iclora_train.data.tar_members import FilePart, read_members, read_range


def open_shard(path: Path) -> io.BufferedReader:
    """Open a shard. ShardError when it is missing, no file, or cannot be read."""
    try:
        return open_regular(path)
    except FileNotFoundError as error:
        raise ShardError(f"{path} is missing: run data_prep again") from error
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from error


def scan_shard(path: Path) -> Iterator[tuple[ShardSample, bool]]:
    """The samples of a tar in order: runs of members with the same key. ShardError when the tar cannot be read.

    With each sample, whether another one holds some of its streams.
    """
    runs: dict[str, tuple[int, int, ClipRecord | None]] = {}  # key -> offset, end, record
    with open_shard(path) as file:
        try:
            for member in read_members(FilePart(file, 0, path.stat().st_size), whole=True):
                key, _, extension = member.name.partition(".")
                start, end, record = runs.get(key, (member.start, member.start, None))
                if end != member.start:
                    raise ValueError(f"the members of {key[:60]!r} are not in one place")
                if extension == "json":
                    record = from_json(read_range(file, member.data, member.size), ClipRecord)
                runs[key] = start, member.end, record
            for key, (start, end, record) in runs.items():
                if record is None:
                    raise ValueError(f"{key[:60]!r} has no json")
                crc = zlib.crc32(read_range(file, start, end - start))
                place = split_of(path.name), path.name, start, end - start, crc
                yield ShardSample(key, *place, record.bucket, record.source), bool(record.shared)
        except (ValueError, OSError) as error:
            raise ShardError(f"{path} is damaged ({error}): {REMEDY}") from error
