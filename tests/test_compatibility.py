"""Files that version 0.1 wrote, before modules, columns and config keys were renamed, are still read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.command import read_csv, run
from tests.prep import contents

FILES = Path(__file__).parent / "version_0_1"
RESUMED_AFTER = 4  # steps
TASK = ["conf=deblur", "model.name=tiny", "model.checkpoint=base", "data.frames=5", "data.height=32", "data.width=32"]
DATA = ["data.root=shards", "data.clips=clips/list.csv", "data.train_windows=12", "data.heldout_windows=3"]
RUN = [
    "trainer.accelerator=cpu",
    "trainer.max_steps=6",
    "model.lora.rank=2",
    "model.precision=fp32",
    "optim=adamw",
    "optim.warmup_steps=2",
    "run=run",
    "eval.after_training=false",
    "validation.loss_every=2",
    "validation.checkpoint_every=2",
    "validation.windows=3",
    "validation.sigmas=[0.5]",
    "sample.steps=2",
    "logger=csv",
    "export_dtype=fp32",  # as version 0.1
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files that version 0.1 wrote: a base, clips, shards, a run killed after step 4, and its metrics."""
    return Path(shutil.copytree(FILES, tmp_path / "work"))


def test_a_killed_run_of_version_0_1_resumes_to_the_same_adapter(folder: Path) -> None:
    """The expected adapter was finished by version 0.1; the tolerance allows for another processor's rounding."""
    result = run(folder, "iclora_train", *TASK, *DATA, *RUN)
    assert result.code == 0, result.err
    expected, resumed = folder / "adapter.safetensors", folder / "runs/run/adapter.safetensors"
    assert_close(load_file(resumed), load_file(expected), rtol=1e-3, atol=1e-5)
    with safe_open(expected, "pt") as old, safe_open(resumed, "pt") as new:
        metadata = new.metadata()
        makers = metadata.pop("reference_makers")  # version 0.1 did not write it
        assert metadata == old.metadata()
    assert json.loads(makers)[0]["maker"] == "degrade.defocus"


def test_the_metrics_of_a_resumed_run_keep_their_rows(folder: Path) -> None:
    """Version 0.1 also gave figures of a swapped reference when all val windows were of one recording, as here."""
    run(folder, "iclora_train", *TASK, *DATA, *RUN)
    old, new = read_csv(folder / "metrics.csv"), read_csv(folder / "runs/run/metrics.csv")
    assert [row["step"] for row in new] == [row["step"] for row in old] == list("0123456")
    for before, after in zip(old, new, strict=True):
        for column, value in before.items():
            name = column.replace("heldout_", "val_")
            if int(before["step"]) > RESUMED_AFTER and ("swap" in name or name == "sampled_psnr_other"):
                assert not after[name]
                continue
            assert after[name] == value if not value else float(after[name]) == pytest.approx(float(value), rel=1e-3)


def test_shards_of_version_0_1_are_valid_and_not_prepared_again(folder: Path) -> None:
    before = contents(folder / "shards")
    verified = run(folder, "data_prep", "verify", "data.root=shards")
    assert verified.code == 0, verified.err
    prepared = run(folder, "data_prep", *TASK, *DATA)
    assert prepared.code == 0, prepared.err
    after = contents(folder / "shards")
    written = {name for name, data in after.items() if before.get(name) != data}
    assert not {name for name in written if name.endswith((".tar", "index.json", "fingerprint.json"))}


def test_an_adapter_of_version_0_1_generates_a_clip(folder: Path) -> None:
    checked = run(folder, "iclora_train.adapters", "check", "adapter.safetensors", "--base", "base")
    assert checked.code == 0, checked.err
    generated = run(
        folder,
        "iclora_train.generate",
        *TASK[:3],
        "adapter=adapter.safetensors",
        "reference=clips/clip0.mp4",
        "frames=5",
        "width=32",
        "height=32",
        "sample.steps=2",
        "prompt=a moving texture",
        "out=generated.mp4",
    )
    assert generated.code == 0, generated.err
    assert (folder / "generated.mp4").stat().st_size > 0
