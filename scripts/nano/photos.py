"""Load a folder of photos as one uint8 tensor. The folder has a photos.csv with the columns file and split."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

WIDE = 1.25  # a photo with a larger aspect ratio gives two squares, one from each end


class Bank(NamedTuple):
    """squares: uint8 (N, 3, S, S); owner: for each square the file name of its photo."""

    squares: Tensor
    owner: list[str]


def squares_of(file: Path, side: int) -> list[np.ndarray]:
    """One or two squares (side, side, 3) of a photo whose short edge was scaled to `side`."""
    with Image.open(file) as opened:
        photo = opened.convert("RGB")
    scale = side / min(photo.size)
    size = [max(side, round(edge * scale)) for edge in photo.size]
    pixels = np.asarray(photo.resize(size, Image.Resampling.LANCZOS))  # (H, W, 3)
    spare = [edge - side for edge in pixels.shape[:2]]
    if max(size) > WIDE * side:
        return [pixels[:side, :side], pixels[spare[0] :, spare[1] :]]
    return [pixels[spare[0] // 2 :, spare[1] // 2 :][:side, :side]]


def load_bank(folder: Path, split: str, side: int = 256) -> Bank:
    """All photos of a split ("train" or "val") as squares of `side` pixels."""
    with (folder / "photos.csv").open(newline="") as table:
        files = [row["file"] for row in csv.DictReader(table) if row["split"] == split]
    if not files:
        raise ValueError(f"{folder / 'photos.csv'} has no photo with split {split!r}")
    with ThreadPoolExecutor() as pool:
        per_photo = list(pool.map(lambda name: squares_of(folder / name, side), files))
    squares = torch.from_numpy(np.stack([square for photo in per_photo for square in photo]))  # (N, S, S, 3)
    owner = [name for name, photo in zip(files, per_photo, strict=True) for _ in photo]
    return Bank(squares.permute(0, 3, 1, 2).contiguous(), owner)
