"""Collect the freely licensed photos that nano is pretrained on: `python -m scripts.nano.collect_photos OUT_DIR`.

Downloads the packages of photo_sources with their own clients, reads the licence of each picture from the package
(DEP-5 paragraphs) or from that table, and drops near-identical pictures. Writes OUT_DIR/photos/*.jpg (short side 256)
and OUT_DIR/photos.csv (file, source, original, licence, split, author).
"""

import argparse
import csv
import hashlib
import io
import logging
import re
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from scripts.nano.packages import download, licence_of
from scripts.nano.photo_sources import SOURCES, Source

SIDE, LONG, QUALITY = 256, 512, 92
VAL_PERCENT = 4
FREE = re.compile(r"public.domain|CC0|CC-BY(-SA)?-\d|L?GPL|GFDL|free-art|MIT|Expat|BSD|Apache", re.I)
NOT_FREE = re.compile(r"-NC|-ND|sampling|unknown|missing", re.I)
log = logging.getLogger(__name__)


class Photo(NamedTuple):
    """One picture of a package, before resizing."""

    path: str
    image: Image.Image
    licence: str
    author: str


def photos_of(source: Source, folder: Path) -> Iterator[Photo]:
    """The selected pictures of a source that have a free licence."""
    files = download(source, folder)
    dep5 = next((data.decode() for name, data in files.items() if name.endswith(f"{source.package}/copyright")), "")
    for name in sorted(files):
        path = name.partition(source.cut)[2] if source.cut else name
        skipped = any(fnmatch(path.lower(), glob) for glob in source.skip.split())
        if skipped or not any(fnmatch(path, glob) for glob in source.take.split()):
            continue
        licence, author = (source.licence, source.author) if source.licence else licence_of(dep5, path)
        if not FREE.search(licence) or NOT_FREE.search(licence):
            log.info("rejected %s: licence %s", path, licence)
            continue
        try:
            image = Image.open(io.BytesIO(files[name]))
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            yield Photo(path, image.convert("RGBA" if has_alpha else "RGB"), licence, author)
        except OSError:
            log.info("unreadable %s", path)


def on_background(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put a cut-out (RGBA) on a soft random gradient. The canvas has at least SIDE pixels, so it is never enlarged."""
    if image.mode == "RGB":
        return image
    corners = Image.fromarray(np.uint8(rng.integers(70, 200) + rng.integers(-30, 31, (2, 2, 3))))
    width, height = (max(SIDE, edge) for edge in image.size)
    canvas = corners.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2), image)
    return canvas


def views(image: Image.Image, crops: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    """The whole photo (a very wide one in pieces), then `crops` windows of a large photo, 35-70 % of its short side."""
    width, height = image.size
    short = min(width, height)
    pieces = max(1, min(4, round(max(width, height) / short / 2)))
    for piece in range(pieces):
        if width >= height:
            yield image.crop((width * piece // pieces, 0, width * (piece + 1) // pieces, height))
        else:
            yield image.crop((0, height * piece // pieces, width, height * (piece + 1) // pieces))
    for _ in range(crops if short >= 1000 else min(1, crops) if short >= 560 else 0):
        side = int(max(SIDE, short * rng.uniform(0.35, 0.7)))
        wide = min(width, int(side * 1.4))
        left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - side + 1))
        yield image.crop((left, top, left + wide, top + side))


def to_size(image: Image.Image) -> Image.Image:
    """Resize to short side SIDE, and crop the centre to a long side of at most LONG."""
    scale = SIDE / min(image.size)
    width, height = (max(SIDE, round(edge * scale)) for edge in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (max(0, edge - LONG) // 2 for edge in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def is_flat(image: Image.Image) -> bool:
    """True for pictures without texture (plain sky, gradients) and for drawings in a few flat colours."""
    grey = image.convert("L")
    detail = np.asarray(grey, np.float32) - np.asarray(grey.filter(ImageFilter.GaussianBlur(2)), np.float32)
    return float(np.abs(detail).mean()) < 0.8


def fingerprint(image: Image.Image) -> np.ndarray:
    """Perceptual hash: signs of the horizontal differences of a 17x16 thumbnail, bool (256,)."""
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return (grey[:, 1:] > grey[:, :-1]).ravel()


def collect(out: Path, downloads: Path) -> list[dict[str, str]]:
    """Write OUT/photos/*.jpg and return the rows of photos.csv."""
    (out / "photos").mkdir(parents=True, exist_ok=True)
    hashes: list[np.ndarray] = []
    rows: list[dict[str, str]] = []
    for source in SOURCES:
        for photo in photos_of(source, downloads):
            digest = hashlib.sha256(f"{source.package}/{photo.path}".encode()).hexdigest()
            rng = np.random.default_rng(int(digest[:12], 16))
            image = on_background(photo.image, rng)
            image_hash = fingerprint(image)
            if min(photo.image.size) < 150 or any(int((image_hash != other).sum()) < 24 for other in hashes):
                continue
            hashes.append(image_hash)
            split = "val" if int(digest[12:20], 16) % 100 < VAL_PERCENT else "train"
            for number, view in enumerate(views(image, source.crops, rng)):
                small = to_size(view)
                if is_flat(small):
                    continue
                file = f"photos/{source.package.split('-')[0]}-{digest[:8]}-{number}.jpg"
                small.save(out / file, quality=QUALITY, subsampling=0 if number == 0 else 2)
                rows.append(
                    {
                        "file": file,
                        "source": f"{source.package} {source.version}",
                        "original": photo.path,
                        "licence": photo.licence,
                        "split": split,
                        "author": photo.author,
                    }
                )
    return rows


def main() -> None:
    """Collect everything into OUT_DIR."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--downloads", type=Path, help="keep and reuse the packages here (default: a temporary folder)")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # the packages contain panoramas and wallpapers
    with tempfile.TemporaryDirectory() as temporary:
        downloads = options.downloads or Path(temporary)
        downloads.mkdir(parents=True, exist_ok=True)
        rows = collect(options.out_dir, downloads.resolve())
    with (options.out_dir / "photos.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    log.info("%d photos from %d originals", len(rows), len({(row["source"], row["original"]) for row in rows}))


if __name__ == "__main__":
    main()
