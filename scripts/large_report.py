"""Write a report with clips of any size, to measure how fast it opens: python -m scripts.large_report SCORES

    python -m scripts.large_report runs/deblur-nano/eval/scores.json --size 960x544x121 --out large-report

Numbers and windows are those of a finished evaluation. Its clips are replaced by a few moving patterns with sensor
noise, so that each is encoded once. Prints the sizes, as an evaluation does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eval.clips.conditions import (
    ADAPTER_ONLY,
    ADAPTER_REFERENCE,
    BASE,
    BASE_REFERENCE,
    CEILING,
    EMPTY_PROMPT,
    HALF_MASK,
    SWAPPED,
    at_strength,
)
from eval.clips.windows import Window
from eval.metrics import Clip
from eval.report.exhibits import REFERENCE, TARGET, Exhibit
from eval.report.media import Media
from eval.report.page import sizes, write_page

FPS = 24.0
NOISE = 2.0  # levels
PATTERNS = 4


class EncodedOnce(Media):
    """Media that encode equal clips once, however many windows show them."""

    def __init__(self, folder: Path, single: bool) -> None:
        super().__init__(folder, single)
        self._encoded: dict[tuple[bytes, bool], bytes] = {}

    def encode(self, clip: Clip, fps: float, small: bool = False) -> bytes:
        """As `Media.encode`."""
        key = (clip[::40, ::8, ::8].tobytes(), small)
        if key not in self._encoded:
            self._encoded[key] = super().encode(clip, fps, small)
        return self._encoded[key]


def pattern(seed: int, width: int, height: int, frames: int) -> Clip:
    """A texture that moves by two pixels per frame, with sensor noise: uint8 (F,H,W,3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (height // 24, (width + 2 * frames) // 24, 3)).astype(np.float32)
    texture = cv2.resize(coarse, (width + 2 * frames, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, NOISE, (height, width, 1)).astype(np.float32)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        shift = tuple(rng.integers((height, width)))
        clip[t] = (texture[:, 2 * t : 2 * t + width] + np.roll(noise, shift, (0, 1))).clip(0, 255)
    return clip


def exhibits(scores: Mapping[str, Any], size: tuple[int, int, int]) -> Iterator[Exhibit]:
    """The windows of an evaluation with patterns as clips."""
    strengths = [at_strength(point["s"]).name for point in scores["strength"]]
    names = [REFERENCE, TARGET, ADAPTER_REFERENCE, BASE_REFERENCE, BASE, ADAPTER_ONLY, EMPTY_PROMPT, SWAPPED, CEILING]
    patterns = [pattern(seed, *size) for seed in range(PATTERNS)]
    clips = {name: patterns[i % PATTERNS] for i, name in enumerate(dict.fromkeys([*names, HALF_MASK, *strengths]))}
    bucket = "x".join(map(str, size))
    for number, facts in enumerate(scores["clips"]):
        window = Window(number, facts["key"], facts["source"], bucket, 0)
        yield Exhibit(window, FPS, "a moving pattern", clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="scores.json of a finished evaluation")
    parser.add_argument("--size", default="960x544x121", help="width x height x frames")
    parser.add_argument("--single", action="store_true", help="one file, as eval.report=single")
    parser.add_argument("--out", type=Path, default=Path("large-report"))
    args = parser.parse_args()
    scores = json.loads(args.scores.read_text(encoding="utf-8"))
    width, height, frames = map(int, args.size.split("x"))
    media = EncodedOnce(args.out, args.single)
    report = write_page(media, scores, exhibits(scores, (width, height, frames)))
    print(f"{report}: {sizes(report, media)}")


if __name__ == "__main__":
    main()
