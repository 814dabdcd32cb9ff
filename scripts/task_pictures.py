"""Make the pictures of docs/tasks.md: `python -m scripts.task_pictures [OUT_DIR] [--tasks deblur canny ...]`.

For each task, a window of one embedded sample clip passes through the task's own maker and arguments. The picture shows
the middle frame of the target next to the same frame of the reference: OUT_DIR/<task>.jpg. Tasks without a picture:
day_to_night, water, shave and cross_eyed, whose pairs the user supplies, and depth, whose network is not included.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from hydra import compose, initialize_config_dir

from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.windows import Window
from data_prep.makers import build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, crop_window, make_reference, read_windows
from iclora_train.config import Config, to_config
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.media.frame_times import temporal_subsample

FRAMES = 33
QUALITY = 88
GAP = 6  # white pixels between target and reference
# task -> id of the sample clip and first frame
CLIPS = {
    "deblur": ("street_bicycle", 0),
    "motion_deblur": ("plaza_walkers", 5),
    "decompress": ("garden_jump", 30),
    "denoise": ("talk_books", 0),
    "deinterlace": ("street_taxi", 10),
    "upscale_x2": ("smile_door", 0),
    "restore": ("rabbit_wakes", 0),
    "colorize": ("plaza_group", 0),
    "canny": ("rabbit_stretches", 20),
    "pose": ("garden_walk", 0),
    "motion_tracks": ("box_tilt", 20),
    "union": ("garden_jump", 0),
    "inpaint": ("cup_tilt", 0),
    "outpaint": ("balance_side", 0),
    "in_between": ("garden_jump", 30),
    "canny_still": ("rabbit_stretches", 20),
}


def task_picture(config: Config, clip: Clip, first: int, width: int = 320) -> np.ndarray:
    """The middle frame of a window: target and references side by side, uint8 RGB."""
    frames = next(read_windows(clip.path, [_whole_window(clip, first, (16, 16))]))
    height, full_width = (side // 32 * 32 for side in frames[0].shape[:2])
    size = (height, min(width, full_width))
    window = _whole_window(clip, first, size, frames[0].shape[:2])
    gap = np.full((height, GAP, 3), 255, np.uint8)
    pictures: list[np.ndarray] = []
    for number, task in enumerate(config.task.for_references()):
        scale = ReferenceScale(task.reference_downscale, task.reference_temporal_scale)
        maker = build_maker(task.maker, task.maker_args)
        reference, _ = make_reference(frames, window, maker, SourceVideo(clip.path, clip.files), [0, number], scale)
        middle = len(reference) // 2
        if number == 0:
            pictures.append(temporal_subsample(crop_window(frames, window), scale.temporal_scale)[middle])
        pictures += [gap, cv2.resize(reference[middle], size[::-1], interpolation=cv2.INTER_NEAREST)]
    return np.hstack(pictures)


def _whole_window(clip: Clip, first: int, size: tuple[int, int], scaled: tuple[int, ...] = (0, 0)) -> Window:
    """A window of FRAMES frames from frame `first`, cropped to `size` from the middle of the frame."""
    height, width = scaled
    top_left = (max(height - size[0], 0) // 2, max(width - size[1], 0) // 2)
    return Window(clip.id, 0, tuple(range(first, first + FRAMES)), (height, width), top_left, size, False, 24.0)


def main() -> None:
    """Write one picture per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, nargs="?", default=Path("docs/pictures/tasks"))
    parser.add_argument("--tasks", nargs="+", choices=sorted(CLIPS), default=list(CLIPS))
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    clips = {clip.id: clip for clip in list_clips("samples", 0.1)}
    register_schema()
    for task in options.tasks:
        name, first = CLIPS[task]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = to_config(compose("prep", [f"conf={task}"]))
        picture = task_picture(config, clips[name], first)
        path = options.out_dir / f"{task}.jpg"
        cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        print(f"{path}: {picture.shape[1]}x{picture.shape[0]}, {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
