"""Tiles of a picture that is larger than the model holds, from `tile_width`, `tile_height` and `tile_overlap`."""

from __future__ import annotations

from iclora_train.config import require
from iclora_train.core.types import Geometry, VideoShape
from iclora_train.diffusion.tiles import Tile, plan_tiles
from iclora_train.generate.settings import GenerateSettings

OVERLAP = 0.25  # share of the smaller side of a tile by which tiles overlap, without a setting


def tiles_for(settings: GenerateSettings, shape: VideoShape, geometry: Geometry, downscale: int) -> list[Tile]:
    """The tiles of a picture, none if it is not larger than a tile; downscale: the spatial reference factor.

    ConfigError names a setting that does not fit the VAE and the reference factor, and sizes that do.
    """
    width = min(settings.tile_width or shape.width, shape.width)
    height = min(settings.tile_height or shape.height, shape.height)
    divided = [tile for tile, whole in ((width, shape.width), (height, shape.height)) if tile < whole]
    if not divided:
        return []
    unit, smaller = geometry.spatial * downscale, min(divided)
    overlap = settings.tile_overlap
    if overlap is None:
        overlap = max(round(OVERLAP * smaller / unit), 1) * unit
    for key, size in (("tile_width", width), ("tile_height", height), ("tile_overlap", overlap)):
        low = max(size // unit, 1) * unit
        require(size == low, f"{key}={size} is not a multiple of {unit}: use {low} or {low + unit}")
    require(
        2 * overlap <= smaller,
        f"tile_overlap={overlap} is above half of a tile of {width}x{height}: set larger tiles, or a smaller multiple "
        f"of {unit}",
    )
    grid = (shape.height // geometry.spatial, shape.width // geometry.spatial)
    tile = (height // geometry.spatial, width // geometry.spatial)
    return plan_tiles(grid, tile, overlap // geometry.spatial, downscale)


def describe_tiles(tiles: list[Tile], shape: VideoShape, geometry: Geometry) -> str:
    """What is sampled: `9 tiles of 64x64 a step, which sample 2.3 times the pixels of 128x128`."""
    height, width = (cells * geometry.spatial for cells in tiles[0].size((1, 1, 1))[1:])
    share = len(tiles) * height * width / (shape.height * shape.width)
    return (
        f"{len(tiles)} tiles of {width}x{height} a step: {share:.1f} times the pixels of {shape.width}x{shape.height}"
    )
