"""Pairs whose two references differ in nothing but their order: python -m scripts.slot_pairs FOLDER

Each sample clip has two references of equal layout: itself out of focus, and another recording of its split out of
focus. All captions are equal. So only the order of the references says which of them the clip is the sharp form of: a
test of `task.reference_slots` (docs/log/nano-experiments.md has the commands and the numbers).
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import cv2
import numpy as np

from data_prep.clips.clip_list import Clip, list_clips
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.progress import progress_bar
from iclora_train.media.shard_clip import encode_clip
from scripts.zoo_pairs import FPS, LISTING, middle_square

BLUR = 2.5  # pixels, standard deviation
CAPTION = "a video"


def partner(clips: list[Clip], number: int) -> Clip:
    """The next clip of the same split that is of another recording."""
    later = clips[number + 1 :] + clips[:number]
    return next(other for other in later if other.split == clips[number].split and other.source != clips[number].source)


def out_of_focus(frames: np.ndarray) -> np.ndarray:
    """Frames (F,H,W,3), each blurred."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), BLUR) for frame in frames])


def fitted(frames: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Frames in number and size as those of `like`; too few are played forwards and backwards."""
    count, height, width = like.shape[:3]
    there_and_back = np.concatenate([frames, frames[::-1]])
    numbers = np.arange(count) % len(there_and_back)
    return np.stack([cv2.resize(there_and_back[i], (width, height), interpolation=cv2.INTER_AREA) for i in numbers])


def write_pairs(folder: Path) -> Path:
    """Write clips and references, and return the list of clips."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, clips = [], list_clips("samples", 0.1)
    with progress_bar("pairs", len(clips), "clip") as bar:
        for number, clip in bar.track(enumerate(clips)):
            frames = middle_square(clip.path)
            other = fitted(middle_square(partner(clips, number).path), frames)
            names = [f"{clip.id}.mp4", f"{clip.id}_first.mp4", f"{clip.id}_second.mp4"]
            for name, shown in zip(names, (frames, out_of_focus(frames), out_of_focus(other)), strict=True):
                with write_atomic(folder / name) as file:
                    file.write(encode_clip(shown, clip.fps or FPS, lossless=False))
            rows.append([clip.id, *names, clip.split, CAPTION, clip.source, clip.licence])
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["id", "video", "reference", "reference_2", "split", "caption", "source", "licence"])
    table.writerows(rows)
    with write_atomic(folder / LISTING) as file:
        file.write(text.getvalue().encode())
    return folder / LISTING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(write_pairs(parser.parse_args().folder))


if __name__ == "__main__":
    main()
