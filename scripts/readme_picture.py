"""Make the README's picture: reference | without adapter | with adapter | target, one row for each finished run.

    python -m scripts.readme_picture deblur=plaza_walkers-00001 canny=skyline_rise-00000 motion_tracks=box_turn-00000

`TASK=KEY` is a task that was trained on nano (runs/TASK-nano, shards/TASK-nano) and the key of one of its held-out
pairs. Both clips of a pair are sampled by `python -m iclora_train.generate` with one seed: once with the adapter at
strength 0, once at strength 1. Tasks named by --first-frame also get the first frame of the target, in both clips.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = list[NDArray[np.uint8]]  # each (H,W,3)

COLUMNS = ("reference", "base + reference, no adapter", "base + reference + adapter", "target")
CELL, GAP, HEADER, LABEL = 208, 6, 28, 104  # pixels
INK, PAPER = (32, 32, 32), (255, 255, 255)


@dataclass(frozen=True)
class HeldOutPair:
    """The files of one held-out pair, as data_prep stored them."""

    reference: Path
    target: Path
    caption: str


def extract_pair(shards: Path, key: str, folder: Path) -> HeldOutPair:
    """Copy a pair out of the held-out shards into `folder`; ValueError if no shard holds it."""
    for shard in sorted((shards / "pairs").glob("heldout-*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: member for member in tar.getmembers() if member.name.startswith(f"{key}.")}
            if not members:
                continue
            for name, member in members.items():
                content = tar.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())
        caption = json.loads((folder / f"{key}.json").read_text())["caption"]
        return HeldOutPair(folder / f"{key}.reference0.mp4", folder / f"{key}.target.mp4", caption)
    raise ValueError(f"{shards}/pairs has no held-out pair {key}")


def generate(task: str, run: Path, pair: HeldOutPair, strength: float, first_frame: Path | None, out: Path) -> Frames:
    """Sample a clip with the adapter of `run` at `strength`. Returns its frames."""
    settings = [f"conf={task}", f"adapter={run / 'adapter.safetensors'}", f"adapter_strength={strength}"]
    settings += [f"reference={pair.reference}", f"prompt='{pair.caption}'"]
    settings += [f"out={out}.mp4", f"frames_out={out}"]
    settings += [] if first_frame is None else [f"first_frame={first_frame}"]
    subprocess.run([sys.executable, "-m", "iclora_train.generate", *settings], check=True)
    return [np.asarray(Image.open(file).convert("RGB")) for file in sorted(out.glob("*.png"))]


def read_clip(path: Path) -> Frames:
    """All frames of a video file."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def clips_of(task: str, key: str, runs: Path, shards: Path, with_first_frame: bool) -> list[Frames]:
    """The clips of a row, in the order of COLUMNS."""
    run = runs / f"{task}-nano"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pair = extract_pair(shards / f"{task}-nano", key, folder)
        target = read_clip(pair.target)
        first_frame = folder / "first.png" if with_first_frame else None
        if first_frame is not None:
            Image.fromarray(target[0]).save(first_frame)
        without, adapted = (
            generate(task, run, pair, strength, first_frame, folder / name)
            for strength, name in ((0.0, "without"), (1.0, "adapted"))
        )
        return [read_clip(pair.reference), without, adapted, target]


def draw(rows: dict[str, list[Frames]], number: int) -> Image.Image:
    """Frame `number` of the grid, with the names of columns and rows."""
    font = ImageFont.load_default(15)
    width, height = LABEL + len(COLUMNS) * (CELL + GAP), HEADER + len(rows) * (CELL + GAP)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(COLUMNS):
        pen.text((LABEL + column * (CELL + GAP) + CELL / 2, HEADER / 2), title, INK, font, anchor="mm")
    for row, (task, clips) in enumerate(rows.items()):
        top = HEADER + row * (CELL + GAP)
        pen.text((LABEL / 2, top + CELL / 2), task.replace("_", "\n"), INK, font, anchor="mm", align="center")
        for column, clip in enumerate(clips):
            frame = Image.fromarray(clip[min(number, len(clip) - 1)])
            page.paste(frame.resize((CELL, CELL), Image.Resampling.BICUBIC), (LABEL + column * (CELL + GAP), top))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="TASK=KEY", help="task, and the key of one of its held-out pairs")
    parser.add_argument("--first-frame", nargs="*", default=["motion_tracks"], metavar="TASK")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--fps", type=float, default=8, help="of the picture; nano's clips have 9 frames")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/readme.webp"))
    args = parser.parse_args()
    rows = {
        task: clips_of(task, key, args.runs, args.shards, task in args.first_frame)
        for task, key in (row.split("=") for row in args.rows)
    }
    length = max(len(clip) for clips in rows.values() for clip in clips)
    forwards = [draw(rows, number) for number in range(length)]
    pages = forwards + forwards[-2:0:-1]  # forwards, then backwards, so that the loop does not jump
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(args.out, save_all=True, append_images=pages[1:], duration=1000 / args.fps, loop=0, quality=75)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
