"""Which clips an adapter was trained on: recordings, digests of files, and perceptual hashes of frames.

Preparation writes `clip_hashes.json` into data.root. Training writes the clips that it used beside the adapter, as
`<adapter>.trained_on.json`. Evaluation compares them with the clips that it judges on, whichever data.root has those:
a held-out score is meaningless if the adapter has seen the clip, even re-encoded, resized or trimmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from iclora_train.core.atomic_files import sha256, write_json
from iclora_train.core.groups import connected
from iclora_train.core.records import Bits256, Sha256, Text, read_json
from iclora_train.data.mixture import Mixture, video_digests
from iclora_train.data.recordings import declared_recordings
from iclora_train.data.shards import ShardSet

HASHES_FILE, SUFFIX = "clip_hashes.json", ".trained_on.json"
WORDS = 4  # uint64 in a hash: 256 bits
MISSING = "missing"  # digest of a file that could not be read
UNKNOWN = ("", MISSING)  # digests that say nothing about a file


@dataclass(frozen=True)
class KnownClip:
    """How a clip is recognised. recording: "" if its list names none. video: the digest of its file, "" if unknown.
    frames: a perceptual hash of each of some frames."""

    recording: Text = ""
    video: Text = ""
    frames: list[Bits256] = field(default_factory=list)

    def hashes(self) -> np.ndarray:
        """The hashes as uint64 (n,4)."""
        return np.frombuffer(bytes.fromhex("".join(self.frames)), ">u8").astype(np.uint64).reshape(-1, WORDS)


@dataclass(frozen=True)
class TrainedOn:
    """The clips that an adapter was trained on, by id, and the digest of the adapter's file."""

    adapter: Sha256
    clips: dict[Text, KnownClip]


class HashIndex:
    """Clips that can be searched by the digest of the file and by hashes of frames uint64 (n,4).

    distance: bits in which two frames of one scene may differ.
    """

    def __init__(self, digests: Sequence[str], hashes: Sequence[np.ndarray], distance: int) -> None:
        self._digests = tuple(digests)
        known = [(name, number) for number, name in enumerate(digests) if name not in UNKNOWN]
        self._by_digest = dict(reversed(known))  # of equal files the first
        self._hashes = np.concatenate([np.zeros((0, WORDS), np.uint64), *hashes])
        self._owner = np.repeat(np.arange(len(hashes)), [len(codes) for codes in hashes])
        self._distance = distance

    def nearest(self, digest: str, hashes: np.ndarray) -> tuple[int | None, float]:
        """The number of the clip with the same file, else of the one with the largest overlap, and the overlap. None if
        no frame matches.

        The overlap is the share of these frames that are in the clip, or of the clip's frames that are among these,
        whichever is larger.
        """
        if digest in self._by_digest:
            return self._by_digest[digest], 1.0
        shares = self._shares(hashes)
        number = max(shares, key=lambda n: shares[n], default=None)
        return number, 0.0 if number is None else shares[number]

    def alike(self, digest: str, hashes: np.ndarray, most: float | None) -> list[int]:
        """The numbers of all clips with the same file or, unless `most` is None, with a larger overlap than `most`."""
        same_file = {number for number, name in enumerate(self._digests) if name == digest and name not in UNKNOWN}
        overlapping = set() if most is None else {n for n, share in self._shares(hashes).items() if share > most}
        return sorted(same_file | overlapping)

    def _shares(self, hashes: np.ndarray) -> dict[int, float]:
        """The overlap (see `nearest`) of every clip with at least one frame that matches."""
        bits = np.bitwise_count(hashes[:, None] ^ self._hashes).sum(axis=-1, dtype=np.uint16)  # (n,M)
        near = bits <= self._distance
        matches = {int(n): near[:, self._owner == n] for n in np.unique(self._owner[near.any(axis=0)])}
        return {n: float(max(of.any(axis=1).mean(), of.any(axis=0).mean())) for n, of in matches.items()}


def joined_by_content(
    clips: Mapping[str, KnownClip], recording: Mapping[str, str], most: float | None, distance: int
) -> dict[str, str]:
    """`recording`, with one name for recordings of which some clips show the same: the first name of all.

    clips: those that are compared. most, distance: `checks.duplicate.most` and `checks.distance`. A video that is there
    under two names is one recording, and an interval that counts it twice is too narrow.
    """
    names, known = list(clips), list(clips.values())
    index = HashIndex([clip.video for clip in known], [clip.hashes() for clip in known], distance)
    links = [
        (recording[name], recording[names[other]])
        for name, clip in clips.items()
        for other in index.alike(clip.video, clip.hashes(), most)
    ]
    groups = connected(sorted({recording[name] for name in names}), links)
    joined = {name: group[0] for group in groups for name in group}
    return {clip: joined.get(name, name) for clip, name in recording.items()}


def write_hashes(root: Path, videos: Mapping[str, str], hashes: Mapping[str, np.ndarray]) -> None:
    """Write HASHES_FILE of a data.root: the digest of the file and the hashes uint64 (n,4) of each clip."""
    clips = {clip: KnownClip("", videos[clip], frame_texts(codes)) for clip, codes in hashes.items()}
    write_json(root / HASHES_FILE, {clip: asdict(known) for clip, known in sorted(clips.items())})


def frame_texts(hashes: np.ndarray) -> list[str]:
    """Hashes uint64 (n,4) as text."""
    return [row.astype(">u8").tobytes().hex() for row in hashes]


def known_clips(root: Path, shards: ShardSet, clips: set[str]) -> dict[str, KnownClip]:
    """How these clips of a shard set, or of a mixture of shard sets, are recognised. Sets that were prepared before
    there was a HASHES_FILE have no hashes of frames. root: data.root of a single set."""
    if isinstance(shards, Mixture):
        return {
            part.id(clip): known
            for part in shards.parts
            for clip, known in known_clips(
                part.root, part.shards, {clip for clip in _ids(part.shards) if part.id(clip) in clips}
            ).items()
        }
    path = root / HASHES_FILE
    stored = (
        read_json(path, dict[Text, KnownClip], "delete it: clips are then compared by file only")
        if (path.exists())
        else {}
    )
    numbers = [i for i, sample in enumerate(shards.samples) if sample.source in clips]
    recordings, videos = declared_recordings(shards, numbers), video_digests(root / "pairs")
    return {
        clip: KnownClip(
            recording,
            stored[clip].video if clip in stored else videos.get(clip, ""),
            stored[clip].frames if clip in stored else [],
        )
        for clip, recording in sorted(recordings.items())
    }


def _ids(shards: ShardSet) -> Iterator[str]:
    return (sample.source for sample in shards.samples)


def trained_on_file(adapter: Path) -> Path:
    """The file beside an adapter that lists the clips that it was trained on."""
    return adapter.with_name(adapter.stem + SUFFIX)


def write_trained_on(adapter: Path, root: Path, shards: ShardSet) -> None:
    """List the training clips of a shard set beside the adapter file."""
    clips = {shards.samples[i].source for i in shards.indices("train")}
    write_json(trained_on_file(adapter), asdict(TrainedOn(sha256(adapter), known_clips(root, shards, clips))))


def read_trained_on(adapter: Path) -> TrainedOn | None:
    """The clips that an adapter was trained on. None if there is no list of exactly this file.

    DamagedFileError for a list that cannot be read."""
    path = trained_on_file(adapter)
    if not path.exists():
        return None
    trained = read_json(path, TrainedOn, "copy it again from the run folder, or delete it")
    return trained if trained.adapter == sha256(adapter) else None
