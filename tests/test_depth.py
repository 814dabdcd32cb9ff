"""Depth makers: near is white, one range per clip, estimated by a network or supplied."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from data_prep.clips.crop import Crop
from data_prep.makers import SourceWindow, build_maker
from data_prep.makers.control.depth import depth_reference, stabilise
from iclora_train.config import ConfigError
from iclora_train.media.frame_folder import frame_files
from iclora_train.media.shard_clip import encode_clip
from iclora_train.signals.depth_network import load
from tests.damage import drop_tensors

PROCESSOR = {
    "image_processor_type": "DPTImageProcessor",
    "do_resize": True,
    "size": {"height": 56, "width": 56},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def write_network(folder: Path, kind: str) -> Path:
    """A Depth-Anything with random weights; the last bias is raised so that the final ReLU does not zero everything."""
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=14,
        image_size=56,
        out_features=stages,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        reassemble_hidden_size=16,
        depth_estimation_type=kind,
        max_depth=20,
    )
    network = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for weight in network.head.parameters():
            weight.mul_(20)
        network.head.conv3.bias.fill_(1.0)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("depth"), "relative")


def photos(count: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Smooth random pictures (F,H,W,3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (count, 8, 12, 3), dtype=np.uint8)
    return np.stack([cv2.resize(picture, size[::-1], interpolation=cv2.INTER_CUBIC) for picture in small])


def source(indices: tuple[int, ...], crop: Crop, **files: Path) -> SourceWindow:
    return SourceWindow("clip", Path("clip.mp4"), indices, 24.0, crop, files)


def whole(height: int, width: int) -> Crop:
    return Crop((height, width), (height, width), (0, 0), (height, width), False)


def supplied_reference(folder: Path, frames: int, crop: Crop, **args: object) -> np.ndarray:
    """The control.depth_given reference of a file's first `frames` frames, scaled from minimum to maximum."""
    maker, blank = (
        build_maker("control.depth_given", {"range": [0, 100], **args}),
        np.zeros((frames, *crop.size, 3), np.uint8),
    )
    return maker(blank, np.random.default_rng(0), source(tuple(range(frames)), crop, depth=folder))[0]


def write_exr(path: Path, **channels: np.ndarray) -> None:
    names = {name.replace("_", "."): pixels.astype(np.float32) for name, pixels in channels.items()}
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, names).write(str(path))


def test_a_network_of_the_user_makes_grey_video_with_one_range(network: Path) -> None:
    frames = photos(10)  # more than one batch
    maker = build_maker("control.depth", {"model": str(network), "range": [0.0, 100.0]})
    depth_video, drawn = maker(frames, np.random.default_rng(0), source(tuple(range(10)), whole(64, 96)))
    assert depth_video.shape == frames.shape
    assert (depth_video == depth_video[..., :1]).all()
    assert depth_video.min() <= 1
    assert depth_video.max() >= 254
    assert (depth_video.reshape(10, -1).max(axis=1) < 254).any(), "each frame was stretched by itself"
    low, high = drawn["range"]
    assert low < high


def test_batch_size_does_not_change_the_depth(network: Path) -> None:
    frames = photos(3)
    batched = load(network).nearness(frames)
    single = np.concatenate([load(network).nearness(frame[None]) for frame in frames])
    assert np.allclose(batched, single, atol=1e-5)


def test_metric_networks_are_inverted(tmp_path: Path) -> None:
    network, frames = load(write_network(tmp_path, "metric")), photos(2)
    inputs = network.processor(images=list(frames), return_tensors="pt")
    with torch.no_grad():
        metres = network.model(**inputs).predicted_depth
    near = network.nearness(frames)
    assert near.mean() == pytest.approx((1 / metres).mean().item(), rel=0.02)


def test_missing_weights_name_the_download_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.maker_args\.model is not set"):
        build_maker("control.depth", {})
    with pytest.raises(ConfigError, match="hf download depth-anything/Depth-Anything-V2-Small-hf"):
        build_maker("control.depth", {"model": str(tmp_path / "none")})


def test_another_kind_of_model_and_damaged_weights_are_refused(network: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="is a bert; supported types: depth_anything"):
        load(tmp_path)
    truncated, broken = tmp_path / "truncated", tmp_path / "broken"
    shutil.copytree(network, truncated)
    os.truncate(truncated / "model.safetensors", 2000)
    shutil.copytree(network, broken)
    (broken / "model.safetensors").unlink()
    for folder in (truncated, broken):
        with pytest.raises(ConfigError, match="is not a depth network"):
            load(folder)


def test_a_network_without_some_of_its_tensors_is_refused_unless_they_do_not_affect_the_depth(
    network: Path, tmp_path: Path
) -> None:
    """Published folders lack the mask token, and the unit of the first fusion that has nothing to add."""
    idle = ("backbone.embeddings.mask_token", "neck.fusion_stage.layers.0.residual_layer1.")
    without = drop_tensors(network, tmp_path / "published", *idle)
    frames = photos(2)
    assert (load(without).nearness(frames) == load(network).nearness(frames)).all()
    without = drop_tensors(network, tmp_path / "headless", "head.")
    lacks = r"task\.maker_args\.model=.*headless lacks tensors of a depth_anything \(head\.conv1\.bias, .* and 3 more\)"
    with pytest.raises(ConfigError, match=lacks):
        load(without)


def test_one_range_holds_for_the_whole_clip() -> None:
    near = np.zeros((2, 16, 16), np.float32)
    near[0, :, 8:], near[1, :, 8:] = 1.0, 2.0
    depth_video, drawn = depth_reference(near, [0.0, 100.0])
    assert drawn == {"range": [0.0, 2.0]}
    assert [frame[0, 15, 0] for frame in depth_video] == [128, 255]
    flat, _ = depth_reference(np.full((1, 16, 16), 3.0, np.float32), [0.0, 100.0])
    assert not flat.any()


def test_outliers_do_not_set_the_range() -> None:
    near = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (1, 64, 1))
    near[0, 0, 0] = 1e6
    depth_video, _ = depth_reference(near, [1.0, 99.0])
    assert depth_video[0, 32, 60, 0] > 200


def test_stabilising_removes_flicker_in_still_regions() -> None:
    frames = np.repeat(photos(1), 12, axis=0)
    noise = np.random.default_rng(0).normal(0, 1, (12, 64, 96)).astype(np.float32)
    stable = stabilise(noise, frames, 0.8)
    assert np.abs(np.diff(stable, axis=0)).mean() < 0.3 * np.abs(np.diff(noise, axis=0)).mean()


def test_stabilising_follows_the_motion() -> None:
    """A moving picture with moving depth is unchanged; a plain mean over time would blur it."""
    picture = photos(1, (64, 160))[0]
    frames = np.stack([picture[:, 2 * i : 2 * i + 96] for i in range(8)])
    near = frames[..., 1].astype(np.float32)
    mean_over_time = (near[:-1] + near[1:]) / 2
    error = np.abs(stabilise(near, frames, 0.8) - near)[:, 8:-8, 8:-8].mean()
    assert error < 0.3 * np.abs(mean_over_time - near[1:])[:, 8:-8, 8:-8].mean()


@pytest.mark.parametrize("channel", ["Z", "V", "Y", "ViewLayer_Depth_Z"])
def test_a_z_pass_is_drawn_as_disparity_with_a_black_sky(tmp_path: Path, channel: str) -> None:
    metres = np.array([[1.0, 2.0, 4.0, 1e10]]).repeat(4, axis=0)
    write_exr(tmp_path / "0001.exr", **{channel: metres})
    depth_video = supplied_reference(tmp_path, 1, whole(4, 4))
    assert depth_video[0, 0, :, 0].tolist() == [255, 128, 64, 0]


def test_an_exr_channel_of_depth_is_preferred_to_colour(tmp_path: Path) -> None:
    metres = np.array([[1.0, 2.0]]).repeat(2, axis=0)
    write_exr(tmp_path / "0001.exr", R=metres[:, ::-1], G=metres, B=metres, Z=metres)
    assert supplied_reference(tmp_path, 1, whole(2, 2))[0, 0, :, 0].tolist() == [255, 0]


def test_sixteen_bits_are_kept_until_the_range_is_applied(tmp_path: Path) -> None:
    """A shallow scene uses 1000 of 65536 levels; with 8 bits only 4 would remain."""
    ramp = np.linspace(20000, 21000, 256).astype(np.uint16)[None].repeat(4, axis=0)
    cv2.imwrite(str(tmp_path / "a.png"), ramp)
    depth_video = supplied_reference(tmp_path, 1, whole(4, 256), values="nearness")
    assert len(np.unique(depth_video)) == 256
    assert (np.diff(depth_video[0, 0, :, 0].astype(int)) >= 0).all()
    assert supplied_reference(tmp_path, 1, whole(4, 256), values="ramp")[0, 0, 0, 0] == 255


def test_renders_follow_the_window_in_time_size_crop_and_mirroring(tmp_path: Path) -> None:
    for number in range(6):
        picture = np.zeros((20, 40), np.uint16)
        picture[:, 20:] = 1000 * (number + 1)
        cv2.imwrite(str(tmp_path / f"{number:04d}.png"), picture)
    crop = Crop((40, 80), (20, 40), (0, 10), (20, 20), True)  # renders at half the clip's size
    maker = build_maker("control.depth_given", {"values": "nearness", "range": [0, 100]})
    blank = np.zeros((3, 20, 20, 3), np.uint8)
    depth_video, _ = maker(blank, np.random.default_rng(0), source((1, 3, 5), crop, depth=tmp_path))
    assert depth_video.shape == (3, 20, 20, 3)
    assert depth_video[:, 5, 2, 0].tolist() == [round(255 * n / 6) for n in (2, 4, 6)]
    assert not depth_video[:, :, 12:].any()


def test_a_depth_video_is_read_too(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None]
    (tmp_path / "depth.mp4").write_bytes(encode_clip(np.tile(ramp, (4, 48, 1, 3)), 24.0, lossless=False))
    depth_video = supplied_reference(tmp_path / "depth.mp4", 4, whole(48, 64), values="nearness")
    assert depth_video[0, 20, 2, 0] < 30
    assert depth_video[3, 20, 61, 0] > 225
    with pytest.raises(ValueError, match="ends before frame 4"):
        supplied_reference(tmp_path / "depth.mp4", 6, whole(48, 64))


def broken_exr(folder: Path) -> None:
    (folder / "0001.exr").write_bytes(b"v/1\x01 cut off")


def broken_png(folder: Path) -> None:
    (folder / "0001.png").write_bytes(b"\x89PNG cut off")


def colour_png(folder: Path) -> None:
    cv2.imwrite(str(folder / "0001.png"), photos(1)[0])


def exr_without_depth(folder: Path) -> None:
    write_exr(folder / "0001.exr", Normal_X=np.ones((4, 4)))


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "0001.png")


def exr_pipe(folder: Path) -> None:
    os.mkfifo(folder / "0001.exr")


def no_picture(folder: Path) -> None:
    (folder / "._0001.png").touch()  # of macOS, beside a 0001.png
    (folder / "readme.txt").touch()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (broken_exr, r"0001\.exr cannot be read as an EXR"),
        (broken_png, r"0001\.png cannot be read as an image"),
        (colour_png, r"0001\.png is a picture in colour"),
        (exr_without_depth, r"0001\.exr has channels X; depth is read from Z, V, Y, R"),
        (pipe, r"0001\.png cannot be read as an image \(.*a named pipe, not a file"),
        (exr_pipe, r"0001\.exr cannot be read as an EXR \(.*a named pipe, not a file"),
        (no_picture, "0 depth pictures"),
    ],
)
def test_files_without_depth_are_named(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        supplied_reference(tmp_path, 1, whole(64, 96))


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("f_10.png", "f_9.png", "f_1.png", "._f_1.png", ".DS_Store", "f_11.txt", "F_2.PNG"):
        (tmp_path / name).touch()
    assert [file.name for file in frame_files(tmp_path, (".png",))] == ["F_2.PNG", "f_1.png", "f_9.png", "f_10.png"]


def test_a_missing_extra_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_exr(tmp_path / "0001.exr", Z=np.ones((4, 4)))
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ConfigError, match=r"pip install 'iclora_train\[exr\]'"):
        supplied_reference(tmp_path, 1, whole(4, 4))


@pytest.mark.parametrize(
    ("name", "args", "key"),
    [
        ("control.depth_given", {"values": "metres"}, "values"),
        ("control.depth_given", {"range": [90, 10]}, "range"),
        ("control.depth", {"model": "x", "steady": 1.0}, "steady"),
        ("control.depth", {"range": [1, 101]}, "range"),
    ],
)
def test_bad_arguments_are_named(name: str, args: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"task\.maker_args\.{key}"):
        build_maker(name, args)
