"""Results about source files, kept in data.root until a preparation is finished: a run that is killed while it reads
its clips goes on, and a process spares the reading to those that start later.

A result belongs to the path, size, modification time and change time of its file, and is used only while all four are
the same. Every process appends to a file of its own, one line for a result, with a checksum: a line that a kill or a
power cut has left incomplete is ignored.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.checks import Signature, frames_to_hash, make_signature
from data_prep.clips.clip_list import Clip
from iclora_train.core.regular_files import open_regular
from iclora_train.media.clip import ClipInfo, probe, read_clip
from iclora_train.media.frame_times import FrameTimes
from iclora_train.media.section import Section
from iclora_train.signals.scene_cuts import SceneAnalysis, analyse_scenes

FOLDER = "clips"  # in the folder of a preparation in progress
SETTLED = 2.0  # seconds since the last change of a file from which a result about it is kept: clocks are coarse
VERSION = 1  # increase it when a function here gives another result for the same file


class ClipCache:
    """Digests, measurements, scene cuts and signatures of clips. folder: where they are kept; None: nowhere."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._name = folder, f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._known: dict[str, dict[str, Any]] = {}  # kind -> key -> result; a kind is read when it is first needed

    def digest(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The digest that `compute` gives for a file."""
        return str(self._result("digest", path, "", lambda: compute(path)))

    def probe(self, path: Path, section: Section | None = None) -> ClipInfo:
        """See `probe`."""
        return _unpack_info(self._result("probe", path, section, lambda: _pack_info(probe(path, section))))

    def scenes(self, path: Path, section: Section | None = None) -> SceneAnalysis:
        """See `analyse_scenes`."""
        packed = self._result("scenes", path, section, lambda: _pack_scenes(analyse_scenes(path, section)))
        return SceneAnalysis(tuple(packed["cuts"]), np.array(packed["quality"], np.float64))

    def signature(self, clip: Clip, info: ClipInfo, sha256: str) -> Signature:
        """The signature of a clip, for the comparison of clips."""

        def compute() -> dict[str, Any]:
            frames = read_clip(clip.path, set(frames_to_hash(info.frames, info.fps)), clip.section)
            signature = make_signature(clip.id, clip.split, sha256, frames)
            return {"hashes": signature.hashes.tolist(), "picture": base64.b64encode(signature.picture).decode()}

        packed = self._result("signature", clip.path, clip.section, compute)
        hashes = np.array(packed["hashes"], np.uint64).reshape(-1, 4)
        return Signature(clip.id, clip.split, sha256, hashes, base64.b64decode(packed["picture"]))

    def _result(self, kind: str, path: Path, argument: object, compute: Callable[[], Any]) -> Any:
        """The kept result, or that of `compute`, which is kept if the file is the same before and after."""
        before = _identity(path)
        key = json.dumps([VERSION, str(path), before, str(argument)], ensure_ascii=True)
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = dict(self._read(kind))
        if before is None or key not in known:
            value = compute()
            if before is None or before != _identity(path) or time.time() - max(before[1:]) / 1e9 < SETTLED:
                return value
            known[key] = value
            self._append(kind, key, value)
        return known[key]

    def _read(self, kind: str) -> Iterator[tuple[str, Any]]:
        """The results of all processes."""
        for path in sorted(self._folder.glob(f"{kind}-*.jsonl")) if self._folder is not None else ():
            try:
                with open_regular(path) as file:
                    lines = file.read().splitlines()
            except OSError:  # removed meanwhile
                continue
            for line in lines:
                checksum, _, text = line.partition(b" ")
                if checksum == _checksum(text):
                    key, value = json.loads(text)
                    yield key, value

    def _append(self, kind: str, key: str, value: object) -> None:
        """Add a result to the file of this process. Without a place for it, nothing is kept."""
        if self._folder is None:
            return
        text = json.dumps([key, value]).encode()
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{kind}-{self._name}").open("ab", buffering=0) as file:
            file.write(b"%s %s\n" % (_checksum(text), text))


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Size, modification and change time in nanoseconds of a regular file; None for anything else."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_size, state.st_mtime_ns, state.st_ctime_ns) if os.path.isfile(path) else None


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _pack_info(info: ClipInfo) -> dict[str, Any]:
    times = info.times
    ticks = len(times.ticks) if isinstance(times.ticks, range) else list(times.ticks)  # range: a constant rate
    packed = {"ticks": ticks, "tick": str(times.tick), "rate": str(times.rate), "is_constant": times.is_constant}
    return {**vars(replace(info, times=FrameTimes.constant(1, Fraction(1)))), "times": packed}


def _unpack_info(packed: dict[str, Any]) -> ClipInfo:
    times = packed["times"]
    ticks = range(times["ticks"]) if isinstance(times["ticks"], int) else times["ticks"]
    measured = FrameTimes(ticks, Fraction(times["tick"]), Fraction(times["rate"]), times["is_constant"])
    return ClipInfo(**{**packed, "times": measured, "changes": tuple(packed["changes"])})


def _pack_scenes(scenes: SceneAnalysis) -> dict[str, Any]:
    return {"cuts": list(scenes.cuts), "quality": scenes.quality.tolist()}
