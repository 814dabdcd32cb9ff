"""Tiling bounds memory: every pixel is written, and pixels far from the edge of a tile equal the untiled result."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from iclora_train.core.types import Geometry
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.vae.causal_encoder import split_frames
from iclora_train.ltx2.vae.tiling import Tiling, decode_tiled, encode_tiled, pixels_of, spans
from iclora_train.ltx2.vae.video_vae import MAX_PIXELS, VideoVAE
from tests.clips import moving
from tests.tiny import VAE

TINY = Geometry(channels=8, spatial=8, temporal=4)
LTX = Geometry(channels=128, spatial=32, temporal=8)


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE.from_config(VAE).requires_grad_(False)


@pytest.mark.parametrize(("length", "size", "overlap"), [(1, 4, 1), (9, 8, 4), (13, 8, 4), (22, 12, 2), (40, 41, 4)])
def test_tiles_cover_an_axis(length: int, size: int, overlap: int) -> None:
    tiles = spans(length, size, overlap)
    assert (tiles[0][0], tiles[-1][1]) == (0, length)
    assert all(0 < stop - start <= size for start, stop in tiles)
    assert all(left[1] - right[0] >= overlap for left, right in pairwise(tiles))


@pytest.mark.parametrize("cells", [(1, 2, 3), (4, 5, 9), (7, 11, 6)])
@pytest.mark.parametrize("tiling", [Tiling(3, 4, 5, 1, 2), Tiling(4, 5, 5, 3, 4), Tiling(2, 3, 3, 1, 1)])
def test_every_pixel_has_a_total_weight_of_1_and_its_position(cells: tuple[int, int, int], tiling: Tiling) -> None:
    """The decoder outputs each pixel's position in the clip: blending must not move or scale anything."""
    f, h, w = cells
    size = (4 * (f - 1) + 1, 8 * h, 8 * w)
    pixel_position = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))[None]
    cell_index = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in cells), indexing="ij"))[None]

    def decode(latent: Tensor) -> Tensor:
        start = latent[0, :, 0, 0, 0] * torch.tensor([4.0, 8.0, 8.0])
        n = (4 * (latent.shape[2] - 1) + 1, 8 * latent.shape[3], 8 * latent.shape[4])
        grid = torch.stack(torch.meshgrid(*(torch.arange(float(k)) for k in n), indexing="ij"))
        return (grid + start.view(3, 1, 1, 1))[None]

    def encode(video: Tensor) -> Tensor:
        assert video.shape[2] == size[0], "encoding has no tiles in time"
        return video[:, :, ::4, ::8, ::8] / torch.tensor([4.0, 8.0, 8.0]).view(3, 1, 1, 1)

    torch.testing.assert_close(decode_tiled(decode, cell_index, TINY, tiling), pixel_position, atol=1e-3, rtol=0)
    assert torch.equal(encode_tiled(encode, pixel_position, TINY, tiling), cell_index)


def test_one_tile_equals_the_untiled_result(vae: VideoVAE) -> None:
    video, latent = torch.rand(2, 3, 9, 32, 48) * 2 - 1, torch.randn(2, 8, 3, 4, 6)
    mean, std = vae.model.latents_mean.view(-1, 1, 1, 1), vae.model.latents_std.view(-1, 1, 1, 1)
    plain = (vae.model.encode(video).latent_dist.mode() - mean) / std
    assert torch.equal(vae.encode(video), plain)
    for tiling in (None, Tiling(9, 9, 9), Tiling(4, 5, 6, 1, 1)):
        assert torch.equal(vae.decode(latent, tiling), vae.model.decode(latent * std + mean).sample.clamp(-1, 1))


def test_away_from_edges_tiles_equal_the_untiled_result(vae: VideoVAE) -> None:
    """A changed cell measures the receptive field; pixels farther than that from every edge of a tile must be equal."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 8, 2, 3, 60, generator=generator)
    changed = latent.clone()
    changed[..., 30] += 1
    untiled = vae.decode(latent)
    columns = (untiled - vae.decode(changed)).abs().amax((0, 1, 2, 3)).nonzero()
    # Pixels from the farther side of the cell.
    reach = max(31 * 8 - int(columns.min()), int(columns.max()) + 1 - 30 * 8)
    tiling = Tiling(9, 9, 36, 1, 4)
    edges = [edge * 8 for span in tiling.spans(2, 3, 60)[2] for edge in span if edge not in (0, 60)]
    near = torch.tensor([any(abs(x + 0.5 - edge) < reach for edge in edges) for x in range(60 * 8)])
    tiled = vae.decode(latent, tiling)
    assert 0 < near.sum() < 480 - 100
    assert (tiled - untiled).abs().max() > 1e-4  # near the edges they differ
    torch.testing.assert_close(tiled[..., ~near], untiled[..., ~near], atol=1e-5, rtol=0)


def test_blended_tiles_are_close_with_nanos_weights() -> None:
    nano, tiling = BaseModel.open("nano").vae(), Tiling(6, 9, 9)
    video = torch.from_numpy(moving(25, 104, 104)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    latent = nano.encode(video)
    untiled = nano.decode(latent)
    assert all(len(axis) >= 2 for axis in tiling.spans(*latent.shape[2:]))
    assert (untiled - video).square().mean().sqrt() < 0.4 * video.std()
    assert (nano.decode(latent, tiling) - untiled).square().mean().sqrt() < 0.03 * untiled.std()
    nano.max_pixels = nano.temporal * 72 * 72  # one latent frame of a tile of 9 x 9 cells, one of four
    assert 1e-4 < (nano.encode(video) - latent).square().mean().sqrt() < 0.03 * latent.std()


@pytest.mark.parametrize("cells", [1, 2, 3, 5])
def test_latents_do_not_depend_on_the_chunks_of_frames(vae: VideoVAE, cells: int) -> None:
    video = torch.rand(1, 3, 21, 32, 48) * 2 - 1
    whole, vae.max_pixels = vae.encode(video), cells * vae.temporal * 32 * 48
    chunks, chunk_frames = vae.encode(video), [chunk.shape[2] for chunk in split_frames(video, vae.temporal, cells)]
    vae.max_pixels = MAX_PIXELS
    count = math.ceil(6 / cells)
    assert (len(chunk_frames), sum(chunk_frames)) == (count, 21)
    assert max(chunk_frames) <= cells * vae.temporal
    torch.testing.assert_close(chunks, whole, atol=1e-5, rtol=1e-5)


def test_large_clips_are_tiled_by_default(vae: VideoVAE) -> None:
    video = torch.rand(2, 3, 17, 96, 112) * 2 - 1
    sizes: list[int] = []

    def record_size(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        batch, _, frames, height, width = inputs[0].shape
        cells = frames, height, width  # or patches, after two frames of padding
        patches = (frames - 2) * height * width * VAE["patch_size"] ** 2
        sizes.append(batch * (patches if module is first_layer else pixels_of(TINY, cells)))

    first_layer = vae.model.encoder.conv_in.conv
    hooks = [module.register_forward_pre_hook(record_size) for module in (first_layer, vae.model.decoder)]
    untiled = vae.encode(video)
    assert sizes == [2 * 17 * 96 * 112]
    vae.max_pixels = 17 * 80 * 80
    latent = vae.encode(video)
    assert len(sizes) == 1 + 2 * 3
    pixels = vae.decode(latent)
    vae.max_pixels = MAX_PIXELS
    for hook in hooks:
        hook.remove()
    assert max(sizes[1:]) <= 17 * 80 * 80
    assert pixels.shape == video.shape
    torch.testing.assert_close(latent, untiled, atol=1e-5, rtol=1e-5)


def test_auto_returns_few_tiles_that_fit() -> None:
    assert Tiling.auto(LTX, (7, 17, 30), 1 << 25).spans(7, 17, 30) == ([(0, 7)], [(0, 17)], [(0, 30)])
    clip = (16, 22, 40)  # 1280 x 704 x 121
    tiling = Tiling.auto(LTX, clip, 1 << 25)
    counts = [len(axis) for axis in tiling.spans(*clip)]
    assert pixels_of(LTX, (tiling.frames, tiling.height, tiling.width)) <= 1 << 25
    assert 4 <= counts[0] * counts[1] * counts[2] <= 8
    with pytest.raises(ValueError, match="max_pixels=1000 is too small for the VAE's tiles: it must be at least"):
        Tiling.auto(LTX, clip, 1000)
    with pytest.raises(ValueError, match=r"Tiling.frames=3 must be larger than the overlap of 4 cells"):
        Tiling(3, 8, 8)
