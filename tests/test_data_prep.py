"""Preparation from clips to shards: selection, reproducible references, interrupted runs."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
import torch
import transformers
import webdataset
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep import pipeline
from data_prep.clips import captioner
from data_prep.clips.captions import add_missing_captions
from data_prep.clips.clip_list import Clip, list_clips
from data_prep.clips.crop import Crop
from data_prep.clips.probed_clip import ProbedClip, frames_at_rate
from data_prep.clips.windows import Window, heldout_windows, train_windows
from data_prep.makers import build_maker
from data_prep.pairs import ReferenceScale, SourceVideo, crop_window, make_reference, read_windows
from iclora_train.config import Config, ConfigError, Data, to_config
from iclora_train.config.hydra_app import conf_dir
from iclora_train.core.atomic_files import DiskFullError, exclusive
from iclora_train.core.types import Geometry
from iclora_train.data.batch_sampler import plan_batches
from iclora_train.data.shards import ShardError, ShardSet
from iclora_train.data.video import ClipInfo, encode_clip, read_clip
from iclora_train.ltx2.base_model import BaseModel
from tests.clips import moving, write_clip
from tests.prep import contents, remake, whole_clip
from tests.tiny import write_tiny_base

SIZE = ("data.frames=5", "data.height=32", "data.width=32", "data.train_windows=10", "data.heldout_windows=2")


def compose(*overrides: str) -> Config:
    """A config as `python -m data_prep` composes it."""
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_config(hydra.compose("prep", [*SIZE, *overrides]))


def die_while_writing(nth: str, overrides: list[str]) -> None:
    """Prepare, but kill this process with SIGKILL after it wrote `nth` samples. A test runs this in a new process."""
    write, remaining = webdataset.TarWriter.write, [int(nth)]

    def write_or_die(tar: webdataset.TarWriter, sample: dict) -> int:
        size = write(tar, sample)
        remaining[0] -= 1
        if remaining[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return size

    webdataset.TarWriter.write = write_or_die
    pipeline.SHARD_CLIPS = 8
    pipeline.prepare(compose(*overrides))


@pytest.fixture(scope="module", autouse=True)
def _small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SHARD_CLIPS", 8)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A csv list of five clips with splits, one of them too short."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["video,caption,split"]
    for i, (split, frames) in enumerate((("train", 24), ("train", 20), ("val", 30), ("heldout", 30), ("train", 3))):
        write_clip(folder / f"clip{i}.mp4", frames, seed=i)
        rows.append(f"clip{i}.mp4,a moving texture {i},{split}")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def config_for(root: Path, clips: Path, base: Path, *more: str) -> Config:
    return compose(
        "conf=deblur", "model.name=tiny", f"model.checkpoint={base}", f"data.clips={clips}", f"data.root={root}", *more
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, clips, base) -> Path:
    return pipeline.prepare(config_for(tmp_path_factory.mktemp("shards"), clips, base))


# --- from clips to shards ---


def test_clips_become_pairs_and_latents(prepared, clips, base):
    pairs, latents = ShardSet.open(prepared / "pairs"), ShardSet.open(prepared / "latents")
    for shards in (pairs, latents):
        shards.verify()
        assert shards.splits == {"train": 10, "val": 2, "heldout": 2}
        assert shards.buckets == {"32x32x5": 14}
        shards.require_settings(config_for(prepared, clips, base))
    assert [sample.key for sample in pairs.samples] == [sample.key for sample in latents.samples]
    assert [facts["count"] for facts in pairs.shards.values()] == [8, 2, 2, 2]
    opened = BaseModel.open(str(base))
    latents.require_base(opened.name, opened.latent_fingerprints)
    pair, latent = pairs.read_pair(3), latents.read_latents(3)
    assert pair.caption == latent.caption
    assert pair.caption.startswith("DEBLUR a moving texture")
    video = torch.from_numpy(pair.target).permute(3, 0, 1, 2)[None] / 127.5 - 1
    expected = opened.vae().encode(video)[0]
    assert (latent.target - expected).abs().max() < 2e-3
    assert latent.references[0].shape == latent.target.shape
    assert (latent.text - opened.text().encode([pair.caption])[0]).abs().max() < 2e-3


def test_the_report_lists_dropped_clips_with_reasons(prepared):
    report = json.loads((prepared / "report.json").read_text())
    assert report["kept"]["train"] == {"clips": 2, "windows": 10}
    (dropped,) = report["dropped"]
    assert dropped["clip"].startswith("clip4")
    assert dropped["reason"] == "3 frames are fewer than data.frames=5"


def test_splits_share_no_clip_and_windows_are_spread_over_the_clips(prepared):
    samples = ShardSet.open(prepared / "pairs").samples
    train, val, heldout = (
        {sample.source for sample in samples if sample.split == split} for split in ("train", "val", "heldout")
    )
    assert not train & val | train & heldout | val & heldout
    assert [sum(sample.source == source for sample in samples) for source in sorted(train)] == [5, 5]


def test_a_record_is_enough_to_remake_the_reference(prepared, clips):
    pairs = ShardSet.open(prepared / "pairs")
    for i in (0, 7, 9, 13):
        pair = pairs.read_pair(i)
        path = clips.parent / str(pair.record["file"])
        assert (remake(SourceVideo(path), pair.record) == pair.references[0]).all()
        window = Window.from_record(pair.record["window"])
        assert (crop_window(next(read_windows(path, [window])), window) == pair.target).all()
        assert not (pair.target == pair.references[0]).all()


def test_a_second_run_does_nothing(prepared, clips, base, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    monkeypatch.setattr(pipeline, "select_clips", None)
    pipeline.prepare(config_for(prepared, clips, base))
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


@pytest.mark.parametrize("nth", ["10", "18"], ids=["in the second pair shard", "in the first latent shard"])
def test_a_killed_run_continues_to_the_same_bytes(nth, tmp_path, prepared, clips, base):
    overrides = ["conf=deblur", "model.name=tiny", f"model.checkpoint={base}", f"data.clips={clips}"]
    overrides.append(f"data.root={tmp_path}")
    program = "import sys; from tests.test_data_prep import die_while_writing as die; die(sys.argv[1], sys.argv[2:])"
    killed = subprocess.run([sys.executable, "-c", program, nth, *overrides], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list(tmp_path.rglob("*.tar.tmp"))) == 1
    modified = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert modified
    pipeline.prepare(compose(*overrides))
    assert {path: path.stat().st_mtime_ns for path in modified} == modified
    assert contents(tmp_path) == contents(prepared)


def test_a_deleted_shard_is_rewritten(tmp_path, prepared, clips, base):
    config = config_for(tmp_path, clips, base)
    pipeline.prepare(config)
    (tmp_path / "latents" / "val-000000.tar").unlink()
    pipeline.prepare(config)
    assert contents(tmp_path) == contents(prepared)


def test_a_full_disk_is_reported_and_the_run_can_continue(tmp_path, prepared, clips, base, monkeypatch):
    config, write = config_for(tmp_path, clips, base), webdataset.TarWriter.write
    remaining = [4]

    def write_some(tar: webdataset.TarWriter, sample: dict) -> int:
        remaining[0] -= 1
        if remaining[0] < 0:
            raise OSError(28, "No space left on device")
        return write(tar, sample)

    monkeypatch.setattr(webdataset.TarWriter, "write", write_some)
    with pytest.raises(DiskFullError, match=f"No space left on device. Make room in {tmp_path}"):
        pipeline.prepare(config)
    assert [path.name for path in tmp_path.rglob("*.tar*")] == []
    monkeypatch.undo()
    pipeline.prepare(config)
    assert contents(tmp_path) == contents(prepared)


def test_another_base_or_other_settings_are_refused(prepared, clips, base, tmp_path):
    other = write_tiny_base(tmp_path, seed=1)
    with pytest.raises(ShardError, match=r"latents holds shards of other settings \(base\.parts"):
        pipeline.prepare(config_for(prepared, clips, other))
    with pytest.raises(ShardError, match=r"settings\.task\.maker_args\.radius: \[2\.5, 3\.0\] -> \[2, 3\]"):
        pipeline.prepare(config_for(prepared, clips, base, "task.maker_args.radius=[2,3]"))


def test_two_preparations_cannot_write_to_one_folder(tmp_path, clips, base):
    config = config_for(tmp_path, clips, base)
    with (
        exclusive(Path(config.data.root), "..."),
        pytest.raises(ConfigError, match=r"being written by another process.*set another data\.root"),
    ):
        pipeline.prepare(config)
    assert not (Path(config.data.root) / "pairs").exists()
    pipeline.prepare(config)


def test_references_may_be_smaller_and_slower(tmp_path, clips, base):
    scales = ("task.reference_downscale=2", "task.reference_temporal_scale=2", "data.frames=9")
    root = pipeline.prepare(config_for(tmp_path, clips, base, *scales, "data.train_windows=4"))
    pairs, latents = ShardSet.open(root / "pairs"), ShardSet.open(root / "latents")
    assert pairs.read_pair(0).references[0].shape == (5, 16, 16, 3)
    assert latents.read_latents(0).references[0].shape[1:] == (2, 2, 2)
    assert latents.read_latents(0).target.shape[1:] == (3, 4, 4)


def test_a_supplied_reference_is_cropped_like_its_target(tmp_path, base):
    write_clip(tmp_path / "a.mp4", seed=1)
    write_clip(tmp_path / "b.mp4", seed=2)
    write_clip(tmp_path / "short.mp4", 12)
    rows = [{"video": "a.mp4", "reference": "b.mp4"}, {"video": "b.mp4", "reference": "short.mp4"}, {"video": "b.mp4"}]
    rows = [{"id": f"clip{i}", "split": "train", **row} for i, row in enumerate(rows)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = ("task.maker=given", "~task.maker_args.radius", "data.train_windows=2")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    pair = ShardSet.open(root / "pairs").read_pair(1)
    window = Window.from_record(pair.record["window"])
    (frames,) = read_windows(tmp_path / "b.mp4", [window])
    assert (pair.references[0] == crop_window(frames, window)).all()
    assert [c["reason"].split(",")[0] for c in json.loads((root / "report.json").read_text())["dropped"]] == [
        "its reference has 12 frames",
        "the list names no reference",
    ]


def test_clips_of_several_shapes_become_shards_of_several_buckets(tmp_path, base):
    for i, (height, width, frames) in enumerate(((48, 80, 20), (80, 48, 20), (48, 80, 6))):
        write_clip(tmp_path / f"{i}.mp4", frames, height, width, seed=i)
    rows = [{"id": f"c{i}", "video": f"{i}.mp4", "split": "train", "mood": f"mood {i}"} for i in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = ("data.buckets=[64x32x9,32x64x9,64x32x5]", "data.prompt='A {mood}, {trigger}'", "data.train_windows=9")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    pairs, latents = ShardSet.open(root / "pairs"), ShardSet.open(root / "latents")
    assert pairs.buckets == latents.buckets == {"64x32x9": 3, "32x64x9": 3, "64x32x5": 3}
    for i in range(len(pairs)):
        pair, latent = pairs.read_pair(i), latents.read_latents(i)
        assert pair.target.shape == pair.references[0].shape
        assert latent.target.shape[1:] == opened_geometry(base).latent_size(*pair.target.shape[:3])
        assert pair.caption == f"A mood {pairs.samples[i].source[1]}, DEBLUR"
    latents.require_settings(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    plan = plan_batches(latents, "train", 0, 3, None, 0, 1)
    assert all(len({latents.samples[i].bucket for i in plan.batch(n)}) == 1 for n in range(6))


def opened_geometry(base: Path) -> Geometry:
    return BaseModel.open(str(base)).geometry


def test_unset_new_settings_keep_older_shards_valid(prepared, clips, base):
    stored_settings = ShardSet.open(prepared / "pairs").fingerprint["settings"]["data"]
    assert not set(stored_settings) & set(pipeline.NEW_SETTINGS)
    with pytest.raises(ShardError, match=r"settings\.data\.pick: None -> stride"):
        pipeline.prepare(config_for(prepared, clips, base, "data.pick=stride"))


def test_images_become_shards_of_one_frame(tmp_path, base):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), moving(1, 40, 56, seed=i)[0, ..., ::-1])
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path, base, "data.frames=1", "data.fps=24"))
    pairs = ShardSet.open(root / "pairs")
    assert set(pairs.buckets) == {"32x32x1"}
    assert pairs.read_pair(0).fps == 24
    assert pairs.read_pair(0).caption.startswith("DEBLUR picture")


def test_a_reference_of_another_resolution_gets_the_same_crop(tmp_path, base):
    """Target and reference are one video, the reference at half the size: their windows must match."""
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in moving(12, 96, 128)])
    small = np.stack([cv2.resize(frame, (64, 48), interpolation=cv2.INTER_AREA) for frame in frames])
    (tmp_path / "a.mp4").write_bytes(encode_clip(frames, 25))
    (tmp_path / "b.mp4").write_bytes(encode_clip(small, 25))
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4", "reference": "b.mp4", "split": "train"}')
    settings = ("task.maker=given", "~task.maker_args.radius", "data.short_side=64", "data.train_windows=6")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path / "list.jsonl", base, *settings))
    pairs = ShardSet.open(root / "pairs")
    for i in range(len(pairs)):
        pair = pairs.read_pair(i)
        difference = np.abs(pair.references[0].astype(int) - pair.target).mean()
        assert difference < 4
        assert difference < np.abs(np.roll(pair.references[0], 3, axis=2).astype(int) - pair.target).mean() / 2


# --- refused settings ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.clips=/nowhere", r"data\.clips=/nowhere: /nowhere does not exist; give samples, a folder"),
        ("data.frames=6", r"data\.frames.*frames=6 is not 4k\+1 \(use 5 or 9\)"),
        ("data.height=30", r"height=30 is not a multiple of 8"),
        ("task.reference_downscale=8", r"a reference 8x smaller.*height=4 is not a multiple of 8"),
        ("task.reference_temporal_scale=3", r"task\.reference_temporal_scale=3 do not divide"),
        ("task.maker=blur", r"task\.maker='blur' is not one of control\.canny, .*degrade\.defocus, "),
        ("+task.maker_args.size=3", r"task\.maker_args\.size is not an argument of degrade\.defocus.*radius, rack"),
        ("task.maker_args.radius=wide", r"task\.maker_args\.radius='wide' must be a range"),
        ("task.maker_args.radius=[4,3]", r"must be a range from small to large"),
        ("data.train_windows=0", r"data\.train_windows=0 must be at least 1"),
    ],
)
def test_bad_settings_are_named(override, message, tmp_path, clips, base):
    with pytest.raises(ConfigError, match=message):
        pipeline.prepare(config_for(tmp_path / "out", clips, base, override))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_clips_and_one_with_bad_clips(tmp_path, base):
    with pytest.raises(ConfigError, match=r"holds no clips; put videos \(\.mp4"):
        pipeline.prepare(config_for(tmp_path / "out", tmp_path, base))
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    with pytest.raises(ConfigError, match="no train clip could be used; see the table"):
        pipeline.prepare(config_for(tmp_path / "out", tmp_path, base))
    (dropped,) = json.loads((tmp_path / "out" / "report.json").read_text())["dropped"]
    assert "text.mp4: cannot be read as a video" in dropped["reason"]


def test_the_command_prints_one_line_and_fails(tmp_path, base):
    command = [sys.executable, "-m", "data_prep", "conf=deblur", f"data.clips={tmp_path}", f"data.root={tmp_path}/out"]
    result = subprocess.run([*command, f"model.checkpoint={base}", *SIZE], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().startswith(f"error: data.clips={tmp_path}: {tmp_path} holds no clips")
    assert "Traceback" not in result.stderr


# --- clips ---


def test_a_folder_gives_stable_captions_ids_and_splits(tmp_path):
    for i in range(40):
        path = tmp_path / ("more" if i % 2 else "") / f"clip {i}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "clip 0.txt").write_text("a cat\n")
    before = {clip.path: clip for clip in list_clips(str(tmp_path), 0.1)}
    assert before[tmp_path / "clip 0.mp4"].caption == "a cat"
    assert {clip.split for clip in before.values()} == {"train", "val", "heldout"}
    assert len({clip.id for clip in before.values()}) == 40
    assert not any(set(clip.id) & set("./ ") for clip in before.values())
    (tmp_path / "clip 40.mp4").touch()
    after = {clip.path: clip for clip in list_clips(str(tmp_path), 0.1)}
    assert all(after[path] == clip for path, clip in before.items())


def test_small_folders_still_have_every_split(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").touch()
    assert sorted(clip.split for clip in list_clips(str(tmp_path), 0.1)) == ["heldout", "train", "val"]


def test_lists_are_checked(tmp_path):
    table = tmp_path / "list.csv"
    for text, message in (
        ("caption\na cat\n", "clip 1 names no video"),
        ("video,split\na.mp4,test\n", "split='test' is not one of train, val, heldout"),
        ("id,video\nx,a.mp4\nx,b.mp4\n", "x is listed twice"),
        ("id,video\nx.1,a.mp4\n", r"id='x\.1' may only hold letters"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=message):
            list_clips(str(table), 0.1)
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"video": "a.mp4"}\n{"video"\n')
    with pytest.raises(ConfigError, match="line 2 is not JSON"):
        list_clips(str(lines), 0.1)
    with pytest.raises(ConfigError, match=r"neither a folder nor a \.csv or \.jsonl list"):
        list_clips(str(write_clip(tmp_path / "a.mp4")), 0.1)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("top_left", "margin"), [((30, 40), 0), ((30, 40), 7), ((0, 0), 9), ((58, 84), 9)])
def test_points_are_cropped_like_pixels(top_left, margin, flip):
    """Coordinates mapped by the crop match the cropped frames."""
    window = Window("a", 0, (0,), (90, 120), top_left, (32, 36), flip, 25.0)
    crop = Crop.of_window(window, (180, 240), margin)
    picture = np.zeros((180, 240), np.float32)
    y, x = 2 * top_left[0] + 30, 2 * top_left[1] + 20
    picture[y - 4 : y + 4, x - 4 : x + 4] = 1
    placed = crop.apply(picture)
    assert placed.shape == crop.padded_size
    rows, columns = np.nonzero(placed)
    weights = placed[rows, columns]
    centre = [(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()]
    assert crop.apply_to_points(np.array([[x - 0.5, y - 0.5]]))[0] == pytest.approx(centre, abs=1e-5)
    top, left = crop.inner_offset
    inner = replace(crop, margin=0).apply(picture)
    assert (placed[top : top + 32, left : left + 36] == inner).all()


# --- captions for clips without one ---


def write_captioner(folder: Path) -> Path:
    """A tiny LLaVA with random weights and ten words."""
    words = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "a", "dog", "cat", "runs", "sleeps"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, additional_special_tokens=["<image>"], **special
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=16, **small)
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    text = transformers.LlamaConfig(vocab_size=len(words), num_key_value_heads=2, **small, **ids)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=4,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )
    chat = (
        "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }} {% endfor %}"
    )
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=chat + "{% endfor %}",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_clips_without_a_caption_are_described_once(tmp_path, monkeypatch):
    monkeypatch.setattr(captioner, "MAX_TOKENS", 4)
    folder = write_captioner(tmp_path / "model")
    for i in range(3):
        write_clip(tmp_path / f"clips/{i}.mp4", 5, seed=i)
    (tmp_path / "clips/0.txt").write_text("a dog that somebody described")
    (tmp_path / "clips/broken.mp4").write_text("no video")
    clips = list_clips(str(tmp_path / "clips"), 0.1)
    root = f"data.root={tmp_path / 'out'}"
    settings = compose("conf=deblur", f"data.captioner={folder}", root, "model.name=tiny", "model.checkpoint=tiny")
    captions = {clip.path.stem: clip.caption for clip in add_missing_captions(clips, settings)}
    assert captions["0"] == "a dog that somebody described"
    assert all(set(captions[name].split()) <= {"a", "dog", "cat", "runs", "sleeps"} for name in "12")
    assert all(len(captions[name].split()) == 4 for name in "12")
    assert captions["broken"] == ""
    (file,) = tmp_path.glob("out/captions-*/1-*.txt")
    file.write_text("a corrected caption\n")
    monkeypatch.setattr(captioner.Captioner, "describe", None)  # calling it would fail
    again = {clip.path.stem: clip.caption for clip in add_missing_captions(clips, settings)}
    assert again == {**captions, "1": "a corrected caption"}


@pytest.mark.parametrize("config_json", [None, '{"model_type": "llama"}', "{}"])
def test_a_folder_without_a_captioner_is_refused(config_json, tmp_path):
    if config_json is not None:
        (tmp_path / "config.json").write_text(config_json)
    with pytest.raises(ConfigError, match=r"data\.captioner=.*give a folder with config\.json, tokenizer"):
        captioner.Captioner.open(tmp_path)


def test_clips_without_a_caption_are_reported(tmp_path, base):
    for i in range(4):
        write_clip(tmp_path / f"{i}.mp4", 9, seed=i)
    (tmp_path / "0.txt").write_text("a texture")
    root = pipeline.prepare(config_for(tmp_path / "out", tmp_path, base))
    without_caption = json.loads((root / "report.json").read_text())["without_caption"]
    assert len(without_caption) == 3
    assert not any(name.startswith("0-") for name in without_caption)


# --- windows ---


def info(frames: int, height: int = 48, width: int = 64, fps: float = 25.0) -> ClipInfo:
    return ClipInfo(height, width, fps, tuple(i / fps for i in range(frames)))


def data(**changes: object) -> Data:
    settings = {"root": "", "frames": 5, "height": 32, "width": 32, "train_windows": 12, "heldout_windows": 12}
    return Data(**{**settings, **changes})


CLIPS = [ProbedClip(Clip(name, Path(name), ""), info(frames)) for name, frames in (("a", 40), ("b", 12), ("c", 60))]


def test_heldout_windows_are_disjoint_evenly_spaced_and_have_different_crops():
    windows = heldout_windows(CLIPS, data())
    per_clip = {name: [w for w in windows if w.clip == name] for name in "abc"}
    assert {name: len(clip_windows) for name, clip_windows in per_clip.items()} == {
        "a": 5,
        "b": 2,
        "c": 5,
    }  # b is long enough for two
    for clip_windows in per_clip.values():
        assert all(a.indices[-1] < b.indices[0] for a, b in pairwise(clip_windows))
        assert len({w.crop for w in clip_windows}) == len(clip_windows)
    assert not any(w.flip for w in windows)
    assert windows == heldout_windows(CLIPS, data(seed=5))
    assert len(heldout_windows(CLIPS, data(heldout_windows=1000))) == 8 + 2 + 12


def test_train_windows_are_seeded_and_inside_the_clip():
    windows = train_windows(CLIPS, data(train_windows=90))
    assert windows == train_windows(CLIPS, data(train_windows=90))
    assert windows != train_windows(CLIPS, data(train_windows=90, seed=1))
    frames = {footage.clip.id: footage.info.frames for footage in CLIPS}
    for window in windows:
        assert 0 <= window.indices[0] <= window.indices[-1] < frames[window.clip]
        assert len(window.indices) == 5
        assert all(0 <= offset <= length - 32 for offset, length in zip(window.crop, window.scaled, strict=True))
        assert 32 <= window.scaled[0] <= 40
    assert len({w.scaled for w in windows}) > 3
    assert {w.flip for w in windows} == {True, False}
    assert not any(w.flip or w.scaled[0] > 32 for w in train_windows(CLIPS, data(flip=False, zoom=1.0)))


def test_fps_selects_the_nearest_frame_by_time():
    uneven = ClipInfo(48, 64, 25.0, (0.0, 0.04, 0.08, 0.2, 0.24, 0.4))
    assert frames_at_rate(uneven, 10.0)[0].tolist() == [0, 2, 3, 4, 5]
    assert frames_at_rate(info(50), 12.5)[0].tolist() == list(range(0, 50, 2))
    assert frames_at_rate(info(50), None)[0].tolist() == list(range(50))
    assert frames_at_rate(info(1), 10.0)[0].tolist() == [0]
    (window, *_) = heldout_windows([ProbedClip(Clip("a", Path("a"), ""), info(50))], data(fps=12.5, heldout_windows=1))
    assert np.diff(window.indices).tolist() == [2] * 4
    assert window.fps == 12.5


@pytest.mark.parametrize(
    ("clip", "changes", "message"),
    [
        (info(4), {}, "4 frames are fewer than data.frames=5"),
        (info(40), {"fps": 2.0}, "4 frames are fewer"),
        (info(40, height=24), {}, "64x24 pixels do not hold"),
        (info(40, fps=10), {"fps": 24.0}, "10 frames a second are too few"),
        (info(40, 640, 480), {"short_side": 32}, None),
        (info(40), {"width": 48, "short_side": 32}, "do not hold"),
    ],
)
def test_the_reason_why_a_clip_does_not_fit(clip, changes, message):
    footage = ProbedClip(Clip("a", Path("a"), ""), clip)
    if message is None:
        footage.best_bucket(data(**changes))
    else:
        with pytest.raises(ValueError, match=message):
            footage.best_bucket(data(**changes))


# --- makers ---


MAKERS = [
    ("degrade.defocus", {"radius": [3, 4]}),
    ("degrade.defocus", {"radius": [1, 6], "rack": True, "linear": True}),
    ("degrade.gaussian", {"sigma": [1, 2]}),
    ("degrade.motion", {"length": [5, 9], "average": 3}),
    ("degrade.grey", {}),
    ("control.canny", {"low": 50, "high": 100, "thickness": 2, "soft": 0.6, "blur": 1}),
]


@pytest.mark.parametrize(("name", "args"), MAKERS)
def test_makers_are_deterministic_and_use_the_margin(name, args):
    """The reference of a crop equals the crop of the whole picture's reference: borders are real pixels."""
    frames = list(moving(5, 96, 128))
    maker = build_maker(name, args)
    inner = Window("a", 0, (0, 1, 2, 3, 4), (96, 128), (30, 40), (32, 32), False, 25.0)
    whole = replace(inner, crop=(0, 0), size=(96, 128))
    reference, drawn = make_reference(frames, inner, maker, SourceVideo(Path()), [1, 2], ReferenceScale())
    assert reference.shape == (5, 32, 32, 3)
    assert reference.dtype == np.uint8
    full, _ = make_reference(frames, whole, maker, SourceVideo(Path()), [1, 2], ReferenceScale())
    assert np.abs(reference.astype(int) - full[:, 30:62, 40:72]).max() <= 1
    mirrored, _ = make_reference(
        frames, replace(inner, flip=True), maker, SourceVideo(Path()), [1, 2], ReferenceScale()
    )
    assert mirrored.shape == reference.shape
    again, _ = make_reference(frames, inner, maker, SourceVideo(Path()), [1, 2], ReferenceScale())
    assert (again == reference).all()
    json.dumps(drawn)


def point() -> np.ndarray:
    frames = np.zeros((3, 41, 41, 3), np.uint8)
    frames[:, 18:23, 18:23] = 255
    return frames


def test_defocus_is_a_disk_with_sum_one():
    rng = np.random.default_rng(0)
    blurred, drawn = build_maker("degrade.defocus", {"radius": [5, 5]})(point(), rng, whole_clip(point()))
    assert drawn["radius"] == [5.0, 5.0]
    assert blurred.sum() == pytest.approx(point().sum(), rel=0.02)
    row = blurred[0, 20, :, 0]
    assert (row > 0).sum() in (15, 17)  # five pixels and a radius of five on each side
    racked, drawn = build_maker("degrade.defocus", {"radius": [1, 8], "rack": True})(point(), rng, whole_clip(point()))
    assert drawn["radius"][0] != drawn["radius"][1]
    assert len({frame.tobytes() for frame in racked}) == 3
    bloom, _ = build_maker("degrade.defocus", {"radius": [5, 5], "linear": True})(point(), rng, whole_clip(point()))
    assert bloom.max() > blurred.max()


def test_motion_is_a_line_and_averages_frames():
    blurred, _ = build_maker("degrade.motion", {"length": [9, 9]})(
        point(), np.random.default_rng(0), whole_clip(point())
    )
    _, (short, long), _ = cv2.minAreaRect(np.argwhere(blurred[0, ..., 0] > 25).astype(np.float32))
    assert max(short, long) > 1.5 * min(short, long)
    frames = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 90, 180)])
    averaged, _ = build_maker("degrade.motion", {"length": [1, 1], "average": 3})(
        frames, np.random.default_rng(0), whole_clip(frames)
    )
    assert averaged[:, 8, 8, 0].tolist() == [45, 90, 135]
    with pytest.raises(ConfigError, match="average=2 must be an odd number"):
        build_maker("degrade.motion", {"average": 2})


def test_grey_is_rec_601():
    colours = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], np.uint8)
    grey, _ = build_maker("degrade.grey", {})(colours, np.random.default_rng(0), whole_clip(colours))
    assert grey[0, 0, :, 0].tolist() == [76, 150, 29, 255]
    assert (grey == grey[..., :1]).all()


def test_canny_lines_have_the_set_thickness():
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, :, 20:] = 255
    widths = []
    for thickness in (1, 2, 3):
        edges, _ = build_maker("control.canny", {"thickness": thickness})(
            frames, np.random.default_rng(0), whole_clip(frames)
        )
        widths.append(int((edges[0, 20, :, 0] > 0).sum()))
    assert widths == [1, 2, 3]
    with pytest.raises(ConfigError, match="low=300 must not be above high"):
        build_maker("control.canny", {"low": 300})


def test_windows_are_read_in_one_pass(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 20)
    frames = list(read_clip(path))
    starts = (0, 2, 2, 11)
    windows = [
        Window("a", i, (first, first + 1, first + 4), (48, 64), (0, 0), (8, 8), False, 25.0)
        for i, first in enumerate(starts)
    ]
    for start, frames_read in zip(starts, read_windows(path, windows), strict=True):
        expected = [frames[start], frames[start + 1], frames[start + 4]]
        assert (np.stack(frames_read) == np.stack(expected)).all()
