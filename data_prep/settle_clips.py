"""The final split of every usable clip: compare the clips across splits until no two that show the same are apart.

`data.root/splits.json` holds the splits and the pairs of clips that show the same, so that an interrupted run does not
compare the clips again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.checks import CheckLog, Signature, find_duplicates, match_clips
from data_prep.clip_cache import ClipCache
from data_prep.clips.probed_clip import ProbedClip
from data_prep.clips.splits import Splits, settle_splits
from iclora_train.config import Config, ConfigError
from iclora_train.core.atomic_files import write_json
from iclora_train.core.fingerprint import digest
from iclora_train.core.progress import progress_bar
from iclora_train.core.records import DamagedFileError, Text, read_json
from iclora_train.data.clip_hashes import write_hashes
from iclora_train.data.shard_index import begun_with

SPLITS_FILE = "splits.json"


@dataclass(frozen=True)
class _StoredSplits:
    """The content of splits.json. made_from: digest of the settings and sources. copies: ids that show the same."""

    made_from: Text
    copies: list[tuple[Text, Text]]
    splits: dict[Text, Text]


def with_splits(made_from: dict[str, dict[str, Any]], changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The fingerprints with `Splits.changes`. Without changes, those of shards older than this entry stay valid."""
    if not changes:
        return made_from
    pairs = made_from["pairs"] | {"splits": changes}
    return {"pairs": pairs, "latents": made_from["latents"] | {"pairs": digest(pairs), "splits": changes}}


def stored_changes(folder: Path) -> dict[str, Any]:
    """`Splits.changes` of the shards in a folder; empty if there are none or they cannot be read."""
    try:
        changes: dict[str, Any] = (begun_with(folder) or {}).get("splits", {})
    except ConfigError:
        return {}
    return changes


def settle_clips(
    root: Path,
    usable: Sequence[ProbedClip],
    fingerprint: dict[str, Any],
    log: CheckLog,
    config: Config,
    cache: ClipCache,
) -> Splits:
    """The clips with their splits, without clips that show the same as one that the list puts into a later split.

    fingerprint: of the pairs, without the changes of the splits. Findings are logged. ShardError for shards that were
    begun with other splits.
    """
    made_from = digest(fingerprint)
    stored = _read(root / SPLITS_FILE)
    if stored is not None and stored.made_from == made_from and log.has("clips"):
        splits = settle_splits(usable, stored.copies, config.data)
    else:
        signatures = _signatures(usable, fingerprint["sources"], cache)
        copies = _find_copies(usable, signatures, config)
        splits = settle_splits(usable, copies, config.data)
        log.write("clips", find_duplicates(_in_splits(signatures, splits), config.checks))
        write_hashes(root, {s.clip: s.sha256 for s in signatures}, {s.clip: s.hashes for s in signatures})
        write_json(root / SPLITS_FILE, asdict(_StoredSplits(made_from, copies, splits.split_of)))
    left_out = {report.clip for report, _ in log.read("clips") if not report.kept}
    splits.clips = [probed for probed in splits.clips if probed.clip.id not in left_out]
    return splits


def _signatures(usable: Sequence[ProbedClip], sources: dict[str, Any], cache: ClipCache) -> list[Signature]:
    signatures = []
    with progress_bar("comparing clips", len(usable), "clip") as bar:
        for probed in bar.track(usable):
            signatures.append(cache.signature(probed.clip, probed.info, sources[probed.clip.id]["video"]))
    return signatures


def _find_copies(
    usable: Sequence[ProbedClip], signatures: Sequence[Signature], config: Config
) -> list[tuple[str, str]]:
    """Pairs of ids that show the same and would be in different splits. None if checks.duplicate drops no clip."""
    limit = config.checks.duplicate
    copies = set[tuple[str, str]]()
    while limit.action == "drop" and limit.most is not None:
        splits = settle_splits(usable, copies, config.data)
        matches = match_clips(_in_splits(signatures, splits), config.checks.distance)
        near = {(m.query.clip, m.nearest.clip) for m in matches if m.nearest is not None and m.share > limit.most}
        if near <= copies:
            break
        copies |= near
    return sorted(copies)


def _in_splits(signatures: Iterable[Signature], splits: Splits) -> list[Signature]:
    """The signatures of the clips that are used, with their splits."""
    of = splits.split_of
    return [replace(signature, split=of[signature.clip]) for signature in signatures if signature.clip in of]


def _read(path: Path) -> _StoredSplits | None:
    try:
        return read_json(path, _StoredSplits, "it is written again") if path.exists() else None
    except DamagedFileError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None
