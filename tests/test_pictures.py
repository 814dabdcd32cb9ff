"""Still pictures of every kind are read alike by preparation and generation, or refused by name."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.clips.clip_list import list_clips
from iclora_train.config import ConfigError
from iclora_train.generate.input_media import InputMedia
from iclora_train.media.clip import probe, read_clip
from iclora_train.media.picture import read_picture

QUARTERS = np.array([[(220, 40, 60), (40, 200, 80)], [(50, 60, 210), (240, 230, 60)]], np.uint8)
PICTURE = QUARTERS.repeat(24, axis=0).repeat(32, axis=1)  # (48,64,3)
# rows and columns of the upright picture of each EXIF orientation
UPRIGHT = {
    **{1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1]},
    **{5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1)},
    **{7: lambda p: p[::-1, ::-1].swapaxes(0, 1), 8: np.rot90},
}


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    """Save PICTURE or another image with Pillow."""
    (image or Image.fromarray(PICTURE)).save(path, **options)
    return path


def from_generate(path: Path) -> np.ndarray:
    """The picture as generation reads it."""
    media = InputMedia.open("first_frame", str(path))
    return media.read(np.array([0]), (media.height, media.width), "crop")[0]


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied_in_preparation_and_generation(suffix, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {".jpg": {"quality": 98, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    path = save(tmp_path / f"a{suffix}", exif=exif, **options)
    expected = UPRIGHT[orientation](PICTURE)
    picture = next(read_clip(path))
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= 3
    assert (from_generate(path) == picture).all()
    assert (probe(path).height, probe(path).width, probe(path).frames) == (*expected.shape[:2], 1)


@pytest.mark.parametrize(
    "kind", ["png16", "rgba16", "tif16", "cmyk.jpg", "cmyk.tif", "palette.png", "bmp", "webp", "avif"]
)
def test_every_format_shows_the_same_colours(kind, tmp_path):
    path = tmp_path / f"a.{kind.split('.')[-1].replace('16', '').replace('rgba', 'png')}"
    wide = PICTURE[..., ::-1].astype(np.uint16) * 257
    if kind == "rgba16":
        cv2.imwrite(str(path), np.dstack([wide, np.full((48, 64), 65535, np.uint16)]))
    elif kind.endswith("16"):
        cv2.imwrite(str(path), wide)
    elif kind.startswith("cmyk"):
        save(path, Image.fromarray(PICTURE).convert("CMYK"), quality=98)
    elif kind == "palette.png":
        save(path, Image.fromarray(PICTURE).quantize(8))
    else:
        save(path, quality=99)
    picture = read_picture(path).astype(int)
    error = np.abs(picture - PICTURE)[[4, 4, -5, -5], [4, -5, 4, -5]]
    assert error.max() <= (3 if kind in ("webp", "avif", "cmyk.jpg") else 1)


def test_grey_pictures_of_16_bits_are_rounded(tmp_path):
    levels = np.array([[0, 128, 129, 257, 32767, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), levels)
    assert read_picture(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 1, 127, 255]
    cv2.imwrite(str(tmp_path / "a.tif"), levels.astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as an image \(its levels are not 8 or 16 bit"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_transparent_parts_are_black_whatever_colour_they_hide(suffix, tmp_path):
    alpha = np.repeat(np.array([0, 128, 255, 255], np.uint8), 16)[None, :, None].repeat(48, 0)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", Image.fromarray(np.dstack([PICTURE, alpha])), **options)
    picture = read_picture(path)
    assert (picture[:, :16] == 0).all()
    assert (picture[:24, 16:32] == np.rint(QUARTERS[0, 0] * (128 / 255))).all()
    assert (picture[:, 32:] == PICTURE[:, 32:]).all()


def test_a_mask_in_the_alpha_of_a_white_picture_is_the_mask(tmp_path):
    shape = np.zeros((48, 64, 1), np.uint8)
    shape[10:20, 10:30] = 255
    path = save(tmp_path / "a.png", Image.fromarray(np.dstack([np.full((48, 64, 3), 255, np.uint8), shape])))
    assert (next(read_clip(path)) == shape).all()


def test_transparent_palettes_and_gifs(tmp_path):
    image = Image.fromarray(PICTURE).quantize(8)
    hidden = image.getpixel((4, 4))
    for name in ("a.png", "a.gif"):
        picture = next(read_clip(save(tmp_path / name, image, transparency=hidden)))
        assert picture[4, 4].tolist() == [0, 0, 0]
        assert np.abs(picture[-5, -5].astype(int) - QUARTERS[1, 1]).max() <= 1


def profile_of(primaries: list[list[float]], gamma: float) -> bytes:
    """An ICC profile (version 2) of an RGB space: columns are the primaries as XYZ relative to D50."""

    def fixed(values: list[float]) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    tags = {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"wide\0" + bytes(78)}
    tags |= {
        name: b"XYZ \0\0\0\0" + fixed(xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    }
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + fixed([0.9642, 1.0, 0.8249])
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, unpadded in tags.items():
        data = unpadded + bytes(-len(unpadded) % 4)
        table, body = table + name + struct.pack(">II", offset + len(body), len(data)), body + data
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed([0.9642, 1.0, 0.8249]) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


ADOBE_RGB = [[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]]
SRGB_D50 = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_icc_profiles_are_converted_to_srgb(suffix, tmp_path):
    stored = np.array([[200, 120, 90]], np.uint8)
    image = Image.fromarray(stored.repeat(48, 0)[:, None].repeat(64, 1))
    linear = np.linalg.solve(SRGB_D50, np.array(ADOBE_RGB).T @ (stored[0] / 255) ** (563 / 256))
    expected = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255
    options = {".jpg": {"quality": 98}, ".webp": {"lossless": True}}.get(suffix, {})
    path = save(tmp_path / f"a{suffix}", image, icc_profile=profile_of(ADOBE_RGB, 563 / 256), **options)
    assert np.abs(expected - stored).max() > 10
    assert np.abs(read_picture(path)[24, 32] - expected).max() <= 2
    path = save(tmp_path / f"b{suffix}", image, icc_profile=b"not a profile", **options)
    assert np.abs(read_picture(path)[24, 32].astype(int) - stored).max() <= 2


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that states this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [11_600, 13_000, 16_000, 60_000, 2**31 - 1])
def test_huge_pictures_are_refused_before_they_are_decoded(side, tmp_path):
    path = png_header(tmp_path / "a.png", side, side)
    for read in (read_picture, probe, lambda file: next(read_clip(file))):
        with pytest.raises(ValueError, match=r"a\.png.*limit of 134,217,728.*make it smaller"):
            read(path)
    with pytest.raises(ConfigError, match=r"first_frame: .*limit of 134,217,728"):
        InputMedia.open("first_frame", str(path))


def test_animations_are_refused_and_second_pictures_of_phones_ignored(tmp_path):
    other = Image.fromarray(PICTURE[::-1])
    for name in ("a.webp", "a.png"):
        path = save(tmp_path / name, save_all=True, append_images=[other], duration=40)
        with pytest.raises(ValueError, match=rf"{name} .*animation of 2 frames; make a video"):
            read_picture(path)
    path = save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[other], quality=98)
    assert np.abs(read_picture(path)[4, 4].astype(int) - QUARTERS[0, 0]).max() <= 3


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    whole = {
        suffix: save(tmp_path / f"whole{suffix}").read_bytes() for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp")
    }
    rng = np.random.default_rng(0)
    for suffix, data in whole.items():
        for number in range(60):
            damaged = bytearray(data[: rng.integers(len(data))] if number % 2 else data)
            for at in rng.integers(0, max(min(len(damaged), 200), 1), 4):
                damaged[at : at + 1] = rng.bytes(1)
            path = tmp_path / f"damaged{suffix}"
            path.write_bytes(damaged)
            try:
                assert read_picture(path).shape[2] == 3
            except ValueError as error:
                assert path.name in str(error)  # noqa: PT017 (some damage goes unnoticed)


def test_pipes_heic_and_missing_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.heic").write_bytes(bytes(99))
    for name, reason in (
        ("pipe.png", "a named pipe"),
        ("a.heic", "HEIC is not supported"),
        ("gone.png", "No such file"),
    ):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an image.*{reason}"):
            probe(tmp_path / name)


def test_folders_list_pictures_of_every_kind(tmp_path):
    for suffix in (".png", ".JPG", ".webp", ".bmp", ".tif", ".avif"):
        save(tmp_path / f"a{suffix}")
    clips = list_clips(str(tmp_path), 0.1, images=True)
    assert len(clips) == 6
    assert all(clip.is_image for clip in clips)
