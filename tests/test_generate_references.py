"""Several references, each used as the adapter was trained with it: sizes, rates, frames, notes, errors, pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from iclora_train.adapters.file import Adapter, read, save
from iclora_train.config import ConfigError, Model
from iclora_train.core.types import VideoShape
from iclora_train.diffusion.sampler import Reference
from iclora_train.generate.guides import missing_references, reference_layouts
from iclora_train.generate.input_media import fit_frame
from iclora_train.generate.inputs import Inputs, encode_references
from iclora_train.generate.kept import encode_frames
from iclora_train.generate.run import generate
from iclora_train.generate.settings import GenerateSettings, settings_from_record
from iclora_train.generate.windows import Window
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.clip import read_clip
from tests.clips import write_clip
from tests.test_generate import pixels, write_adapter
from tests.tiny import WIDTH, write_tiny_base

SHAPE = VideoShape(17, 48, 48, 25.0)
WHOLE = Window(0, 17)
MOTION = {"name": "motion", "downscale": 3, "temporal_scale": 2, "frame": None}
APPEARANCE = {"name": "appearance", "downscale": 1, "temporal_scale": 1, "frame": -1, "p": 0.8}
METADATA = {"reference_downscale_factor": "2", "more_references": json.dumps([MOTION, APPEARANCE])}
NAMES = ["clip.mp4", "other.mp4", "picture.png"]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base (8 pixels and 4 frames per latent cell), adapters, two clips and a picture."""
    folder = tmp_path_factory.mktemp("assets")
    base = write_tiny_base(folder / "base")
    write_adapter(folder / "three.safetensors", base, **METADATA)
    write_adapter(folder / "one.safetensors", base)
    for name, size in (("clip", 48), ("other", 64)):
        write_clip(folder / f"{name}.mp4", frames=25, height=size, width=size)
    write_clip(folder / "short.mp4", frames=9, height=48, width=48)
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "picture.png"), picture)
    cv2.imwrite(str(folder / "black.png"), 0 * picture)
    return folder


@pytest.fixture(scope="module")
def vae(assets: Path) -> VideoVAE:
    return BaseModel.open(str(assets / "base")).vae()


def settings_for(assets: Path, names: list[str], **changes: Any) -> GenerateSettings:
    model = Model(name="tiny", checkpoint=str(assets / "base"), precision="fp32")
    defaults = {"adapter": str(assets / "three.safetensors"), "out": "video.mp4", "model": model, "prompt": "a dog"}
    paths = [str(assets / name) for name in names]
    settings = GenerateSettings(**(defaults | {"reference": paths, "cache": str(assets / "cache")} | changes))
    settings.sample.steps = 2
    return settings


def encoded(assets: Path, vae: VideoVAE, names: list[str], **changes: Any) -> list[Reference]:
    settings = settings_for(assets, names, **changes)
    return encode_references(Inputs.open(settings), settings, SHAPE, WHOLE, Adapter({}, METADATA), vae)


def latent_of(path: Path, numbers: list[int], size: int, vae: VideoVAE) -> torch.Tensor:
    frames = [cv2.imread(str(path))[..., ::-1]] if path.suffix == ".png" else list(read_clip(path))
    return encode_frames(np.stack([fit_frame(frames[i], (size, size), "crop") for i in numbers]), vae)


def generated(assets: Path, folder: Path, names: list[str], **changes: Any) -> np.ndarray:
    out = {"out": str(folder / "video.mp4"), "frames_out": str(folder / "frames"), "overwrite": True}
    defaults = {"width": 48, "height": 48, "frames": 9, "fps": 25.0}
    generate(settings_for(assets, names, **(out | defaults | changes)))
    return pixels(folder)


def test_each_reference_has_its_own_size_rate_and_frame(assets: Path, vae: VideoVAE) -> None:
    references = encoded(assets, vae, NAMES)
    assert [(r.downscale, r.temporal_scale, r.frame) for r in references] == [(2, 1, 0), (3, 2, 0), (1, 1, 16)]
    expected = (
        ("clip.mp4", list(range(17)), 24),
        ("other.mp4", [0, 1, 3, 5, 7, 9, 11, 13, 15], 16),
        ("picture.png", [0], 48),
    )
    for reference, (name, numbers, size) in zip(references, expected, strict=True):
        assert torch.equal(reference.latent, latent_of(assets / name, numbers, size, vae))


def test_a_setting_takes_the_place_of_the_trained_frames(assets: Path, vae: VideoVAE) -> None:
    references = encoded(assets, vae, NAMES, reference_frame=[None, 4, 3])
    assert [(r.downscale, r.temporal_scale, r.frame) for r in references] == [(2, 1, 0), (3, 1, 1), (1, 1, 3)]


def test_a_reference_that_is_not_given_is_named_with_its_share_of_the_clips(assets: Path) -> None:
    adapter = Adapter({}, METADATA)
    settings = settings_for(assets, NAMES[:1])
    assert [layout.name for layout in reference_layouts(settings, adapter)] == ["first"]
    assert missing_references(settings, adapter) == [
        "reference motion (factor 3, 2 times fewer frames per second) is not given: every training clip had it",
        "reference appearance (factor 1, at frame -1) is not given: 80% of the training clips had it, so the adapter "
        "knows videos without it",
    ]
    assert missing_references(settings_for(assets, NAMES), adapter) == []


def test_null_leaves_out_one_of_several_references(assets: Path, vae: VideoVAE, tmp_path: Path) -> None:
    names = ["clip.mp4", None, "picture.png"]
    paths = [None if name is None else str(assets / name) for name in names]
    changes = {"reference": paths, "attention_strength": [1.0, 0.2, 0.5], "reference_frame": [None, None, 7]}
    references = encoded(assets, vae, [], **changes)
    assert [(r.downscale, r.frame, r.attention_strength) for r in references] == [(2, 0, 1.0), (1, 7, 0.5)]
    assert [r.number for r in references] == [0, 2]  # each keeps its learned slot
    settings = settings_for(assets, [], **changes)
    (line,) = missing_references(settings, Adapter({}, METADATA))
    assert line.startswith("reference motion (factor 3, ")
    video = generated(assets, tmp_path, [], reference=paths)
    record = json.loads((tmp_path / "video.json").read_text())
    assert not np.array_equal(generated(assets, tmp_path, ["clip.mp4"]), video)
    generate(settings_from_record(record))
    assert np.array_equal(pixels(tmp_path), video)
    with pytest.raises(ConfigError, match=r"null leaves out one of .* and it was trained with one"):
        reference_layouts(settings, Adapter({}))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([None, "a.png"], r"reference=\[None, 'a\.png'\] must be a path"),
        (["a.png", None], "ends with null: leave it out"),
    ],
)
def test_null_cannot_stand_first_or_last(assets: Path, reference: list[str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_for(assets, [], reference=reference)


def test_more_references_than_the_adapter_was_trained_with(assets: Path, tmp_path: Path) -> None:
    message = "reference has 4 items, .* trained with 3 references: first, motion, appearance. Give one for each"
    with pytest.raises(ConfigError, match=message):
        generated(assets, tmp_path, [*NAMES, "picture.png"])
    assert list(tmp_path.iterdir()) == []
    one = Adapter({}, {"reference_downscale_factor": "2"})
    layouts = reference_layouts(settings_for(assets, [*NAMES, "picture.png"]), one)
    assert [layout.placement for layout in layouts] == [(2, 1, None)] * 4


def test_messages_have_the_name_of_a_further_reference(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated(assets, tmp_path, ["clip.mp4", "short.mp4"], frames=25)
    out = capsys.readouterr().out
    assert "short.mp4 (motion) has 5 frames at 12.5 fps: its first 5 guide the first 9 frames of the video" in out
    assert "reference appearance (factor 1, at frame -1) is not given" in out
    with pytest.raises(ConfigError, match=r"appearance: reference_frame=30 does not exist in a clip of 9 frames"):
        generated(assets, tmp_path, NAMES, reference_frame=[None, None, 30])
    with pytest.raises(ConfigError, match=r"reference=.*short\.mp4 \(motion\) has 9 frames at 25 fps"):
        generated(assets, tmp_path, ["clip.mp4", "short.mp4"], frames=25, window_frames=17)


def test_the_size_fits_every_reference(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 pixels per cell, references 2 and 3 times smaller: multiples of 48. The second has every other frame."""
    with pytest.raises(ConfigError, match=r"width=64 is not a multiple of 48 .*; frames=13 is not 8k\+1"):
        generated(assets, tmp_path, NAMES, width=64, frames=13)
    assert generated(assets, tmp_path, NAMES[:1], width=64, frames=13).shape[:3] == (13, 48, 64)


def test_every_reference_counts_and_in_its_place(assets: Path, tmp_path: Path) -> None:
    all_three = generated(assets, tmp_path, NAMES)
    assert np.array_equal(generated(assets, tmp_path, NAMES), all_three)
    for names in (NAMES[:2], ["other.mp4", "clip.mp4", "picture.png"], [*NAMES[:2], "black.png"]):
        assert not np.array_equal(generated(assets, tmp_path, names), all_three)
    off = {"attention_strength": [1.0, 1.0, 0.0], "between": "ltx"}  # nor through the other references
    hidden = [generated(assets, tmp_path, [*NAMES[:2], name], **off) for name in ("picture.png", "black.png")]
    assert np.array_equal(*hidden)  # and the strength belongs to the third


def test_references_of_one_layout_are_interchangeable(assets: Path, tmp_path: Path) -> None:
    """Nothing in the tokens marks the number of a reference: only size, rate and frame tell references apart. With
    learned slots the number does."""
    same = json.dumps([{"name": "second"}])
    path = write_adapter(tmp_path / "same.safetensors", assets / "base", more_references=same)
    adapter, names = str(path), ["clip.mp4", "picture.png"]
    one, swapped = (generated(assets, tmp_path, order, adapter=adapter) for order in (names, names[::-1]))
    assert np.abs(one.astype(int) - swapped).max() <= 1
    alone = generated(assets, tmp_path, names[:1], adapter=adapter)
    assert np.abs(one.astype(int) - alone).max() > 1
    save(path, replace(read(path), slots=torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))))
    one, swapped = (generated(assets, tmp_path, order, adapter=adapter) for order in (names, names[::-1]))
    assert np.abs(one.astype(int) - swapped).max() > 1
    weaker = generated(assets, tmp_path, names, adapter=[adapter], adapter_strength=[0.0])
    save(path, replace(read(path), slots=None))
    base = generated(assets, tmp_path, names, adapter=[adapter], adapter_strength=[0.0])
    assert np.array_equal(weaker, base)  # the strength of the adapter is that of the slots


def test_tiles_and_windows_cut_each_reference_on_its_own_grid(assets: Path, tmp_path: Path) -> None:
    video = generated(assets, tmp_path, NAMES, width=144, height=96, tile_width=96, frames=17, window_frames=9)
    assert video.shape == (17, 96, 144, 3)
    record = json.loads((tmp_path / "video.json").read_text())
    assert record["windows"] == [[0, 9], [4, 13], [8, 17]]
    (seam, _) = record["seams"]
    assert seam["reference_jump"] is not None  # of the first reference, which has all frames


def test_the_jump_of_a_slow_reference_is_not_measured(assets: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "slow.safetensors", assets / "base", reference_temporal_scale_factor=2)
    generated(assets, tmp_path, ["clip.mp4"], adapter=str(adapter), frames=17, window_frames=9)
    seams = json.loads((tmp_path / "video.json").read_text())["seams"]
    assert {seam["reference_jump"] for seam in seams} == {None}
