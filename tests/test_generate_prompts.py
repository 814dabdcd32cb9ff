"""A prompt for each window of a long video: which window has which text, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError
from iclora_train.generate import run
from iclora_train.generate.prompts import describe_prompts, window_prompts
from iclora_train.generate.settings import settings_from_record
from iclora_train.generate.windows import Window
from iclora_train.ltx2.base_model import BaseModel
from tests.test_generate import assets, generate_pixels, pixels, settings_for
from tests.test_generate_windows import IN_WINDOWS, long_clip

__all__ = ["assets", "long_clip"]  # the fixtures
WINDOWS = [Window(0, 9), Window(4, 9, 5), Window(8, 9, 5)]  # make frames 0 to 8, 9 to 12, 13 to 16


def prompts_of(assets: Path, windows: list[Window] = WINDOWS, **changes: Any) -> list[str]:
    settings = settings_for(assets, assets, frames=17, **changes)
    return window_prompts(settings, Adapter({}, {"trigger": "EDGES"}), BaseModel.open(str(assets / "base")), windows)


@pytest.mark.parametrize(
    ("prompt", "frames", "expected"),
    [
        ("a", None, "aaa"),
        (["a"], [0], "aaa"),
        (["a", "b"], None, "abb"),  # the last one holds for the rest
        (["a", "b", "c"], None, "abc"),
        (["a", "b"], [0, 9], "abb"),
        (["a", "b"], [0, 13], "aab"),
        (["a", "b"], [0, 14], "aab"),  # 3 of the 4 new frames of the last window
        (["a", "b"], [0, 11], "aab"),  # 2 of 4: the earlier text
        (["a", "b"], [0, 10], "abb"),
        (["a", "b", "c"], [0, 9, -4], "abc"),  # counted from the end
    ],
)
def test_which_window_has_which_text(assets: Path, prompt: Any, frames: Any, expected: str) -> None:
    assert prompts_of(assets, prompt=prompt, prompt_frames=frames) == [f"EDGES {letter}" for letter in expected]


def test_the_frames_of_each_prompt_are_printed() -> None:
    assert describe_prompts(["a", "b", "b"], WINDOWS) == ["frames 0 to 8: 'a'", "frames 9 to 16: 'b'"]
    assert describe_prompts(["a", "a", "a"], WINDOWS) == []


def test_a_window_is_sampled_with_its_text(
    assets: Path, long_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def frames(name: str, prompt: Any, **changes: Any) -> Any:
        parts = {"prompt": prompt, "reference": str(long_clip)} | IN_WINDOWS
        return generate_pixels(assets, tmp_path / name, **parts | changes)

    one, other, both = frames("one", "a dog"), frames("other", "a cat"), frames("both", ["a dog", "a dog", "a cat"])
    lines = capsys.readouterr().out
    assert "frames 0 to 12: 'EDGES a dog'\nframes 13 to 16: 'EDGES a cat'\n" in lines
    assert (one[:4] != other[:4]).any()  # the text matters
    assert (both[:8] == one[:8]).all()  # frames 8 to 12 are carried, and fade
    assert (both[13:] != one[13:]).any()
    record = json.loads((tmp_path / "both/video.json").read_text())
    assert record["settings"]["prompt"] == ["a dog", "a dog", "a cat"]
    assert (record["prompt"], record["prompts"]) == ("EDGES a dog", ["EDGES a dog", "EDGES a dog", "EDGES a cat"])
    again = settings_from_record(record)
    again.out, again.frames_out = str(tmp_path / "again/video.mp4"), str(tmp_path / "again/frames")
    run.generate(again)
    assert (pixels(tmp_path / "again") == both).all()
    assert "prompts" not in json.loads((tmp_path / "one/video.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, r"prompt=\[\] must be a text, or a list of texts"),
        ({"prompt": ["a", None]}, r"prompt=\['a', None\] must be a text, or a list of texts, one for each window"),
        ({"prompt_frames": 0}, r"prompt_frames=0 must be a list of frame numbers, e\.g\. \[0,97\]"),
        ({"prompt_frames": [0, 9]}, r"prompt_frames=\[0, 9\] has 2 frames, and prompt has 1 texts"),
        ({"prompt": ["a"] * 4}, "prompt has 4 texts, and the video has 3 windows: give at most one for each"),
        ({"prompt": ["a", "b"], "windows": WINDOWS[:1]}, "prompt has 2 texts, and the video is made in one piece: set"),
        ({"prompt": ["a", "b"], "prompt_frames": [1, 9]}, r"prompt_frames=\[1, 9\]: the first text begins at frame 1"),
        ({"prompt": ["a", "b"], "prompt_frames": [0, 17]}, "the video has no frame 17, only 17 frames"),
        ({"prompt": ["a", "b"], "prompt_frames": [0, -18]}, "the video has no frame -18, only 17 frames"),
        ({"prompt": ["a", "b", "c"], "prompt_frames": [0, 13, 9]}, "frame 9 is not after the frame before it"),
        (
            {"prompt": ["a", "b", "c"], "prompt_frames": [0, 9, 10]},
            r"no window has the text that begins at frame 9, .* the windows make frames 0 to 8, 9 to 12, 13 to 16: let",
        ),
    ],
)
def test_texts_that_do_not_fit_are_named(changes: dict[str, Any], message: str, assets: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prompts_of(assets, **changes)
