"""Known parts of a target: which latent cells a mask, a beginning or an end covers, and what fills them."""

from __future__ import annotations

import pytest
import torch

from iclora_train.config import ConfigError
from iclora_train.diffusion.kept_latents import KeptLatents, mask_to_cells

SIZE = (3, 2, 2)


def test_spans_lie_where_they_begin_and_the_later_one_wins() -> None:
    kept = KeptLatents.none(1, 1, SIZE).with_span(torch.full((1, 1, 2, 2, 2), 5.0), 1)
    kept = kept.with_span(torch.full((1, 1, 2, 2, 2), 7.0), 0)
    assert kept.mask.all()
    assert kept.latent[0, 0, :, 0, 0].tolist() == [7, 7, 5]
    assert kept.fill(torch.zeros(1, 1, *SIZE))[0, 0, :, 1, 1].tolist() == [7, 7, 5]


def test_what_is_not_kept_is_the_targets() -> None:
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 1, 0, 1] = True
    target = torch.randn(1, 4, *SIZE)
    filled = KeptLatents.none(1, 4, SIZE).with_cells(torch.ones(1, 4, *SIZE), mask).fill(target)
    assert torch.equal(filled != target, mask[:, None].expand(1, 4, *SIZE))


@pytest.mark.parametrize(("frames", "start"), [(2, 2), (1, -1), (4, 0)])
def test_a_span_outside_the_target_is_refused(frames: int, start: int) -> None:
    with pytest.raises(ValueError, match="do not lie in a target of size"):
        KeptLatents.none(1, 1, SIZE).with_span(torch.zeros(1, 1, frames, 2, 2), start)


@pytest.mark.parametrize(("mode", "covered"), [("any", [1, 1, 1]), ("half", [1, 1, 0]), ("all", [1, 0, 0])])
def test_a_mode_says_how_much_of_a_cell_a_mask_must_cover(mode: str, covered: list[int]) -> None:
    mask = torch.zeros(4, 12)
    mask[:, :4] = 1  # all of the first cell
    mask[:, 4:6] = 1  # half of the second
    mask[0, 8] = 1  # a pixel of the third
    assert mask_to_cells(mask, (1, 1, 3), mode)[0, 0, 0].int().tolist() == covered


def test_frames_are_grouped_as_by_the_causal_vae() -> None:
    """Frame 0 is the first latent frame; frames 4k+1 to 4k+4 are the next ones, at four frames per latent frame."""
    for frame, latent_frame in ((0, 0), (1, 1), (4, 1), (5, 2), (8, 2)):
        mask = torch.zeros(9, 2, 2)
        mask[frame] = 1
        cells = mask_to_cells(mask, SIZE, "any")[0].flatten(1).any(1)
        assert cells.nonzero().flatten().tolist() == [latent_frame]


def test_grey_of_a_compressed_mask_is_black_or_white() -> None:
    mask = torch.tensor([[0.02, 0.49, 0.5, 0.97]])
    assert mask_to_cells(mask, (1, 1, 4), "any").flatten().tolist() == [False, False, True, True]


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ConfigError, match="most"):
        mask_to_cells(torch.ones(2, 2), (1, 1, 1), "most")
