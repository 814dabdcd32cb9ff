"""Duplicates across splits, found by file bytes and by perceptual hashes of several frames.

A held-out score is meaningless if the adapter was trained on the clip, even re-encoded, resized or trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.checks.base import Report, judge
from data_prep.checks.pictures import encode_jpeg, frame_strip, stack_jpegs
from data_prep.clips.clip_list import SPLITS
from iclora_train.config.checks import Checks
from iclora_train.data.clip_hashes import HashIndex

SIDE, FREQUENCIES = 32, 16  # side in pixels of the picture for the DCT, and the lowest frequencies in the hash
MIN_CONTRAST = 16  # levels between dark and bright; flatter pictures are too similar to each other
INTERVAL, MIN_FRAMES, MAX_FRAMES = 0.5, 4, 32  # seconds between hashed frames, and limits of their number


@dataclass(frozen=True)
class Signature:
    """A clip for comparison: sha256 of its file, hashes uint64 (n,4) of frames, and a JPEG of some frames."""

    clip: str
    split: str
    sha256: str
    hashes: np.ndarray
    picture: bytes


def frames_to_hash(frames: int, fps: float) -> tuple[int, ...]:
    """Numbers of the frames of a clip to hash, evenly spaced."""
    count = min(max(round(frames / fps / INTERVAL), MIN_FRAMES), MAX_FRAMES, frames)
    return tuple(int((i + 0.5) * frames / count) for i in range(count))


def make_signature(clip: str, split: str, sha256: str, frames: Iterable[np.ndarray]) -> Signature:
    """The signature of a clip from its frames uint8 RGB (H,W,3) at `frames_to_hash`."""
    images = list(frames)
    hashes = [code for frame in images if (code := perceptual_hash(frame)) is not None]
    return Signature(clip, split, sha256, np.array(hashes, np.uint64).reshape(-1, 4), encode_jpeg(frame_strip(images)))


def perceptual_hash(frame: np.ndarray) -> np.ndarray | None:
    """256 bits as uint64 (4,), robust to re-encoding and resizing (pHash, Zauner 2010). None for a flat picture.

    Each bit says whether one of the lowest luma frequencies exceeds their median.
    """
    luma = cv2.cvtColor(cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    if np.ptp(luma) < MIN_CONTRAST:
        return None
    low = cv2.dct(luma.astype(np.float32))[:FREQUENCIES, :FREQUENCIES].ravel()
    return np.packbits(low > np.median(low[1:])).view(np.uint64)


@dataclass(frozen=True)
class Match:
    """A train or val clip, the clip of a later split that it resembles most (if any), and the share that is in both."""

    query: Signature
    nearest: Signature | None
    share: float


def match_clips(signatures: Sequence[Signature], distance: int) -> list[Match]:
    """Compare every train and val clip with the clips of later splits. distance: bits that may differ in a frame."""
    matches = []
    for split in SPLITS[:-1]:
        later = [s for s in signatures if SPLITS.index(s.split) > SPLITS.index(split)]
        index = HashIndex([s.sha256 for s in later], [s.hashes for s in later], distance)
        for query in (s for s in signatures if s.split == split):
            number, share = index.nearest(query.sha256, query.hashes)
            matches.append(Match(query, None if number is None else later[number], share))
    return matches


def find_duplicates(signatures: Sequence[Signature], checks: Checks) -> list[tuple[Report, bytes]]:
    """For every train and val clip, the share of it that is in a clip of a later split, with a picture of both. The
    finding is about the clip of the earlier split, so that held-out sets do not change.
    """
    return [_report(match, checks) for match in match_clips(signatures, checks.distance)]


def _report(match: Match, checks: Checks) -> tuple[Report, bytes]:
    """The report about a clip and the one that it resembles most."""
    query, nearest = match.query, match.nearest
    if nearest is None:
        finding, picture = judge("duplicate", 0.0, checks.duplicate), query.picture
    else:
        how = "has the same bytes as" if nearest.sha256 == query.sha256 else "shows the same as"
        finding = judge("duplicate", match.share, checks.duplicate, f"{how} {nearest.clip} ({nearest.split})")
        picture = stack_jpegs(query.picture, nearest.picture)
    return Report(query.clip, query.clip, query.split, "", (finding,)), picture
