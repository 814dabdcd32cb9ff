"""Parts of videos: rows with a start and an end are read frame-exactly, with seeking, and stay together in splits."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from iclora_train.media.clip import probe, read_clip
from iclora_train.media.container import decode
from iclora_train.media.part import Part
from tests.test_exact import CLIPS, number_of, write

RATE = 25


def numbers_of(path: Path, part: Part) -> list[int]:
    return [number_of(frame) for frame in read_clip(path, None, part)]


@pytest.mark.parametrize("name", CLIPS)
def test_a_part_has_exactly_its_frames_in_every_format(name, tmp_path):
    encoder, pix_fmt, suffix, options = CLIPS[name]
    path = write(tmp_path / f"clip.{suffix}", encoder, pix_fmt, options)
    everything = list(read_clip(path))
    for start, end in ((0, 10), (11, 13), (24, 70), (43, 69), (60, 61)):
        part = Part(Fraction(start, RATE), Fraction(end, RATE))
        frames = list(read_clip(path, None, part))
        assert list(map(number_of, frames)) == list(range(start, end))
        assert all((frame == everything[start + i]).all() for i, frame in enumerate(frames))  # no trace of the seek
        info = probe(path, part)
        assert (info.frames, info.fps) == (end - start, pytest.approx(RATE, abs=0.01))
    assert numbers_of(path, Part(Fraction(43), Fraction(47), in_frames=True)) == [43, 44, 45, 46]
    first = next(decode(path, Fraction(60, RATE))).frame
    assert (first.pts * first.time_base > 0.3) == (suffix not in ("avi", "ts"))
