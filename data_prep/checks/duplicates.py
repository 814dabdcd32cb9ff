"""The same footage in train and in a held-out split: found by bytes, and by perceptual hashes of several frames.

A held-out score is worth nothing when the adapter has seen the clip, be it re-encoded, resized or trimmed.
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

SIDE, KEPT = 32, 16  # pixels of the picture whose DCT is taken, and its lowest frequencies that make the hash
FLAT = 16  # levels between dark and bright; a picture below shows too little to be told from others
EVERY, FEWEST, MOST = 0.5, 4, 32  # seconds between hashed frames, and how many there are


@dataclass(frozen=True)
class Signature:
    """A clip to be compared: sha256 of its file, hashes uint64 (n,4) of frames, and a JPEG of some of them."""

    clip: str
    split: str
    sha256: str
    hashes: np.ndarray
    picture: bytes


def frames_to_hash(frames: int, fps: float) -> tuple[int, ...]:
    """Numbers of the frames of a clip that are hashed, spread evenly."""
    count = min(max(round(frames / fps / EVERY), FEWEST), MOST, frames)
    return tuple(int((i + 0.5) * frames / count) for i in range(count))


def make_signature(clip: str, split: str, sha256: str, frames: Iterable[np.ndarray]) -> Signature:
    """The signature of a clip by its frames uint8 RGB (H,W,3) at `moments`."""
    shown = list(frames)
    hashes = [code for frame in shown if (code := perceptual_hash(frame)) is not None]
    return Signature(clip, split, sha256, np.array(hashes, np.uint64).reshape(-1, 4), encode_jpeg(frame_strip(shown)))


def perceptual_hash(frame: np.ndarray) -> np.ndarray | None:
    """256 bits as uint64 (4,) that re-encoding and resizing hardly change: which of the lowest frequencies of the luma
    lie above their median (pHash, Zauner 2010). None for a flat picture.
    """
    luma = cv2.cvtColor(cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    if np.ptp(luma) < FLAT:
        return None
    low = cv2.dct(luma.astype(np.float32))[:KEPT, :KEPT].ravel()
    return np.packbits(low > np.median(low[1:])).view(np.uint64)


def find_duplicates(signatures: Sequence[Signature], checks: Checks) -> list[tuple[Report, bytes]]:
    """For every train clip (and val clip) how much of it is in a clip of a later split, with a picture of both. It is
    the earlier split's clip that the finding is about, so that held-out sets stay as they are.
    """
    found = []
    for split in SPLITS[:-1]:
        later = _Pool([s for s in signatures if SPLITS.index(s.split) > SPLITS.index(split)], checks.distance)
        found += [_compare(s, later, checks) for s in signatures if s.split == split]
    return found


class _Pool:
    """Clips to compare others with: all their hashes (M,4) in one array, and whose each is."""

    def __init__(self, clips: list[Signature], distance: int) -> None:
        self.clips, self._distance = clips, distance
        self.by_sha256 = {clip.sha256: clip for clip in reversed(clips)}
        self._hashes = np.concatenate([np.zeros((0, 4), np.uint64), *(clip.hashes for clip in clips)])
        self._owner = np.repeat(np.arange(len(clips)), [len(clip.hashes) for clip in clips])

    def nearest(self, one: Signature) -> tuple[Signature | None, float]:
        """The clip that shares most with `one`, and the share: of the hashed frames of `one` that the clip holds, or of
        the clip's in `one`, whichever is larger. None when no frame is alike.
        """
        bits = np.bitwise_count(one.hashes[:, None] ^ self._hashes).sum(axis=-1, dtype=np.uint16)  # (n,M)
        near = bits <= self._distance
        best: tuple[Signature | None, float] = None, 0.0
        for i in np.unique(self._owner[near.any(axis=0)]):
            own = near[:, self._owner == i]
            share = float(max(own.any(axis=1).mean(), own.any(axis=0).mean()))
            best = max(best, (self.clips[i], share), key=lambda found: found[1])
        return best


def _compare(one: Signature, others: _Pool, checks: Checks) -> tuple[Report, bytes]:
    """The finding about `one` against the clip that is most like it."""
    same = others.by_sha256.get(one.sha256)
    nearest, share = (same, 1.0) if same else others.nearest(one)
    if nearest is None:
        finding, picture = judge("duplicate", 0.0, checks.duplicate), one.picture
    else:
        how = "has the same bytes as" if same else "shows the same as"
        finding = judge("duplicate", share, checks.duplicate, f"{how} {nearest.clip} ({nearest.split})")
        picture = stack_jpegs(one.picture, nearest.picture)
    return Report(one.clip, one.clip, one.split, "", (finding,)), picture
