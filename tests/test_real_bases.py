"""The commands on checkpoints of the real layouts: tiny and random, but with official names and metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iclora_train.adapters import lora
from iclora_train.config import Model
from iclora_train.ltx2.base_model import open_base
from iclora_train.media.shard_clip import encode_clip
from scripts import full_size
from scripts.synthetic.folders import LAYOUTS
from scripts.synthetic.gemma import gemma_for
from scripts.synthetic_checkpoint import write_checkpoint
from tests.command import Result, run

MODELS = {"ltx2": "2.0", "ltx2_3": "2.3", "ltx2_5": "2.5"}
CASES = [(model, version, layout) for model, version in MODELS.items() for layout in LAYOUTS]
SMALL = (
    "data.width=64",
    "data.height=64",
    "data.frames=9",
    "data.fps=null",
    "data.train_windows=4",
    "data.heldout_windows=4",
    "data.workers=0",
    "data.heldout_fraction=0.34",
    "task.maker_args.radius=[1.0,2.0]",
    "trainer=cpu",
    "trainer.max_steps=2",
    "model.precision=fp32",
    "model.lora.rank=4",
    "sample.steps=1",
    "sample.stg_blocks=[1]",
    "validation.windows=2",
    "validation.loss_every=2",
    "validation.checkpoint_every=1",
    "eval.after_training=false",
    "logger=none",
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short clips, so that every split has one."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 255, (8, 4, 4, 3), dtype=np.uint8)
        frames = noise.repeat(4, 0).repeat(24, 1).repeat(24, 2)  # (32,96,96,3)
        (folder / f"clip{i}.mp4").write_bytes(encode_clip(frames, 24.0))
        (folder / f"clip{i}.txt").write_text(f"coloured squares {i}")
    return folder


@pytest.mark.parametrize(("model", "version", "layout"), CASES)
def test_prepare_and_train(model: str, version: str, layout: str, clips: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", version, layout)
    settings = [f"model={model}", f"model.checkpoint={checkpoint}", f"data.clips={clips}", "data.root=shards"]
    encoder = f"model.text_encoder={gemma_for(version, tmp_path / 'gemma')}"
    prepared = run(tmp_path, "data_prep", "conf=deblur", *settings, *SMALL, encoder)
    assert (prepared.code, prepared.err.count("error:")) == (0, 0), prepared.err
    trained = run(tmp_path, "iclora_train", "conf=deblur", *settings, *SMALL)  # without the text encoder
    assert trained.code == 0, trained.err
    assert "dry run on 64x64x9" in trained.out
    adapter = lora.read(tmp_path / f"runs/deblur-{model}/adapter.safetensors")
    assert adapter.metadata["base_model_version"] == version
    assert len(adapter.weights) == 10 * 2
    assert list((tmp_path / f"runs/deblur-{model}/samples").glob("step-00000002-*.mp4"))


@pytest.mark.parametrize("fp8", [False, True])
def test_an_adapter_of_a_real_base_is_evaluated(fp8: bool, clips: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", "2.3", fp8=fp8)
    settings = [
        "conf=deblur",
        "model=ltx2_3",
        f"model.checkpoint={checkpoint}",
        f"data.clips={clips}",
        "data.root=shards",
    ]
    encoder = f"model.text_encoder={gemma_for('2.3', tmp_path / 'gemma')}"
    eval_settings = (
        "data.root=shards",
        "sample.guidance=2",
        "eval.windows=2",
        "eval.seeds=[0]",
        "eval.strengths=[1.0,0.0]",
    )
    for command, extra in (("data_prep", (encoder,)), ("iclora_train", ()), ("eval", ())):
        result = run(tmp_path, command, *settings, *SMALL, *eval_settings, *extra)
        assert result.code == 0, result.err
    (path,) = tmp_path.glob("runs/deblur-ltx2_3/eval-2x1-*/scores.json")
    scores = json.loads(path.read_text())
    assert scores["base"]["version"] == "2.3"
    assert scores["cells"].keys() >= {"adapter+reference", "base+reference", "swapped", "ceiling"}


def refused(result: Result) -> str:
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    return result.err


def test_another_version_or_vae_is_refused(clips: Path, tmp_path: Path) -> None:
    old = write_checkpoint(tmp_path / "old", "2.0")
    new = write_checkpoint(tmp_path / "new", "2.3")
    encoder = f"model.text_encoder={gemma_for('2.3', tmp_path / 'gemma')}"
    settings = (f"data.clips={clips}", "data.root=shards", *SMALL)
    with_old = run(tmp_path, "data_prep", "conf=deblur", "model=ltx2_3", f"model.checkpoint={old}", *settings, encoder)
    assert f"model.checkpoint={old} is of version 2.0, but model=ltx2_3 needs 2.3" in refused(with_old)
    with_new = run(tmp_path, "data_prep", "conf=deblur", "model=ltx2_3", f"model.checkpoint={new}", *settings, encoder)
    assert with_new.code == 0, with_new.err
    other = write_checkpoint(tmp_path / "other", "2.3", seed=1)
    trained = run(tmp_path, "iclora_train", "conf=deblur", "model=ltx2_3", f"model.checkpoint={other}", *settings)
    assert "shards/latents was made by another base" in refused(trained)
    assert "data_prep again" in trained.err
    prepared_parts = json.loads((tmp_path / "shards/latents/fingerprint.json").read_text())["base"]["parts"]
    other_parts = open_base(Model(name="ltx2_3", checkpoint=str(other))).latent_fingerprints
    assert prepared_parts.keys() >= other_parts.keys()
    assert all(prepared_parts[name] != other_parts[name] for name in ("vae", "connectors"))


def test_missing_settings_of_a_real_base_are_named(tmp_path: Path) -> None:
    message = refused(run(tmp_path, "data_prep", "conf=deblur", "model=ltx2_3"))
    assert "data.clips, model.checkpoint must be set: e.g. data.clips=..." in message


@pytest.mark.parametrize(
    ("key", "message"), [("data.frames=10", "frames=10 is not"), ("data.width=72", "width=72 is not")]
)
def test_sizes_that_do_not_fit_the_vae(key: str, message: str, clips: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", "2.3")
    settings = ("model=ltx2_3", f"model.checkpoint={checkpoint}", f"data.clips={clips}", "data.root=shards")
    assert message in refused(run(tmp_path, "data_prep", "conf=deblur", *settings, *SMALL, key))


def test_a_missing_gpu_is_named(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checkpoint = write_checkpoint(tmp_path / "base", "2.3")
    settings = ("model=ltx2_3", f"model.checkpoint={checkpoint}", f"data.clips={clips}", "data.root=shards", *SMALL)
    encoder = f"model.text_encoder={gemma_for('2.3', tmp_path / 'gemma')}"
    result = run(tmp_path, "iclora_train", "conf=deblur", *settings, "trainer.accelerator=gpu", encoder)
    assert "trainer.accelerator=gpu, but this machine has no CUDA device" in result.err


def test_full_size_runs_on_a_small_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(write_checkpoint(tmp_path, "2.3"))
    encoder = str(gemma_for("2.3", tmp_path / "gemma"))
    sizes = ["--frames", "9", "--height", "64", "--width", "64", "--vae", "64x64x9", "--text-encoder", encoder]
    arguments = [*sizes, "--steps", "30", "--rank", "4", "--rate", "2e-2"]
    monkeypatch.setattr("sys.argv", ["full_size", checkpoint, "--out", str(tmp_path), *arguments])
    full_size.main()
    rows = {row["part"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["train"]["last_loss"] < rows["train"]["first_loss"] / 2
    assert rows["export"]["equal"]
    assert rows["text encode"]["finite"]
    assert rows["vae decode"]["finite"]
