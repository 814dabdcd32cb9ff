"""The generate command: reproducible pixels, references sized for the adapter, errors before any output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iclora_train.adapters import lora
from iclora_train.adapters.file import Adapter
from iclora_train.config import ConfigError, Lora, Model, Sampling
from iclora_train.config.settings import RENAMED_KEYS
from iclora_train.core.types import VideoShape
from iclora_train.generate.input_media import InputMedia, fit_frame
from iclora_train.generate.inputs import Inputs, encode_frames, encode_references
from iclora_train.generate.run import generate
from iclora_train.generate.settings import GenerateSettings, settings_from_record
from iclora_train.generate.video import to_frames
from iclora_train.generate.windows import Window
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.media.clip import probe, read_clip
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic.upsampler import write_upsampler
from scripts.synthetic_checkpoint import write_checkpoint
from tests.clips import moving, write_clip
from tests.command import run
from tests.tiny import write_tiny_base


def write_adapter(path: Path, checkpoint: Path, seed: int = 0, **metadata: object) -> Path:
    """A random adapter that changes the output of the base, in the format that training exports."""
    base = BaseModel.open(str(checkpoint))
    transformer = base.transformer()
    lora.attach(transformer, Lora(rank=4), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: (a, torch.randn(b.shape, generator=generator))
        for name, (a, b) in lora.adapter_weights(transformer).items()
    }
    defaults = {"base_model_family": base.family, "base_model_version": base.version, "reference_downscale_factor": 1}
    defaults |= {"task": "canny", "trigger": "EDGES"}
    lora.save(path, lora.Adapter(weights, {key: str(value) for key, value in (defaults | metadata).items()}))
    return path


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, an adapter for it, and clips."""
    folder = tmp_path_factory.mktemp("assets")
    base = write_tiny_base(folder / "base")
    write_adapter(folder / "adapter.safetensors", base)
    write_clip(folder / "clip.mp4", frames=12, height=40, width=48)
    write_clip(folder / "other.mp4", frames=12, height=40, width=48, seed=1)
    return folder


def settings_for(assets: Path, folder: Path, **changes: Any) -> GenerateSettings:
    """Settings of a video of 32x32x5."""
    defaults: dict[str, Any] = {
        "adapter": str(assets / "adapter.safetensors"),
        "reference": str(assets / "clip.mp4"),
        "prompt": "a dog",
        "out": str(folder / "video.mp4"),
        "frames_out": str(folder / "frames"),
        "width": 32,
        "height": 32,
        "frames": 5,
        "cache": str(assets / "cache"),
        "model": Model(name="tiny", checkpoint=str(assets / "base"), precision="fp32"),
        "sample": Sampling(steps=2),
    }
    return GenerateSettings(**(defaults | changes))


def pixels(folder: Path) -> np.ndarray:
    """Read the lossless frames (F,H,W,3) that were written."""
    frames = [cv2.imread(str(path)) for path in sorted(folder.glob("frames/*.png"))]
    assert all(frame is not None for frame in frames)
    return np.stack(frames)  # type: ignore[arg-type]


def generate_pixels(assets: Path, folder: Path, **changes: Any) -> np.ndarray:
    generate(settings_for(assets, folder, **changes))
    return pixels(folder)


def test_the_command_writes_a_video_and_its_record(assets: Path, tmp_path: Path) -> None:
    sizes = ("width=32", "height=32", "frames=5", "sample.steps=3", "model.precision=fp32", f"cache={tmp_path}/cache")
    files = (f"adapter={assets}/adapter.safetensors", f"reference={assets}/clip.mp4", f"model.checkpoint={assets}/base")
    outputs = ("out=outputs/dog.mp4", "frames_out=outputs/frames")
    result = run(tmp_path, "iclora_train.generate", *files, *outputs, *sizes, 'prompt="a dog, runs"')
    assert result.code == 0, result.err
    assert "32x32x5 at 25 fps, base on cpu: 'EDGES a dog, runs'" in result.out
    assert "3 steps of" in result.out
    info = probe(tmp_path / "outputs/dog.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (5, 32, 32, 25.0)
    assert pixels(tmp_path / "outputs").shape == (5, 32, 32, 3)
    record = json.loads((tmp_path / "outputs/dog.json").read_text())
    assert record["prompt"] == "EDGES a dog, runs"
    assert record["base"]["version"] == "2.3"
    assert len(record["sigmas"][0]) == 4
    assert [len(digest) for digest in (*record["adapters"].values(), *record["inputs"].values())] == [64, 64]


def test_the_settings_in_the_record_give_the_same_pixels(assets: Path, tmp_path: Path) -> None:
    first = generate_pixels(assets, tmp_path / "first", seed=3)
    record = json.loads((tmp_path / "first/video.json").read_text())
    settings = settings_from_record(record)
    settings.out, settings.frames_out = str(tmp_path / "again/video.mp4"), str(tmp_path / "again/frames")
    generate(settings)
    assert (pixels(tmp_path / "again") == first).all()
    assert (tmp_path / "again/video.mp4").read_bytes() == (tmp_path / "first/video.mp4").read_bytes()
    assert (generate_pixels(assets, tmp_path / "other", seed=4) != first).any()


def test_a_record_of_version_0_1_is_read_under_the_new_names(assets: Path, tmp_path: Path) -> None:
    generate_pixels(assets, tmp_path / "first")
    record = json.loads((tmp_path / "first/video.json").read_text())
    expected = settings_from_record(record)
    model = record["settings"]["model"]
    for old, new in RENAMED_KEYS.items():
        model[old.removeprefix("model.")] = model.pop(new.removeprefix("model."))
    assert settings_from_record(record) == expected


def test_strengths_scale_the_effects_of_reference_and_adapter(assets: Path, tmp_path: Path) -> None:
    full = generate_pixels(assets, tmp_path / "full")
    other_clip = str(assets / "other.mp4")
    assert (generate_pixels(assets, tmp_path / "other", reference=other_clip) != full).any()
    off = generate_pixels(assets, tmp_path / "off", attention_strength=0.0)
    assert (generate_pixels(assets, tmp_path / "off2", attention_strength=0.0, reference=other_clip) == off).all()
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((7, 9), np.uint8))
    assert (generate_pixels(assets, tmp_path / "black", attention_mask=str(tmp_path / "black.png")) == off).all()
    cv2.imwrite(str(tmp_path / "white.png"), np.full((7, 9), 255, np.uint8))
    white = generate_pixels(assets, tmp_path / "white", attention_mask=str(tmp_path / "white.png"))
    assert np.abs(white.astype(int) - full).max() <= 1
    noise = generate_pixels(assets, tmp_path / "noise", reference_strength=0.0)
    assert (generate_pixels(assets, tmp_path / "noise2", reference_strength=0.0, reference=other_clip) == noise).all()
    adapter = str(assets / "adapter.safetensors")
    halves = generate_pixels(assets, tmp_path / "halves", adapter=[adapter, adapter], adapter_strength=[0.5, 0.5])
    assert np.abs(halves.astype(int) - full).max() <= 1
    assert (generate_pixels(assets, tmp_path / "base", adapter_strength=0.0) != full).any()


def test_each_reference_has_its_own_strength_and_mask(assets: Path, tmp_path: Path) -> None:
    references = [str(assets / "clip.mp4"), str(assets / "other.mp4")]
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((8, 8), np.uint8))
    first = generate_pixels(
        assets, tmp_path / "first", reference=references, attention_strength=[1.0, 0.0], between="ltx"
    )
    masked = {"attention_mask": [None, str(tmp_path / "black.png")], "between": "ltx"}
    assert (generate_pixels(assets, tmp_path / "masked", reference=references, **masked) == first).all()
    assert (generate_pixels(assets, tmp_path / "swapped", reference=references[::-1], **masked) != first).any()


def test_a_mask_is_fitted_and_cut_like_its_reference(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "mask").mkdir()
    for i, level in enumerate((0, 51, 255)):
        picture = np.full((20, 60, 3), level, np.uint8)
        picture[:, :20] = picture[:, 40:] = 7  # `crop` cuts this off
        cv2.imwrite(str(tmp_path / f"mask/{i}.png"), picture)
    settings = settings_for(assets, tmp_path, attention_mask=str(tmp_path / "mask"))
    vae = BaseModel.open(str(assets / "base")).vae()
    shape = VideoShape(5, 32, 32, 25.0)
    (reference,) = encode_references(
        Inputs.open(settings), settings, shape, Window(0, 5), Adapter({}, {"reference_downscale_factor": "2"}), vae
    )
    assert reference.latent.shape == (1, 8, 2, 2, 2)
    assert reference.attention_mask is not None
    assert reference.attention_mask.shape == (1, 5, 16, 16)
    for frame, level in zip(reference.attention_mask[0], (0.0, 0.2, 1.0, 1.0, 1.0), strict=True):
        assert torch.allclose(frame, torch.full((16, 16), level))


def test_a_first_frame_stays_unchanged(assets: Path, tmp_path: Path) -> None:
    picture = np.full((32, 32, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "flat.png"), picture)
    first_frame = {"first_frame": str(tmp_path / "flat.png")}
    one_frame = generate_pixels(assets, tmp_path / "alone", **first_frame, frames=1)
    vae = BaseModel.open(str(assets / "base")).vae()
    reconstruction = to_frames(vae, encode_frames(picture[None], vae))
    assert (one_frame[..., ::-1] == reconstruction).all()
    assert (
        generate_pixels(assets, tmp_path / "free") != generate_pixels(assets, tmp_path / "fixed", **first_frame)
    ).any()


def test_the_adapter_sets_the_size_and_frame_rate_of_references(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors = {"reference_downscale_factor": 2, "reference_temporal_scale_factor": 2}
    adapter = write_adapter(tmp_path / "small.safetensors", assets / "base", **factors)
    clip = write_clip(tmp_path / "clip.mp4", frames=18, height=40, width=48)
    free = {"width": None, "height": None, "frames": None}
    generate(settings_for(assets, tmp_path, adapter=str(adapter), reference=str(clip), **free))
    assert pixels(tmp_path).shape == (17, 32, 48, 3)  # 16 = 8 pixels x 2; 8 = 4 frames x 2
    assert "rounded to sizes that fit the VAE: height 40 -> 32, frames 18 -> 17" in capsys.readouterr().out
    with pytest.raises(
        ConfigError, match=r"width=40 is not a multiple of 16 \(use 32 or 48\); .*frames=13 is not 8k\+1"
    ):
        generate(settings_for(assets, tmp_path, adapter=str(adapter), width=40, frames=13, overwrite=True))
    mixed = [str(adapter), str(assets / "adapter.safetensors")]
    with pytest.raises(ConfigError, match="disagree on reference_downscale_factor"):
        generate(settings_for(assets, tmp_path, adapter=mixed, overwrite=True))


def test_a_reference_that_is_too_short_guides_the_beginning(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(generate_pixels(assets, tmp_path, frames=17)) == 17
    out = capsys.readouterr().out
    assert "has 12 frames at 25 fps: its first 9 guide the first 9 frames of the video, the last 8 have no refer" in out


def test_media_are_read_at_the_requested_frame_rate(tmp_path: Path) -> None:
    clip = InputMedia.open("reference", str(write_clip(tmp_path / "clip.mp4", frames=20, fps=50.0)))
    assert clip.frame_numbers(25.0).tolist() == list(range(0, 20, 2))
    assert clip.frame_numbers(25.0, factor=2).tolist() == [0, 2, 6, 10, 14, 18]
    assert clip.frame_numbers(50.0).tolist() == list(range(20))
    ntsc = InputMedia.open("reference", str(write_clip(tmp_path / "ntsc.mp4", frames=60, fps=29.97)))
    assert ntsc.fps is not None
    assert len(ntsc.frame_numbers(ntsc.fps)) == 60
    frames = moving(6, 16, 24)
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"frames/{i:03d}.png"), frame[..., ::-1])
    folder = InputMedia.open("reference", str(tmp_path / "frames"))
    assert folder.frame_numbers(24.0, factor=2).tolist() == [0, 1, 3, 5]
    assert (folder.read(folder.frame_numbers(24.0), (16, 24), "crop") == frames).all()
    image = InputMedia.open("reference", str(tmp_path / "frames/001.png"))
    assert (image.read(image.frame_numbers(24.0), (16, 24), "crop") == frames[1:2]).all()
    decoded = np.stack(list(read_clip(tmp_path / "clip.mp4")))
    assert (clip.read(np.array([4, 4, 9]), (48, 64), "stretch") == decoded[[4, 4, 9]]).all()


def test_crop_keeps_the_middle_and_stretch_keeps_all() -> None:
    frame = np.zeros((16, 48, 3), np.uint8)
    frame[:, 16:32] = 200
    assert (fit_frame(frame, (16, 16), "crop") == 200).all()
    assert set(fit_frame(frame, (16, 24), "stretch")[8, ::4, 0].tolist()) == {0, 200}
    assert (fit_frame(frame, (8, 24), "crop") == fit_frame(frame, (8, 24), "stretch")).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "no.safetensors"}, "adapter=no.safetensors does not exist"),
        ({"reference": "no.mp4"}, "reference=no.mp4 does not exist: give a video, a folder of frames, or an image"),
        ({"reference": "{tmp}/empty"}, "has no images in it"),
        ({"reference": "{tmp}/text.png"}, "text.png cannot be read as an image"),
        ({"reference": "{tmp}/text.txt"}, "text.txt: cannot be read as a video"),
        ({"reference": "{tmp}/flat.jpg"}, "fps is not set, and .*flat.jpg has no frame rate"),
        ({"attention_mask": "{tmp}/text.png"}, "attention_mask: .*text.png cannot be read as an image"),
        ({"attention_mask": ["{tmp}/flat.jpg"] * 2}, "has 2 masks, and reference has 1"),
        ({"attention_mask": 3}, "attention_mask=3 must be null, a path"),
        ({"first_frame": "no.png"}, "first_frame=no.png does not exist"),
        ({"width": 36}, r"width=36 is not a multiple of 8 \(use 32 or 40\)"),
        ({"height": 4}, r"height=4 is not a multiple of 8 \(use 8\)"),
        ({"frames": 6}, r"frames=6 is not 4k\+1 \(use 5 or 9\)"),
        ({"frames": 0}, "frames=0 must be at least 1"),
        ({"fps": 0.0}, "fps=0.0 must be above 0"),
        ({"fps": float("inf")}, "fps=inf must be above 0 and at most 1000"),
        ({"attention_strength": [1, 0.5]}, r"attention_strength=\[1, 0.5\] has 2 numbers, and reference has 1"),
        ({"attention_strength": 1.5}, r"attention_strength=.*1.5.* must lie in \[0, 1\]"),
        ({"reference_strength": "much"}, "reference_strength=much must be a number"),
        ({"adapter_strength": float("nan")}, "adapter_strength=nan must be a number below 1000"),
        ({"adapter_strength": float("-inf")}, "adapter_strength=-inf must be a number below 1000"),
        ({"adapter_strength": [1, 1]}, "adapter_strength=.* has 2 numbers, and adapter has 1"),
        ({"reference": [3]}, r"reference=\[3\] must be a path or a list of paths"),
        ({"reference": None}, r"reference is not set, and adapter=.*adapter\.safetensors takes one, e\.g\. reference="),
        ({"between": "all"}, "between='all' is not one of comfyui, ltx"),
        ({"blend": "all"}, "blend='all' is not one of comfyui, ltx"),
        ({"fit": "pad"}, "fit='pad' is not one of crop, stretch"),
        ({"out": "video.avi"}, "out=video.avi must end in .mp4"),
        ({"upsampler": "no.safetensors"}, "upsampler=no.safetensors is not a file"),
        ({"frames_out": "{tmp}/text.txt"}, "text.txt is a file: name a folder"),
    ],
)
def test_errors_are_raised_before_anything_is_written(
    changes: dict[str, Any], message: str, assets: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    cv2.imwrite(str(tmp_path / "flat.jpg"), np.zeros((8, 8, 3), np.uint8))
    changes = json.loads(json.dumps(changes).replace("{tmp}", str(tmp_path)))
    with pytest.raises(ConfigError, match=message):
        generate(settings_for(assets, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_existing_files_are_kept_unless_overwrite_is_set(assets: Path, tmp_path: Path) -> None:
    generate_pixels(assets, tmp_path, frames=9)
    before = (tmp_path / "video.mp4").read_bytes()
    for changes, message in (({}, "video.mp4 exists"), ({"out": str(tmp_path / "new.mp4")}, "frame-00000.png exists")):
        with pytest.raises(ConfigError, match=message + r".*overwrite=true"):
            generate(settings_for(assets, tmp_path, **changes))
    assert (tmp_path / "video.mp4").read_bytes() == before
    assert len(generate_pixels(assets, tmp_path, overwrite=True)) == 5  # no frame of the longer video is left


def test_an_adapter_of_another_base_is_refused(assets: Path, tmp_path: Path) -> None:
    other = write_tiny_base(tmp_path / "base", version="2.0")
    model = Model(name="tiny", checkpoint=str(other))
    with pytest.raises(ConfigError, match=r"was trained on tiny 2.3, this base is tiny 2.0"):
        generate(settings_for(assets, tmp_path, model=model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "adapter, out must be set, e.g. adapter=adapter.safetensors"),
        (("adapter=a", "reference=b", "out=c.mp4", "promt=d"), "no setting 'promt'; there are adapter,"),
        (("adapter=a", "reference=b", "out=c.mp4"), "adapter=a does not exist"),
        (("adapter=a", "reference=b", "out=c.mp4", "model=ltx2_3"), "model.checkpoint must be set"),
        (("adapter=a", "reference=b", "out=c.mp4", "sample.steps=0"), "sample.steps=0 must be at least 1"),
    ],
)
def test_an_error_of_the_command_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run(tmp_path, "iclora_train.generate", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


def test_help_lists_the_settings(tmp_path: Path) -> None:
    result = run(tmp_path, "iclora_train.generate", "--help")
    assert (result.code, result.err) == (0, "")
    assert "attention_strength: null" in result.out
    assert "out='dog-${seed}.mp4' -m" in result.out


def test_a_task_sets_its_sampling_settings(tmp_path: Path) -> None:
    required = ("adapter=a", "reference=b", "out=c.mp4")
    default, tuned = (
        run(tmp_path, "iclora_train.generate", *required, *task, "--cfg", "job").out for task in ((), ("conf=deblur",))
    )
    assert "steps: 8" in default
    assert "steps: 2" in tuned


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_every_version_of_ltx_2_in_two_stages(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", version)
    adapter = write_adapter(tmp_path / "adapter.safetensors", checkpoint)
    upsampler = write_upsampler(tmp_path / "up.safetensors", in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    clip = write_clip(tmp_path / "clip.mp4", frames=9, height=64, width=64)
    encoder = gemma_for(version, tmp_path / "gemma")
    model = Model(name="ltx", checkpoint=str(checkpoint), text_encoder=str(encoder), precision="fp32")
    changes = {"adapter": str(adapter), "reference": str(clip), "width": 64, "height": 64, "frames": 9, "model": model}
    assets = tmp_path
    with pytest.raises(ConfigError, match=r"prompt is not set: .* needs a description of the video"):
        generate(settings_for(assets, tmp_path / "none", **changes, prompt=""))
    no_text_encoder = Model(name="ltx", checkpoint=str(checkpoint))
    with pytest.raises(ConfigError, match=r"holds no text encoder; set model.text_encoder"):
        generate(settings_for(assets, tmp_path / "none", **changes | {"model": no_text_encoder}))
    guided = Sampling(steps=2, guidance=2.0)
    assert generate_pixels(assets, tmp_path / "one", **changes, sample=guided).shape == (9, 64, 64, 3)
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"adapter.safetensors is not a latent upsampler"):
        generate(settings_for(assets, tmp_path / "none", **changes, upsampler=str(adapter)))
    assert "steps of" not in capsys.readouterr().out  # the check runs before sampling
    upsampled = generate_pixels(assets, tmp_path / "two", **changes, upsampler=str(upsampler))
    assert upsampled.shape == (9, 64, 64, 3)
    assert "32x32x9: 2 steps" in (out := capsys.readouterr().out)
    assert "64x64x9: 3 steps" in out


def test_an_adapter_keeps_its_effect_on_a_base_in_fp8(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", "2.3", fp8=True)
    changes = {
        "adapter": str(write_adapter(tmp_path / "adapter.safetensors", checkpoint)),
        "reference": str(write_clip(tmp_path / "clip.mp4", frames=9, height=64, width=64)),
        "frames": 9,
    }
    gemma = str(gemma_for("2.3", tmp_path / "gemma"))
    clips = {
        (precision, strength): generate_pixels(
            tmp_path,
            tmp_path / f"{precision}-{strength}",
            **changes,
            model=Model(name="ltx", checkpoint=str(checkpoint), text_encoder=gemma, precision=precision),
            adapter_strength=strength,
        ).astype(float)
        for precision in ("fp32", "fp8")
        for strength in (0.0, 1.0)
    }
    effect = np.abs(clips["fp32", 1.0] - clips["fp32", 0.0]).mean()
    assert np.abs(clips["fp8", 1.0] - clips["fp32", 1.0]).mean() < effect / 10


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels_every_time(assets: Path, tmp_path: Path) -> None:
    first = generate_pixels(
        assets, tmp_path / "once", device="cuda", attention_strength=0.5, first_frame=str(assets / "clip.mp4")
    )
    second = generate_pixels(
        assets, tmp_path / "again", device="cuda", attention_strength=0.5, first_frame=str(assets / "clip.mp4")
    )
    assert (first == second).all()


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("A film of {caption} {trigger}", "A film of a dog EDGES"),
        ("Seen: {reference_caption}. {caption}", "EDGES a dog"),  # the user writes the rest; a hint is printed
    ],
)
def test_the_prompt_is_built_like_the_training_captions(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, prompt: str
) -> None:
    adapter = write_adapter(tmp_path / "templated.safetensors", assets / "base", prompt_template=template)
    generate(settings_for(assets, tmp_path, adapter=str(adapter), overwrite=True))
    message = capsys.readouterr().out
    assert repr(prompt) in message
    assert ("write the prompt in the same form" in message) == ("reference_caption" in template)


def test_a_published_adapter_gets_trigger_and_factor_from_the_registry(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pixels are those of the same weights with declared metadata, and the JSON record names the adapter."""
    weights = load_file(assets / "adapter.safetensors")
    path = tmp_path / "ltx-2.3-22b-ic-lora-deblur-0.9.safetensors"
    save_file(weights, path)
    pixels = generate_pixels(assets, tmp_path / "official", adapter=str(path))
    lines = capsys.readouterr().out
    assert "is Deblur 0.9 for LTX-2.3 (by its name); taken from conf/official/ltx2_3-deblur.yaml" in lines
    assert "'DEBLUR a dog'" in lines
    assert "declares no" not in lines
    assert "Deblur 0.9 is published with sample.schedule=distilled (here shifted)" in lines
    assert (pixels != generate_pixels(assets, tmp_path / "other trigger")).any()
    declared = write_adapter(tmp_path / "declared.safetensors", assets / "base", trigger="DEBLUR")
    assert (pixels == generate_pixels(assets, tmp_path / "trigger", adapter=str(declared))).all()
    record = json.loads((tmp_path / "official" / "video.json").read_text())
    assert record["official"][str(path)]["name"] == "ltx2_3-deblur"
    assert record["unused_modules"] == 0
    union = tmp_path / "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors"
    save_file(weights, union)
    generate(settings_for(assets, tmp_path / "union", adapter=str(union)))
    assert "reference factor 2" in capsys.readouterr().out


def test_an_official_file_is_used_as_it_is(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Official files declare neither their base nor a factor of 1. The pixels are those of the file that declares
    both, and lines say what is assumed. Next to an adapter with a factor, the file is a plain LoRA."""
    declared = assets / "adapter.safetensors"
    plain = tmp_path / "official.safetensors"
    save_file(load_file(declared), plain)
    pixels = generate_pixels(assets, tmp_path / "plain", adapter=str(plain), prompt="EDGES a dog")
    lines = capsys.readouterr().out
    assert (
        "official.safetensors declares no reference factor: it is used as an IC-LoRA whose reference has the" in lines
    )
    assert "official.safetensors declares no base; its linears fit tiny 2.3" in lines
    assert (pixels == generate_pixels(assets, tmp_path / "declared", prompt="a dog")).all()
    half = write_adapter(tmp_path / "half.safetensors", assets / "base", seed=1, reference_downscale_factor=2)
    generate(settings_for(assets, tmp_path / "both", adapter=[str(plain), str(half)]))
    assert "official.safetensors declares no reference factor: it is used as a plain LoRA" in capsys.readouterr().out
    other = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 48)}
    other["diffusion_model.blocks.0.self_attn.q.lora_B.weight"] = torch.ones(48, 2)
    save_file(other, plain)
    with pytest.raises(ConfigError, match=r"official.safetensors: .*it is for Wan"):
        generate(settings_for(assets, tmp_path / "wan", adapter=str(plain)))


def test_a_plain_lora_needs_no_reference_and_takes_its_size_from_its_training_clips(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(tmp_path / "plain.safetensors", assets / "base", adapter_kind="lora", size="48x32x9", fps="24.0")
    plain = {"adapter": str(tmp_path / "plain.safetensors"), "reference": None}
    free = {"width": None, "height": None, "frames": None}
    video = generate_pixels(assets, tmp_path, **plain, **free)
    assert video.shape == (9, 32, 48, 3)
    record = json.loads((tmp_path / "video.json").read_text())
    assert (record["shape"]["fps"], record["inputs"]) == (24.0, {})
    again = settings_from_record(record)
    again.overwrite = True
    generate(again)
    assert (pixels(tmp_path) == video).all()
    other = generate_pixels(assets, tmp_path / "off", **plain, **free, adapter_strength=0.0)
    assert (other != video).any()
    kept = {"first_frame": str(tmp_path / "flat.png"), "width": None, "height": None}
    cv2.imwrite(kept["first_frame"], np.full((32, 24, 3), 128, np.uint8))  # type: ignore[call-overload]
    assert generate_pixels(assets, tmp_path / "kept", **plain, **kept).shape == (5, 32, 24, 3)
    with pytest.raises(ConfigError, match=r"plain\.safetensors is a plain LoRA, which takes no reference"):
        generate(settings_for(assets, tmp_path / "no", adapter=plain["adapter"]))


def test_a_plain_lora_without_a_size_needs_the_settings(assets: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "plain.safetensors", assets / "base", adapter_kind="lora")
    plain = {"adapter": str(tmp_path / "plain.safetensors"), "reference": None}
    with pytest.raises(ConfigError, match="width, height, frames: set them"):
        generate(settings_for(assets, tmp_path, **plain, width=None))
    with pytest.raises(ConfigError, match="fps is not set, and the adapter's file has no frame rate"):
        generate(settings_for(assets, tmp_path, **plain))
    assert generate_pixels(assets, tmp_path, **plain, fps=24.0).shape == (5, 32, 32, 3)
