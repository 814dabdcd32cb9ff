"""Prepare many small clips while the processes are killed again and again, and compare with an undisturbed run.

    python -m scripts.stress_prep /tmp/stress --clips 5000 --kill-every 30

writes the clips (64x64 pixels, 12 frames, each with a caption), prepares windows of 32x32x9 once undisturbed and once
with a SIGKILL of the whole process group every --kill-every seconds, and compares all files. Settings of data_prep may
follow, e.g. data.workers=2. What an earlier command has left in the folder is used again. Exit code 1 if files differ.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from iclora_train.core.atomic_files import sha256, write_atomic
from iclora_train.core.progress import progress_bar
from iclora_train.media.shard_clip import encode_clip

FRAMES, SIDE, FPS = 12, 64, 25.0
SIZE = ("data.height=32", "data.width=32", "data.frames=9")
SPLITS = ("train",) * 8 + ("val", "heldout")
MAX_IDLE = 10  # restarts in a row without a new file, after which the preparation does not get further
COLOURS = ("red", "green", "blue", "grey", "golden")


def write_clips(folder: Path, count: int) -> Path:
    """Write `count` clips of a texture that slides, and the list of them. Returns the list."""
    listing = folder / "list.csv"
    if listing.exists():
        return listing
    with progress_bar("writing clips", count, "clip") as bar:
        for number in bar.track(range(count)):
            with write_atomic(folder / f"{number:05d}.mp4") as file:
                file.write(encode_clip(_texture(number), FPS, lossless=False))
    with listing.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "caption", "split"])
        for number in range(count):
            caption = f"a {COLOURS[number % len(COLOURS)]} texture, number {number}, slides to the left"
            table.writerow([f"{number:05d}.mp4", caption, SPLITS[number % len(SPLITS)]])
    return listing


def _texture(seed: int) -> np.ndarray:
    """Smooth noise that slides by 1 to 3 pixels a frame: uint8 (F,H,W,3)."""
    rng = np.random.default_rng(seed)
    step = int(rng.integers(1, 4))
    noise = rng.integers(0, 256, (SIDE, SIDE + step * FRAMES, 3), dtype=np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(1, 3))), None, 0, 255, cv2.NORM_MINMAX)
    return np.stack([smooth[:, step * i : step * i + SIDE] for i in range(FRAMES)])


def prepare(clips: Path, root: Path, settings: list[str], kill_every: float | None = None) -> int:
    """Run data_prep until it ends by itself, with a SIGKILL every `kill_every` seconds. Returns the number of kills.

    SystemExit if it ends with an error, or if MAX_IDLE runs in a row add no file to data.root.
    """
    command = [sys.executable, "-m", "data_prep", "conf=deblur", f"data.clips={clips}", f"data.root={root}", *settings]
    root.parent.mkdir(parents=True, exist_ok=True)
    kills, idle, files = 0, 0, 0
    with (root.parent / f"{root.name}.log").open("ab") as log:
        while True:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                code = process.wait(kill_every)
            except subprocess.TimeoutExpired:
                kills += 1
            else:
                if code:
                    raise SystemExit(f"data_prep ended with exit code {code}: see {log.name}")
                return kills
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            before, files = files, len(_files(root))
            idle = idle + 1 if files <= before else 0
            print(f"kill {kills}: {files} files, {len(list(root.glob('latents/*.tar')))} latent shards", flush=True)
            if idle == MAX_IDLE:
                raise SystemExit(f"{MAX_IDLE} runs of {kill_every:g} s have added no file: see {log.name}")


def _files(root: Path) -> dict[str, Path]:
    """The files below a folder by relative path."""
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


def differences(one: Path, other: Path) -> list[str]:
    """Relative paths of the files that differ, or are in one folder only."""
    a, b = _files(one), _files(other)
    return sorted(
        name for name in a.keys() | b.keys() if not {name} <= a.keys() & b.keys() or _differ(a[name], b[name])
    )


def _differ(one: Path, other: Path) -> bool:
    return one.stat().st_size != other.stat().st_size or sha256(one) != sha256(other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--kill-every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("settings", nargs="*", help="settings of data_prep")
    arguments = parser.parse_intermixed_args()
    clips = write_clips(arguments.folder / "clips", arguments.clips)
    settings = [f"data.train_windows={arguments.clips}", "data.heldout_windows=64", *SIZE, *arguments.settings]
    begin = time.monotonic()
    prepare(clips, arguments.folder / "undisturbed", settings)
    undisturbed = time.monotonic()
    print(f"undisturbed: {undisturbed - begin:.0f} s", flush=True)
    kills = prepare(clips, arguments.folder / "killed", settings, arguments.kill_every)
    print(f"killed {kills} times, every {arguments.kill_every:g} s: {time.monotonic() - undisturbed:.0f} s")
    differing = differences(arguments.folder / "undisturbed", arguments.folder / "killed")
    count = len(_files(arguments.folder / "undisturbed"))
    if differing:
        raise SystemExit(f"{len(differing)} files differ, first {', '.join(differing[:5])}")
    print(f"all {count} files are equal")


if __name__ == "__main__":
    main()
