"""Pairs whose two references differ in nothing but their order."""

from __future__ import annotations

import numpy as np

from data_prep.clips.clip_list import list_clips
from scripts.slot_pairs import fitted, out_of_focus, partner


def test_the_second_reference_is_another_recording_of_the_same_split() -> None:
    clips = list_clips("samples", 0.1)
    for number, clip in enumerate(clips):
        other = partner(clips, number)
        assert (other.split, other.source == clip.source) == (clip.split, False)


def test_both_references_have_the_size_and_the_length_of_the_clip() -> None:
    rng = np.random.default_rng(0)
    clip, short = (rng.integers(0, 256, (frames, size, size, 3), np.uint8) for frames, size in ((7, 16), (3, 8)))
    second = fitted(short, clip)
    assert second.shape == clip.shape
    assert np.array_equal(second[[0, 2, 3, 5]], second[[6, 3, 2, 0]])  # forwards, backwards, forwards
    blurred = out_of_focus(clip)
    assert blurred.shape == clip.shape
    assert blurred.std() < 0.3 * clip.std()
