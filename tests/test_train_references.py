"""A task with two references from training to a video: the file lists both, and `generate` uses each in its way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iclora_train.adapters import lora
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import Model
from iclora_train.generate.run import generate
from iclora_train.generate.settings import GenerateSettings
from iclora_train.media.clip import read_clip
from tests.clips import write_clip
from tests.command import run
from tests.tiny import SETTINGS, WIDTH, composed, write_tiny_base, write_tiny_latents

# as conf=canny_still without what is tuned for nano
STILL = "task.more_references=[{name: still, maker: edit.frame, maker_args: {frame: any}, frame: 0, p: 0.9}]"


def settings_of(folder: Path, base: Path, *more: str) -> list[str]:
    """The command line of a short training with two references, for which latents are written."""
    overrides = ["conf=canny_still", STILL, f"model.checkpoint={base}", "trainer.accelerator=cpu", "optim=adamw"]
    overrides += [f"data.root={folder}/shards", *SETTINGS, "model.lora.rank=4", "run=run", "logger=csv"]
    overrides += ["eval.after_training=false", "sample.steps=2", "validation.sigmas=[0.5]", *more]
    write_tiny_latents(folder / "shards" / "latents", base, composed(*overrides))
    return overrides


def test_slots_are_trained_saved_resumed_and_exported(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    overrides = settings_of(tmp_path, base, "trainer.max_steps=4", "validation.checkpoint_every=2", "optim.ema=0.5")
    command = [*overrides, "task.reference_slots=true"]
    result = run(tmp_path, "iclora_train", *command)
    assert (result.code, result.err) == (0, "")
    path = tmp_path / "runs/run/adapter.safetensors"
    adapter, trained = lora.read(path), path.read_bytes()
    assert adapter.slots is not None
    assert adapter.slots.shape == (2, WIDTH)
    assert adapter.slots.abs().sum(1).gt(0).all()
    assert "| order of the references | learned" in path.with_suffix(".md").read_text()
    newest = tmp_path / "runs/run/checkpoints/step-00000004.ckpt"
    checkpoint = torch.load(newest, weights_only=True)
    assert checkpoint["state_dict"]["transformer.reference_slots.weight"].shape == (2, WIDTH)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    path.unlink()
    newest.unlink()
    result = run(tmp_path, "iclora_train", *command)
    assert "resuming from step 2" in result.out
    assert path.read_bytes() == trained
    result = run(tmp_path, "iclora_train", *overrides)
    assert result.code == 2
    assert "task.reference_slots: True -> False" in result.err


def test_a_trained_adapter_tells_generate_how_its_references_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_base(tmp_path / "base")
    overrides = [
        "conf=canny_still",
        STILL,
        "task.reference_downscale=2",
        f"model.checkpoint={base}",
        "trainer.accelerator=cpu",
    ]
    overrides += [f"data.root={tmp_path}/shards", *SETTINGS, "model.lora.rank=4", "optim=adamw"]
    overrides += ["trainer.max_steps=2"]
    overrides += ["run=run", "logger=csv", "eval.after_training=false", "sample.steps=2", "validation.sigmas=[0.5]"]
    write_tiny_latents(tmp_path / "shards" / "latents", base, composed(*overrides))
    result = run(tmp_path, "iclora_train", *overrides)
    assert (result.code, result.err) == (0, "")
    path = tmp_path / "runs/run/adapter.safetensors"
    layouts = lora.read(path).references
    assert layouts == [ReferenceLayout("first", 2), ReferenceLayout("still", frame=0)]
    assert [layout.p for layout in layouts] == [1, 0.9]
    card = path.with_suffix(".md").read_text()
    assert "| frames of the reference 2, still | one or several, from frame 0 of the output clip |" in card
    write_clip(tmp_path / "edges.mp4", frames=9, height=32, width=32)
    settings = GenerateSettings(
        adapter=str(path),
        reference=str(tmp_path / "edges.mp4"),
        out=str(tmp_path / "video.mp4"),
        cache=str(tmp_path / "cache"),
        model=Model(name="tiny", checkpoint=str(base), precision="fp32"),
    )
    settings.sample.steps = 2
    generate(settings)
    assert "reference still (factor 1, at frame 0) is not given: 90% of the training clips" in capsys.readouterr().out
    assert len(list(read_clip(tmp_path / "video.mp4"))) == 9
