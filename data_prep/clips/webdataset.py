"""A webdataset of somebody else as clips: its tars are extracted once, and a list of their samples is written.

Everything that opens clips then reads regular files and a list, as from any other source.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from data_prep.clips.clip_list import SPLITS
from data_prep.clips.columns import NAMES, normalise
from data_prep.clips.folders import files_below, files_matching, split_pattern
from data_prep.clips.tar_samples import MEDIA, Extracted, Sample, extract, read_record, safe_name
from iclora_train.config import Config, ConfigError, require
from iclora_train.config.paths import user_path
from iclora_train.core.atomic_files import exclusive, write_atomic
from iclora_train.core.progress import progress_bar
from iclora_train.data.prompts import template_fields
from iclora_train.data.shards import expand_braces

COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
_MEGABYTE = 10**6
_MAX_NAMED = 3
_WAIT = 0.5  # seconds between two looks at the lock of another process


def local_clips(
    clips: str, root: Path, columns: Collection[str] = (), most: int | None = None, wait: bool = False
) -> str:
    """`clips` unchanged, or, if it names tars (`tars_of`), a list of their extracted samples below `root`.

    An extracted tar is not read again. columns: names in the samples' JSON that data.prompt needs. most: only the first
    tars. wait: if another process extracts them, until it has done so. ConfigError, which names tar and member, for a
    damaged or unsafe tar, and when the disk is too small.
    """
    tars = dict(list(tars_of(clips).items())[:most])
    if not tars:
        return clips
    folder = root / "extracted"
    with _exclusive(folder, wait):
        records = _extract_all(tars, folder)
        rows = [_row(name, sample, columns) for name, record in records.items() for sample in record.samples]
        require(bool(rows), f"data.clips={clips}: no sample has a video or an image; there are {_left_out(records)}")
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        listing = folder / "clips.jsonl"
        if not listing.exists() or listing.read_bytes() != content:
            with write_atomic(listing) as file:
                file.write(content)
    left_out = _left_out(records)
    print(f"{len(rows)} samples of {len(tars)} tars are in {listing}" + (f"; left out: {left_out}" if left_out else ""))
    return str(listing)


def with_local_clips(config: Config, most: int | None = None) -> Config:
    """The settings with `local_clips` as data.clips. Shares of one preparation wait for one another's extraction."""
    columns = template_fields(config.data.prompt or "")
    local = local_clips(config.data.clips, Path(config.data.root), columns, most, wait=config.share is not None)
    return replace(config, data=replace(config.data, clips=local))


@contextmanager
def _exclusive(folder: Path, wait: bool) -> Iterator[None]:
    """`exclusive`; with `wait`, as soon as no other process of this machine is."""
    with ExitStack() as lock:
        while True:
            try:
                lock.enter_context(exclusive(folder, "set another data.root"))
                break
            except ConfigError:
                if not wait:
                    raise
                time.sleep(_WAIT)
        yield


def tars_of(clips: str) -> dict[str, Path]:
    """The tars that `data.clips` names, by a name that is safe for a folder; none if it names something else.

    It may name a tar, a range or choice in braces, a pattern, or a folder that holds tars and no videos or images.
    ConfigError for missing, compressed or remote tars.
    """
    path = user_path(clips)
    if clips != "samples" and os.path.isdir(path):
        return {safe_name(str(tar.relative_to(path).with_suffix(""))): tar for tar in _tars_in(path)}
    suffix = next((suffix for suffix in COMPRESSED if clips.lower().endswith(suffix)), None)
    require(suffix is None, f"data.clips={clips}: {suffix} is not read: uncompress it to .tar (videos hardly shrink)")
    if not clips.endswith(".tar"):
        return {}
    is_remote = "://" in clips or clips.startswith("pipe:")
    require(not is_remote, f"data.clips={clips}: only local files are read: download the tars, and give their path")
    paths = [path] if os.path.exists(path) else [Path(name) for name in expand_braces(str(path))]
    tars: list[Path] = []
    for name in paths:
        folder, pattern = split_pattern(name)
        tars += files_matching(folder, pattern) if pattern else [name]
    missing = [str(tar) for tar in tars if not os.path.exists(tar)]
    require(bool(tars), f"data.clips={clips}: no tar has such a name")
    require(
        not missing,
        f"data.clips={clips}: {', '.join(missing[:_MAX_NAMED])} {'is' if len(missing) == 1 else 'are'} missing "
        f"({len(missing)} of {len(tars)} tars): download them, or name only those that exist",
    )
    start = os.path.dirname(str(path) if len(paths) == 1 and path in tars else re.split(r"[*?\[{]", str(path))[0])
    return {safe_name(os.path.relpath(tar, start or ".").removesuffix(".tar")): tar for tar in sorted(tars)}


def _tars_in(folder: Path) -> list[Path]:
    """The tars below a folder, sorted; none if it also holds videos or images."""
    tars = []
    for file in files_below(folder):
        if file.suffix.lower() in MEDIA:
            return []
        if file.suffix == ".tar":
            tars.append(file)
    return sorted(tars)


def _extract_all(tars: Mapping[str, Path], folder: Path) -> dict[str, Extracted]:
    """The record of each tar, by name. Tars without a valid record are extracted, with progress."""
    records = {name: record for name, tar in tars.items() if (record := read_record(folder, name, tar))}
    pending = {name: tar for name, tar in tars.items() if name not in records}
    if not pending:
        return records
    sizes = {name: tar.stat().st_size for name, tar in pending.items()}
    total, free = sum(sizes.values()), shutil.disk_usage(folder).free
    cost = f"{total / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free"
    require(total < free, f"data.clips: extracting the tars needs up to {cost}: make room, or set another data.root")
    print(f"extracting {len(pending)} tars needs up to {cost}")
    with progress_bar("extracting", total // _MEGABYTE, "megabyte") as bar:
        done = before = 0

        def written(count: int) -> None:
            nonlocal done
            done += count
            bar.update(completed=done // _MEGABYTE)

        for name, tar in pending.items():
            records[name] = extract(tar, folder, name, written)
            before += sizes[name]
            written(before - done)  # headers, and members that are left out
    return {name: records[name] for name in tars}


def _row(folder: str, sample: Sample, columns: Collection[str]) -> dict[str, str]:
    """The row of a sample in the list of clips.

    Of its JSON only the caption, `source`, `licence`, `split` and the columns of data.prompt are used: paths, rates and
    times there belong to the files that the tar was made from.
    """
    row = {column: f"{folder}/{file}" for column, file in sample.files.items() if column != "text"}
    known = {normalise(name): text for name, text in sample.metadata.items()}
    for column in ("caption", "source", "licence", "split"):
        text = next((known[name] for name in NAMES[column] if name in known), "")
        if text and not (column == "caption" and "text" in sample.files) and (column != "split" or text in SPLITS):
            row[column] = text
    return row | {name: sample.metadata[name] for name in columns if name in sample.metadata and name not in row}


def _left_out(records: Mapping[str, Extracted]) -> str:
    """The number of members and samples that were left out of all tars, by kind."""
    counts: Counter[str] = Counter()
    for record in records.values():
        counts.update(record.left_out)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(2 * _MAX_NAMED))
