"""Pictures in tiles: tiles cover the picture, see their part of everything, and are averaged where they overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iclora_train.config import ConfigError
from iclora_train.core.types import Geometry, Tokens
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.reference import from_tokens
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.diffusion.tiles import Tile, plan_tiles
from iclora_train.generate import run
from iclora_train.ltx2.base_model import BaseModel
from tests.test_generate import assets, generate_pixels, settings_for

__all__ = ["assets"]  # the fixture
GEOMETRY = Geometry(channels=8, spatial=8, temporal=4)
SIZE = (3, 8, 12)  # of the latent target
SIGMAS = (1.0, 0.6, 0.2, 0.0)


def inputs(seed: int = 0, strength: float = 1.0) -> dict[str, Any]:
    """Two references, of the target's size with a mask and of half its size; a kept first frame."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.rand((1, 9, 64, 96), generator=generator)
    return {
        "references": [
            Reference(noise(1, 8, *SIZE), attention_mask=mask, strength=strength),
            Reference(noise(1, 8, 3, 4, 6), downscale=2),
        ],
        "kept": KeptLatents.none(1, 8, SIZE).with_span(noise(1, 8, 1, 8, 12), 0),
    }


def sampled(transformer: Any, tiles: list[Tile], text: Tensor | None = None, **options: Any) -> Tensor:
    text = torch.zeros(1, 2, 4) if text is None else text
    return sample(transformer, text, SIZE, GEOMETRY, 25.0, SamplerSettings(SIGMAS), [0], tiles=tiles, **options)


def by_token(tokens: Tokens, text: Tensor, between: str) -> Tensor:
    """A model that moves every token by itself: tiles and the whole must agree."""
    sigma = tokens.sigma.gather(1, tokens.level)[..., None]
    return torch.tanh(tokens.latent) * (1 + sigma)


@pytest.mark.parametrize(
    ("tile", "overlap", "unit", "count"),
    [((4, 4), 1, 1, 12), ((8, 6), 2, 2, 3), ((8, 12), 2, 1, 1), ((5, 12), 2, 1, 2)],
)
def test_tiles_of_one_size_cover_the_picture(tile: tuple[int, int], overlap: int, unit: int, count: int) -> None:
    tiles = plan_tiles((8, 12), tile, overlap, unit)
    assert len(tiles) == count
    covered = torch.zeros(8, 12)
    for one in tiles:
        one.cut(covered).add_(1)
        assert one.weights().shape == one.cut(covered).shape
        assert all(edge % unit == 0 for edge in (*one.rows, *one.columns))
        assert (one.weights() > 0).all()
    assert (covered > 0).all()
    assert len({one.size(SIZE) for one in tiles}) == 1


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_model_without_context_samples_the_same_in_tiles(strength: float) -> None:
    whole = sampled(by_token, [], **inputs(strength=strength))
    tiles = sampled(by_token, plan_tiles(SIZE[1:], (4, 6), 2, 2), **inputs(strength=strength))
    assert torch.allclose(whole, tiles, atol=1e-5)


def test_one_tile_of_the_whole_picture_changes_nothing(assets: Path) -> None:
    transformer = BaseModel.open(str(assets / "base")).transformer()
    text = torch.randn(1, 4, transformer.config.cross_attention_dim)
    whole = Tile((0, 8), (0, 12), 2)
    with_tile, without = (sampled(transformer, tiles, text, **inputs()) for tiles in ([whole], []))
    assert torch.allclose(with_tile, without, atol=1e-5)
    part = sampled(transformer, plan_tiles(SIZE[1:], (4, 6), 2, 2), text, **inputs())
    assert not torch.allclose(part, without, atol=1e-2)
    assert torch.equal(part[:, :, :1], inputs()["kept"].latent[:, :, :1])


def test_a_tile_sees_its_part_of_the_references_as_a_clip_of_its_own() -> None:
    seen: list[Tokens] = []

    def recorded(tokens: Tokens, text: Tensor, between: str) -> Tensor:
        seen.append(tokens)
        return torch.zeros_like(tokens.latent)

    arguments = inputs()
    tiles = plan_tiles(SIZE[1:], (4, 6), 2, 2)
    sampled(recorded, tiles, **arguments)
    assert len(seen) == len(tiles) * 3
    for tile, tokens in zip(tiles, seen[: len(tiles)], strict=True):
        (top, bottom), (left, right) = tile.rows, tile.columns
        assert tokens.group.bincount().tolist() == [3 * 4 * 6, 3 * 4 * 6, 3 * 2 * 3]
        small = from_tokens(tokens.latent[:, tokens.group == 2], (3, 2, 3))
        reference = arguments["references"][1].latent
        assert torch.equal(small, reference[..., top // 2 : bottom // 2, left // 2 : right // 2])
        assert torch.equal(tokens.position, seen[0].position)
        assert tokens.position[:, 1:].max() == 6 * 8
        assert tokens.weight is not None
        pixels = arguments["references"][0].attention_mask[:, 0, 8 * top : 8 * bottom, 8 * left : 8 * right]
        cells = pixels.unflatten(1, (4, 8)).unflatten(3, (6, 8)).mean((2, 4)).flatten(1)
        assert torch.allclose(tokens.weight[:, 72 : 72 + 24], cells, atol=1e-6)


def test_a_video_is_made_in_tiles(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = generate_pixels(assets, tmp_path / "whole", width=64)
    assert "tiles of" not in capsys.readouterr().out
    tiled = generate_pixels(assets, tmp_path / "tiled", width=64, tile_width=32)
    assert "3 tiles of 32x32 a step: 1.5 times the pixels of 64x32" in capsys.readouterr().out
    assert tiled.shape == whole.shape == (5, 32, 64, 3)
    assert (tiled != whole).any()
    larger = generate_pixels(assets, tmp_path / "larger", width=64, tile_width=128, tile_height=64)
    assert (larger == whole).all()
    both = generate_pixels(assets, tmp_path / "both", width=64, tile_width=32, frames=9, window_frames=5)
    assert both.shape == (9, 32, 64, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_width": 20}, "tile_width=20 is not a multiple of 8: use 16 or 24"),
        ({"tile_height": 16, "tile_overlap": 5}, "tile_overlap=5 is not a multiple of 8: use 8 or 16"),
        (
            {"tile_width": 16, "tile_overlap": 16},
            "tile_overlap=16 is above half of a tile of 16x32: set larger tiles, or",
        ),
        ({"tile_overlap": 8}, "tile_overlap=8 is for tiles: set tile_width or tile_height too"),
        ({"tile_width": 0}, "tile_width=0 must be at least 1, or null"),
    ],
)
def test_tiles_that_do_not_fit_are_named_before_anything_is_written(
    changes: dict[str, Any], message: str, assets: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run.generate(settings_for(assets, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
