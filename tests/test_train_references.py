"""A task with two references from training to a video: the file lists both, and `generate` uses each in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from iclora_train.adapters import lora
from iclora_train.adapters.references import ReferenceLayout
from iclora_train.config import Model
from iclora_train.generate.run import generate
from iclora_train.generate.settings import GenerateSettings
from iclora_train.media.clip import read_clip
from tests.clips import write_clip
from tests.command import run
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents


def test_a_trained_adapter_tells_generate_how_its_references_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_base(tmp_path / "base")
    overrides = [
        "conf=canny_still",
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
