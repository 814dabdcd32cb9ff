"""Long videos in windows: what a window sees, how it begins, how it is joined to the video, and a killed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError, Model
from iclora_train.core.types import VideoShape
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.generate import run, stages
from iclora_train.generate.inputs import Inputs, encode_references
from iclora_train.generate.kept import encode_frames, encode_kept, read_mask
from iclora_train.generate.size import SizeRules
from iclora_train.generate.windows import Window, describe_windows, join_windows, plan_windows
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import read_clip
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic.upsampler import write_upsampler
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import write_clip
from tests.test_generate import assets, generate_pixels, settings_for, write_adapter

__all__ = ["assets"]  # the fixture
IN_WINDOWS: dict[str, Any] = {"frames": 17, "window_frames": 9, "window_overlap": 5}  # starts at 0, 4 and 8


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", frames=40, height=32, width=32, seed=5)


def frames_of(clip: Path) -> np.ndarray:
    return np.stack(list(read_clip(clip)))


@pytest.mark.parametrize(
    ("frames", "size", "overlap", "expected"),
    [
        (17, 9, 5, [(0, 0), (4, 5), (8, 5)]),
        (33, 9, 1, [(0, 0), (8, 1), (16, 1), (24, 1)]),
        (29, 13, 5, [(0, 0), (8, 5), (16, 5)]),
        (25, 13, 5, [(0, 0), (8, 5), (12, 9)]),  # the last window begins earlier
        (17, 9, None, [(0, 0), (4, 5), (8, 5)]),
        (9, 9, 5, [(0, 0)]),
        (9, None, None, [(0, 0)]),
    ],
)
def test_windows_of_one_length_cover_the_video(
    frames: int, size: int | None, overlap: int | None, expected: list[tuple[int, int]], assets: Path, tmp_path: Path
) -> None:
    settings = settings_for(assets, tmp_path, frames=frames, window_frames=size, window_overlap=overlap)
    windows = plan_windows(settings, frames, SizeRules(8, 4), 4)
    assert [(window.start, window.carried) for window in windows] == expected
    assert {window.frames for window in windows} == {size or frames}
    assert windows[-1].end == frames
    new_frames = [frame for window in windows for frame in range(window.start + window.carried, window.end)]
    assert new_frames == list(range(frames))  # each frame is new in one window


def test_the_cost_is_said_before_the_work() -> None:
    windows = [Window(0, 13), Window(8, 13, 5), Window(12, 13, 9)]
    assert describe_windows(windows) == (
        "3 windows of 13 frames, of which 5 to 9 are carried from the window before: 39 frames are sampled for 25, "
        "1.6 times the work of a frame without windows"
    )


def test_carried_frames_fade_from_one_window_to_the_next() -> None:
    before, new = np.full((4, 2, 2, 3), 100, np.uint8), np.full((5, 2, 2, 3), 200, np.uint8)
    assert join_windows(before, new, 3)[:, 0, 0, 0].tolist() == [100, 125, 150, 175, 200, 200]
    assert join_windows(before, new, 0)[:, 0, 0, 0].tolist() == [100] * 4 + [200] * 5


def test_a_video_in_windows_begins_like_its_first_window(
    assets: Path, long_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = generate_pixels(assets, tmp_path / "long", reference=str(long_clip), **IN_WINDOWS)
    lines = capsys.readouterr().out
    assert video.shape == (17, 32, 32, 3)
    first = generate_pixels(assets, tmp_path / "first", reference=str(long_clip), frames=9)
    assert (video[:4] == first[:4]).all()  # frames 4 to 8 are carried, and fade
    assert "3 windows of 9 frames, of which 5 are carried" in lines
    assert "32x32x9: 6 steps of" in lines
    assert "change at the seams, relative to the frames around (1: no jump): " in lines
    record = json.loads((tmp_path / "long/video.json").read_text())
    assert record["windows"] == [[0, 9], [4, 13], [8, 17]]
    assert [seam["frame"] for seam in record["seams"]] == [9, 13]
    assert all(seam["jump"] > 0 and seam["reference_jump"] > 0 for seam in record["seams"])
    assert json.loads((tmp_path / "first/video.json").read_text())["seams"] == []


def test_a_window_begins_with_the_last_frames_of_the_video_so_far_and_has_the_noise_of_the_seed(
    assets: Path, long_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    sample = stages.sample

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments)
        return sample(*arguments, **options)

    monkeypatch.setattr(stages, "sample", recorded)
    video = generate_pixels(assets, tmp_path, reference=str(long_clip), seed=3, **IN_WINDOWS)
    vae = BaseModel.open(str(assets / "base")).vae()
    assert [call[6] for call in calls] == [[3]] * 3
    kept: list[KeptLatents | None] = [call[8] for call in calls]
    assert kept[0] is None
    for part in kept[1:]:
        assert part is not None
        assert part.mask[0].flatten(1).all(1).tolist() == [True, True, False]
    # the last window: its carried frames fade into the video afterwards, except that the first is nearly unchanged
    assert kept[2] is not None
    carried = vae.decode(kept[2].latent[:, :, :1])[0, :, 0].permute(1, 2, 0).numpy()
    shown = video[8, :, :, ::-1] / 127.5 - 1
    others = [np.abs(carried - (video[i, :, :, ::-1] / 127.5 - 1)).mean() for i in (0, 16)]
    assert np.abs(carried - shown).mean() < min(others)
    for call, start in zip(calls, (0, 4, 8), strict=True):
        (reference,) = call[7]
        assert torch.equal(reference.latent, encode_frames(frames_of(long_clip)[start : start + 9], vae))


def test_references_and_masks_of_a_slower_reference_are_cut_to_the_window(
    assets: Path, long_clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "mask").mkdir()
    for i in range(12):
        cv2.imwrite(str(tmp_path / f"mask/{i:02d}.png"), np.full((32, 32), 10 * i, np.uint8))
    mask = str(tmp_path / "mask")
    settings = settings_for(assets, tmp_path, reference=str(long_clip), attention_mask=mask)
    vae = BaseModel.open(str(assets / "base")).vae()
    inputs, shape, window = Inputs.open(settings), VideoShape(25, 32, 32, 25.0), Window(8, 9, 1)
    adapter = Adapter({}, {"reference_temporal_scale_factor": "2"})
    (reference,) = encode_references(inputs, settings, shape, window, adapter, vae)
    assert torch.equal(reference.latent, encode_frames(frames_of(long_clip)[[8, 9, 11, 13, 15]], vae))
    assert reference.attention_mask is not None
    levels = (reference.attention_mask[0, :, 0, 0] * 255).round().int().tolist()
    assert levels == [80, 90, 110, 110, 110]  # frames 8, 9, 11; then the last is repeated
    media = inputs.masks[0]
    assert media is not None
    assert (read_mask(media, 25.0, 1, 20, 9, (32, 32), "crop") * 255).round().unique().tolist() == [110]


def kept_in(assets: Path, shape: VideoShape, window: Window, **changes: Any) -> KeptLatents:
    settings = settings_for(assets, assets, frames=shape.frames, **changes)
    kept = encode_kept(Inputs.open(settings).kept, settings, shape, window, BaseModel.open(str(assets / "base")).vae())
    assert kept is not None
    return kept


def whole_frames(kept: KeptLatents) -> list[int]:
    """The latent frames that are kept as a whole; no other is kept in part."""
    mask = kept.mask[0].flatten(1)
    assert torch.equal(mask.any(1), mask.all(1))
    return torch.nonzero(mask.all(1)).flatten().tolist()


def test_what_is_kept_lands_in_its_windows(assets: Path, tmp_path: Path) -> None:
    vae = BaseModel.open(str(assets / "base")).vae()
    shape, first, second, last = VideoShape(25, 32, 32, 25.0), Window(0, 9), Window(8, 9, 1), Window(16, 9, 1)
    clip = write_clip(tmp_path / "clip.mp4", frames=25, height=32, width=32, seed=7)
    long, short = frames_of(clip), write_clip(tmp_path / "short.mp4", frames=13, height=32, width=32, seed=8)
    prefix = {window.start: kept_in(assets, shape, window, prefix=str(short)) for window in (first, second, last)}
    assert [whole_frames(prefix[start]) for start in (0, 8, 16)] == [[0, 1, 2], [0, 1], []]
    assert torch.equal(prefix[8].latent[:, :, :2], encode_frames(frames_of(short)[8:13], vae))
    # frames 1 to 12 of the suffix are frames 13 to 24 of the video
    suffix = {window.start: kept_in(assets, shape, window, suffix=str(short)) for window in (first, second, last)}
    assert [whole_frames(suffix[start]) for start in (0, 8, 16)] == [[], [2], [0, 1, 2]]
    assert torch.equal(suffix[8].latent[:, :, 2:], encode_frames(frames_of(short)[0:5], vae)[:, :, 1:])
    assert torch.equal(suffix[16].latent, encode_frames(frames_of(short)[4:13], vae))
    picture = kept_in(assets, shape, second, first_frame=str(clip))
    assert whole_frames(picture) == []
    assert whole_frames(kept_in(assets, shape, first, first_frame=str(clip))) == [0]
    source = kept_in(assets, shape, second, source=str(clip), regenerate_frames=[13, 21])
    assert whole_frames(source) == [0, 1]
    assert torch.equal(source.latent[:, :, :2], encode_frames(long[8:13], vae))
    assert whole_frames(kept_in(assets, shape, last, source=str(clip), regenerate_frames=[13, 21])) == [2]


def test_a_window_that_is_kept_as_a_whole_is_not_sampled(
    assets: Path, long_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"source": str(long_clip), "regenerate_frames": [14, 17], "reference": str(long_clip)}
    generate_pixels(assets, tmp_path, **IN_WINDOWS, **parts)
    assert "32x32x9: 2 steps of" in capsys.readouterr().out  # of the last window alone


def test_a_killed_run_continues_with_the_first_window_that_is_not_finished(
    assets: Path, long_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"reference": str(long_clip), "cache": str(tmp_path / "cache"), **IN_WINDOWS}
    expected = generate_pixels(assets, tmp_path / "whole", **changes)
    assert not list((tmp_path / "cache/windows").glob("*"))
    run_stage, calls = run.run_stage, []

    def killed(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_stage(*arguments)

    monkeypatch.setattr(run, "run_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        run.generate(settings_for(assets, tmp_path / "killed", **changes))
    assert not (tmp_path / "killed").exists()
    capsys.readouterr()
    assert (generate_pixels(assets, tmp_path / "again", **changes) == expected).all()  # the name of the file is another
    assert len(calls) == 4
    assert "2 of 3 windows were finished by an earlier run" in capsys.readouterr().out
    assert not list((tmp_path / "cache/windows").glob("*"))
    generate_pixels(assets, tmp_path / "other", **changes | {"seed": 4})
    assert len(calls) == 7  # finished windows of other settings are not used


def test_two_stages_carry_frames_at_both_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", "2.3")
    upsampler = write_upsampler(tmp_path / "up.safetensors", in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    clip = write_clip(tmp_path / "clip.mp4", frames=17, height=64, width=64)
    encoder = gemma_for("2.3", tmp_path / "gemma")
    changes: dict[str, Any] = {
        "adapter": str(write_adapter(tmp_path / "adapter.safetensors", checkpoint)),
        "reference": str(clip),
        "model": Model(name="ltx", checkpoint=str(checkpoint), text_encoder=str(encoder), precision="fp32"),
        "upsampler": str(upsampler),
        **{"width": 64, "height": 64, "frames": 17, "window_frames": 9, "window_overlap": 1},
    }
    assert generate_pixels(tmp_path, tmp_path / "two", **changes).shape == (17, 64, 64, 3)
    lines = capsys.readouterr().out
    assert "32x32x9: 4 steps of" in lines
    assert "64x64x9: 6 steps of" in lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_frames": 13}, "window_frames=13 is longer than the video of 9 frames: set 9 or less, or null"),
        ({"window_frames": 6}, r"window_frames=6 is not 4k\+1: use 5 or 9"),
        ({"window_frames": 0}, "window_frames=0 must be at least 1, or null"),
        ({"window_frames": 5, "window_overlap": 5}, "window_overlap=5 must be less than window_frames=5: use 1 or"),
        ({"window_frames": 5, "window_overlap": 3}, r"window_overlap=3 is not 4k\+1: use 1 or 5"),
        ({"window_overlap": 5}, "window_overlap=5 is a part of window_frames: set window_frames too"),
        ({"frames": 17, "window_frames": 9}, r"clip.mp4 has 12 frames .* the video has 17: every .* set frames=9 or"),
    ],
)
def test_windows_that_do_not_fit_are_named_before_anything_is_written(
    changes: dict[str, Any], message: str, assets: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run.generate(settings_for(assets, tmp_path / "out", **{"frames": 9} | changes))
    assert not (tmp_path / "out").exists()
