"""Selection of windows, conditions and batches for an evaluation; needs no model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.clips.attention_masks import fade_masks, fade_weights, half_columns, half_masks, latent_frame_slices
from eval.clips.conditions import Item, all_conditions, batches, strength_sweep
from eval.clips.windows import Window, partners
from iclora_train.config import ConfigError
from iclora_train.config.evaluation import Eval
from iclora_train.diffusion.reference import mask_to_grid
from iclora_train.media.pixels import to_uint8


@pytest.mark.parametrize("sources", ["aabb", "aabbcc", "aaab", "abcabc", "aaaabbc"])
def test_partners_are_windows_of_another_source(sources: str) -> None:
    result = partners(list(sources), [""] * len(sources))
    assert all(sources[i] != sources[j] for i, j in enumerate(result))
    if len({sources.count(name) for name in sources}) == 1:
        assert sorted(result) == list(range(len(sources)))


def test_noise_is_a_function_of_window_and_seed() -> None:
    windows = [Window(i, f"w{i}", "a", "32x32x5", 0) for i in range(3)]
    seeds = [item.noise_seed for batch in batches(windows, [0, 1], 4) for item in batch]
    assert len(set(seeds)) == 6
    assert Item(replace(windows[0], number=7), 0).noise_seed == seeds[0]


def test_a_batch_has_one_frame_rate() -> None:
    windows = [Window(i, f"w{i}", "a", f"32x32x5@{rate}", 0) for i, rate in enumerate((25, 30, 25))]
    result = batches(windows, [0, 1], 3)
    assert [len(batch) for batch in result] == [3, 1, 2]
    assert all(len({item.window.bucket for item in batch}) == 1 for batch in result)


def test_zero_and_one_are_always_among_the_strengths() -> None:
    assert strength_sweep([0.5]) == [1, 0.5, 0]
    names = [condition.name for condition in all_conditions([0.5])]
    assert len(set(names)) == len(names) == 10
    assert set(names) - {condition.name for condition in all_conditions([0.5], fade=False)} == {"fade mask"}


def test_the_default_protocol_is_the_documented_one() -> None:
    assert strength_sweep(Eval().strengths) == [1, 0.75, 0.5, 0.25, 0.1, 0.05, 0]
    with pytest.raises(ConfigError, match="names a seed twice"):
        Eval(seeds=[1, 1])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_fade_weights_rise_from_0_to_1_over_latent_frames(count: int) -> None:
    tokens = mask_to_grid(fade_masks(2, count), (count, 3, 4))  # (2,f,h,w)
    assert tokens.shape == (2, count, 3, 4)
    assert tokens[1, :, 2, 3].tolist() == pytest.approx(fade_weights(count))
    assert (fade_weights(count)[0], fade_weights(count)[-1]) == (0, 1)


def test_slices_are_the_pixel_frames_of_latent_frames() -> None:
    frames = np.arange(9)
    assert [frames[at].tolist() for at in latent_frame_slices(9, 4)] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert [frames[at].tolist() for at in latent_frame_slices(1, 4)] == [[0]]


@pytest.mark.parametrize("width", [4, 5])
def test_half_masks_split_only_a_middle_token(width: int) -> None:
    tokens = mask_to_grid(half_masks([True, False], width), (2, 3, width))  # (2,f,h,w)
    row = [1.0] * (width // 2) + [0.5] * (width % 2) + [0.0] * (width // 2)
    assert tokens[0, 1, 2].tolist() == row
    assert tokens[1, 0, 0].tolist() == row[::-1]


def test_columns_leave_out_the_band_on_both_sides() -> None:
    assert half_columns(64, 8, keep_left=True) == (slice(0, 24), slice(40, 64))
    assert half_columns(64, 8, keep_left=False) == (slice(40, 64), slice(0, 24))


def test_pixels_are_rounded() -> None:
    levels = torch.tensor([0, 1, 127, 254, 255])
    video = (levels / 127.5 - 1).reshape(1, 1, 5, 1, 1).expand(1, 3, 5, 1, 1)
    assert to_uint8(video + 0.003)[0, :, 0, 0, 0].tolist() == levels.tolist()
