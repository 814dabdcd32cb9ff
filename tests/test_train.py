"""The training command on a tiny base: its results, exact resuming, and refused settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from iclora_train.adapters import lora
from iclora_train.config import ConfigError, Flow, Optim, Task
from iclora_train.config.hydra_app import task_names
from iclora_train.core.types import Geometry
from iclora_train.data.batch import Batch
from iclora_train.data.clip_hashes import read_trained_on
from iclora_train.diffusion.random_draws import RandomDraws, draw_random, step_generator
from iclora_train.diffusion.training_inputs import build_tokens, require_factors
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.training.checkpointing import newest_checkpoint
from iclora_train.training.lightning_module import ICLoRA, lr_factor
from tests.command import Result, read_csv, run, start
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run on a tiny base with its latents."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(folder / "base")
    overrides = ["conf=deblur", f"model.checkpoint={base}", f"data.root={folder}/shards", "trainer.accelerator=cpu"]
    overrides += [*SETTINGS, "model.lora.rank=4", "optim=adamw", "optim.warmup_steps=2", "trainer.max_steps=6"]
    overrides += ["run=run", "logger=csv", "eval.after_training=false", "sample.steps=2", "validation.sigmas=[0.5]"]
    overrides += ["validation.loss_every=3", "validation.checkpoint_every=2", "validation.windows=4"]
    write_tiny_latents(folder / "shards" / "latents", base, composed(*overrides))
    return overrides


def train(folder: Path, tiny: list[str], *more: str, largest_file: int | None = None) -> Result:
    return run(folder, "iclora_train", *tiny, *more, largest_file=largest_file)


def rows(folder: Path) -> list[dict[str, str]]:
    return read_csv(folder / "runs/run/metrics.csv")


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "runs/run/adapter.safetensors").read_bytes()


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs/run/checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An uninterrupted run of six steps. (A strategy may be named; on one device it changes nothing.)"""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder, tiny, "+trainer.strategy=ddp")


def test_a_run_writes_adapter_log_samples_and_checkpoints(finished: tuple[Path, Result], tiny: list[str]) -> None:
    folder, result = finished
    assert (result.code, result.err) == (0, "")
    assert "step 6/6" in result.out
    assert "validation loss: reference correct" in result.out
    assert "runs/run/adapter.safetensors" in result.out
    adapter = lora.read(folder / "runs/run/adapter.safetensors")
    base = BaseModel.open(str(composed(*tiny).model.checkpoint))
    lora.require_same_base(folder, adapter, base.family, base.version)
    assert adapter.metadata["task"] == "deblur"
    assert adapter.metadata["base_fingerprint"] == base.fingerprint
    assert (adapter.downscale, adapter.metadata["rank"], adapter.metadata["steps"]) == (1, "4", "6")
    assert {a.dtype for a, _ in adapter.weights.values()} == {torch.bfloat16}
    assert 0 < float(adapter.metadata["rounding_error"]) < 0.01
    table = rows(folder)
    assert [row["step"] for row in table] == ["0", "1", "2", "3", "4", "5", "6"]
    assert [row["step"] for row in table if row["val_swapped_0.5"]] == ["0", "3", "6"]
    assert [float(row["lr"]) for row in table[1:4]] == [0.0005, 0.001, 0.001]
    assert checkpoints(folder) == ["step-00000004.ckpt", "step-00000006.ckpt"]
    trained = read_trained_on(folder / "runs/run/adapter.safetensors")
    assert trained is not None
    assert trained.clips
    assert len(list((folder / "runs/run/samples").glob("step-00000006-*.mp4"))) == 4


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one_which_may_go_on_alone(tiny: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    alone = "trainer.accumulate_grad_batches=2"
    assert train(one, tiny, alone).code == 0
    command = [sys.executable, "-W", "ignore", "-m", "iclora_train", *tiny, "trainer.devices=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, check=False, cwd=two, env=environment, capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("step 6/6") == 1  # only the first process prints
    assert_same_training(two, one)
    assert lora.read(two / "runs/run/adapter.safetensors").metadata["batches_per_step"] == "2"
    assert "| batches per step | 2 |" in (two / "runs/run/adapter.md").read_text()
    (two / "runs/run/adapter.safetensors").unlink()
    (two / "runs/run/checkpoints/step-00000006.ckpt").unlink()
    refused = train(two, tiny)
    assert refused.code == 2
    assert (
        "trainer.devices x trainer.num_nodes x trainer.accumulate_grad_batches: 2 -> 1; 1 rank(s) have 2 batches per "
        "step with trainer.accumulate_grad_batches=2)" in refused.err
    )
    assert "resuming from step 4" in train(two, tiny, alone).out
    assert_same_training(two, one)


def assert_same_training(folder: Path, expected: Path) -> None:
    """The same metrics and the same trained weights, but for rounding."""
    for row, other in zip(rows(folder), rows(expected), strict=True):
        assert {name: float(value or 0) for name, value in row.items()} == pytest.approx(
            {name: float(value or 0) for name, value in other.items()}, rel=1e-4, abs=1e-5
        )
    weights, others = (
        torch.load(path / "runs/run/checkpoints/step-00000006.ckpt", weights_only=True)["state_dict"]
        for path in (folder, expected)
    )
    assert_close(weights, others, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu_the_memory_plan_is_searched_once_and_reused_on_resume(tiny: list[str], tmp_path: Path) -> None:
    on_gpu = ("trainer.accelerator=gpu", "model.compile=true", "model.precision=bf16")
    first = train(tmp_path, tiny, *on_gpu)
    assert first.code == 0, first.err
    plan_file, folder = tmp_path / "runs/run/memory.json", tmp_path / "runs/run"
    plan = json.loads(plan_file.read_text())
    assert plan["activation_budget"] == 1  # a step this small fits without recomputation
    plan_file.write_text(json.dumps({**plan, "activation_budget": 0.5}))
    (folder / "adapter.safetensors").unlink()
    (folder / "checkpoints/step-00000006.ckpt").unlink()
    result = train(tmp_path, tiny, *on_gpu)
    assert result.code == 0, result.err
    assert "resuming from step 4" in result.out
    assert json.loads(plan_file.read_text())["activation_budget"] == 0.5  # not searched again
    assert lora.read(folder / "adapter.safetensors").metadata["steps"] == "6"


def test_a_checkpoint_has_no_base_weights_and_loads_without_unpickling(finished: tuple[Path, Result]) -> None:
    checkpoint = torch.load(finished[0] / "runs/run/checkpoints/step-00000006.ckpt", weights_only=True)
    assert all(".lora_" in key for key in checkpoint["state_dict"])
    assert checkpoint["global_step"] == 6
    assert checkpoint["optimizer_states"][0]["state"]


def test_a_finished_run_is_not_trained_again(finished: tuple[Path, Result], tiny: list[str]) -> None:
    folder, _ = finished
    before = adapter_bytes(folder)
    result = train(folder, tiny)
    assert result.code == 0
    assert "is finished" in result.out
    assert "run=<name>" in result.out
    assert adapter_bytes(folder) == before


def test_a_run_that_is_killed_three_times_ends_with_the_same_bytes(tiny: list[str], tmp_path: Path) -> None:
    settings = ["trainer.max_steps=30", "trainer.accumulate_grad_batches=2", "optim.ema=0.9", "flow.reference_p=0.5"]
    settings += ["validation.checkpoint_every=3", "optim.decay=cosine", "trainer.log_every_n_steps=4"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert train(tmp_path / "whole", tiny, *settings).code == 0
    log = tmp_path / "killed/runs/run/metrics.csv"
    for lines in (5, 12, 24):  # before, between and at checkpoints, at a random moment of a step
        process = start(tmp_path / "killed", "iclora_train", *tiny, *settings)
        deadline = time.monotonic() + 60
        while not log.exists() or log.read_bytes().count(b"\n") < lines:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert not (tmp_path / "killed/runs/run/adapter.safetensors").exists()
    last = train(tmp_path / "killed", tiny, *settings)
    assert last.code == 0
    assert "resuming from step" in last.out
    assert log.read_bytes() == (tmp_path / "whole/runs/run/metrics.csv").read_bytes()
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "whole")


def test_validation_does_not_change_the_run(finished: tuple[Path, Result], tiny: list[str], tmp_path: Path) -> None:
    result = train(tmp_path, tiny, "validation.loss_every=0")
    assert result.code == 0
    assert not list(tmp_path.glob("runs/run/samples/*"))
    assert adapter_bytes(tmp_path) == adapter_bytes(finished[0])
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in rows(finished[0])[1:]]


def test_a_sweep_trains_every_task_in_its_own_folder(tiny: list[str], tmp_path: Path) -> None:
    shared = [override for override in tiny if not override.startswith(("conf=", "data.root=", "run="))]
    base = Path(composed(*tiny).model.checkpoint)
    tasks = [task for task in task_names() if not composed(f"conf={task}").task.needs_audio]
    for task in tasks:
        write_tiny_latents(tmp_path / "shards" / task / "latents", base, composed(*shared, f"conf={task}"))
    settings = [f"conf={','.join(tasks)}", "data.root=shards/${task.name}", "trainer.max_steps=2", "logger=none"]
    settings.append("validation.loss_every=0")
    result = run(tmp_path, "iclora_train", "-m", *shared, *settings)
    assert (result.code, result.err) == (0, "")
    for task in tasks:
        assert lora.read(tmp_path / f"runs/{task}-nano/adapter.safetensors").metadata["task"] == task
        assert not (tmp_path / f"runs/{task}-nano/metrics.csv").exists()


def test_a_token_budget_trains_like_the_equivalent_batch_size(
    finished: tuple[Path, Result], tiny: list[str], tmp_path: Path
) -> None:
    result = train(tmp_path, tiny, "data.tokens_per_batch=575", "data.batch_size=1")  # 64 tokens per clip: 8 clips
    assert (result.code, result.err) == (0, "")
    assert (tmp_path / "runs/run/metrics.csv").read_bytes() == (finished[0] / "runs/run/metrics.csv").read_bytes()
    by_tokens, by_size = (lora.read(folder / "runs/run/adapter.safetensors") for folder in (tmp_path, finished[0]))
    assert by_tokens.metadata["batch_size"] == by_size.metadata["batch_size"] == "8"
    assert all(
        torch.equal(a, b)
        for name in by_tokens.weights
        for a, b in zip(by_tokens.weights[name], by_size.weights[name], strict=True)
    )


def test_another_seed_gives_another_loss(finished: tuple[Path, Result], tiny: list[str], tmp_path: Path) -> None:
    assert train(tmp_path, tiny, "seed=1").code == 0
    assert rows(tmp_path)[-1]["loss"] != rows(finished[0])[-1]["loss"]


def test_a_run_folder_with_other_settings_is_refused(finished: tuple[Path, Result], tiny: list[str]) -> None:
    result = train(finished[0], tiny, "optim.optimizer.lr=0.5", "trainer.max_steps=9")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "optim.optimizer.lr: 0.001 -> 0.5" in result.err
    assert "trainer.max_steps: 6 -> 9" in result.err
    assert "run=<name>" in result.err


def test_a_damaged_checkpoint_is_skipped(finished: tuple[Path, Result], tiny: list[str], tmp_path: Path) -> None:
    assert train(tmp_path, tiny).code == 0
    folder = tmp_path / "runs/run"
    (folder / "adapter.safetensors").unlink()
    path = folder / "checkpoints/step-00000006.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = train(tmp_path, tiny)
    assert result.code == 0
    assert "step-00000006.ckpt is damaged" in result.err
    assert "resuming from step 4" in result.out
    assert adapter_bytes(tmp_path) == adapter_bytes(finished[0])
    path.write_bytes(data[:100])
    (folder / "checkpoints/step-00000004.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no checkpoint in .* is intact: restore one, or name another run"):
        newest_checkpoint(folder / "checkpoints")


def test_a_full_disk_leaves_the_earlier_checkpoint(
    finished: tuple[Path, Result], tiny: list[str], tmp_path: Path
) -> None:
    process = start(tmp_path, "iclora_train", *tiny)
    while process.is_alive() and not list(tmp_path.glob("runs/run/checkpoints/*.ckpt")):
        time.sleep(0.001)
    process.kill()
    process.join()
    if (tmp_path / "runs/run/adapter.safetensors").exists():
        pytest.skip("the run was over before it could be stopped")
    before = checkpoints(tmp_path)
    result = train(tmp_path, tiny, largest_file=20_000)
    assert result.code == 2
    assert "could not be written" in result.err.splitlines()[-1]
    intact = [name for name in checkpoints(tmp_path) if name.endswith(".ckpt")]
    assert set(intact) <= set(before)
    assert newest_checkpoint(tmp_path / "runs/run/checkpoints") is not None
    assert train(tmp_path, tiny).code == 0
    assert adapter_bytes(tmp_path) == adapter_bytes(finished[0])


def test_a_diverging_run_stops_and_names_step_and_clips(tiny: list[str], tmp_path: Path) -> None:
    result = train(tmp_path, tiny, "optim.optimizer.lr=1e30", "validation.loss_every=0")
    assert result.code == 2
    assert "at step 2" in result.err
    assert "at sigma 0." in result.err
    assert "train0" in result.err
    assert not (tmp_path / "runs/run/checkpoints").exists()
    assert train(tmp_path, tiny).code == 0  # nothing was saved, so the folder accepts other settings


def test_a_run_that_rarely_reads_metrics_stops_before_it_saves_a_diverged_step(tiny: list[str], tmp_path: Path) -> None:
    settings = ["optim.optimizer.lr=1e30", "validation.loss_every=0", "validation.checkpoint_every=5"]
    result = train(tmp_path, tiny, *settings, "trainer.log_every_n_steps=100")
    assert result.code == 2
    assert "at step 2 (" in result.err
    assert [row["step"] for row in rows(tmp_path)] == ["1"]
    assert not (tmp_path / "runs/run/checkpoints").exists()


def test_a_run_begun_by_an_earlier_version_keeps_its_rows_when_resumed(tiny: list[str], tmp_path: Path) -> None:
    """Earlier versions named the validation columns heldout_*."""
    assert train(tmp_path, tiny).code == 0
    folder = tmp_path / "runs/run"
    log = folder / "metrics.csv"
    complete = log.read_bytes()
    log.write_bytes(complete.replace(b"val_", b"heldout_"))
    (folder / "adapter.safetensors").unlink()
    (folder / "checkpoints/step-00000006.ckpt").unlink()
    assert train(tmp_path, tiny).code == 0
    assert log.read_bytes() == complete


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.rank=0", "model.lora.rank=0 must be at least 1"),
        ("model.lora.rank=4000", "model.lora.rank=4000 is above 48"),
        ("model.lora.targets=[attn3.to_q]", "no linear 'attn3.to_q' in the base"),
        ("model.checkpoint=nowhere", "model.checkpoint='nowhere' is neither a file"),
        ("+trainer.max_stepz=3", "trainer.max_stepz is not a setting"),
        ("trainer.max_steps=0", "trainer.max_steps must be at least 1"),
        ("optim.optimizer._target_=torch.optim.AdamV", "AdamV"),
        ("data.batch_size=100", "data.batch_size=100 needs 100 clips"),
        (
            "data.tokens_per_batch=1600",
            "data.tokens_per_batch=1600 needs 25 clips of 32x32x5, which has 24",
        ),
        ("data.tokens_per_batch=0", "data.tokens_per_batch=0 must be at least 1, or null"),
        ("data.height=48", "data.height"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny: list[str], tmp_path: Path, override: str, message: str) -> None:
    result = train(tmp_path, tiny, override)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_shards_of_another_base_are_refused(tiny: list[str], tmp_path: Path) -> None:
    other = write_tiny_base(tmp_path / "other", seed=1)
    result = train(tmp_path, tiny, f"model.checkpoint={other}")
    assert result.code == 2
    assert "shards" in result.err
    assert "other" in result.err


def test_bf16_keeps_the_adapter_in_fp32(tiny: list[str], tmp_path: Path) -> None:
    result = train(tmp_path, tiny, "model.precision=bf16", "trainer.max_steps=2", "export_dtype=fp32")
    assert (result.code, result.err) == (0, "")
    adapter = lora.read(tmp_path / "runs/run/adapter.safetensors")
    assert "rounding_error" not in adapter.metadata
    for a, b in adapter.weights.values():
        assert a.dtype == b.dtype == torch.float32
        assert not torch.equal(a, a.bfloat16().float())  # not only the dtype: the values have more than 8 bits


# --- parts of a training step ---


def test_random_draws_depend_on_seed_step_and_slot_only() -> None:
    target = torch.zeros(4, 2, 2, 3, 3)
    first, repeated = (draw_random(target, Flow(), step_generator(0, 7, 1)) for _ in range(2))
    assert torch.equal(first.noise, repeated.noise)
    assert torch.equal(first.sigma, repeated.sigma)
    for seed_step_slot in ((1, 7, 1), (0, 8, 1), (0, 7, 0)):
        assert not torch.equal(first.noise, draw_random(target, Flow(), step_generator(*seed_step_slot)).noise)


def test_probabilities_of_first_frame_and_reference_are_per_clip() -> None:
    draws = draw_random(
        torch.zeros(2000, 1, 1, 1, 1), Flow(first_frame_p=0.2, reference_p=0.7), step_generator(0, 0, 0)
    )
    assert draws.clean_first_frame.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert draws.use_references.float().mean().item() == pytest.approx(0.7, abs=0.03)


def test_build_tokens_keeps_first_frames_clean_and_hides_references() -> None:
    generator = torch.Generator().manual_seed(0)
    target, noise = torch.randn(2, 2, 3, 5, 2, 2, generator=generator).unbind(0)
    batch = Batch(target, [target * 0], text=torch.zeros(2, 1, 1), fps=torch.tensor([25.0, 25.0]), keys=["a", "b"])
    clean_first_frame, use_references = torch.tensor([True, False]), torch.tensor([True, False])
    draws = RandomDraws(torch.tensor([0.5, 1.0]), noise, clean_first_frame, use_references)
    tokens, velocity = build_tokens(batch, draws, Task(), Geometry(3, 8, 4))
    assert tokens.latent.shape == (2, 40, 3)
    assert torch.equal(tokens.latent[0, :4], target[0, :, 0].flatten(1).T)  # clean
    assert torch.allclose(tokens.latent[1, :4], noise[1, :, 0].flatten(1).T)  # sigma 1 is noise
    assert tokens.loss_mask.sum(1).tolist() == [16, 20]
    assert torch.equal(velocity, (noise - target).flatten(2).transpose(1, 2))
    assert tokens.weight is not None
    assert tokens.weight[0].unique().tolist() == [1.0]
    assert tokens.weight[1].tolist() == [1.0] * 20 + [0.0] * 20


def test_a_reference_of_an_undeclared_size_is_refused() -> None:
    target = torch.zeros(1, 8, 3, 4, 6)
    require_factors(target, torch.zeros(1, 8, 3, 2, 3), Task(reference_downscale=2), "clip1")
    require_factors(target, torch.zeros(1, 8, 2, 4, 6), Task(reference_temporal_scale=2), "clip1")
    with pytest.raises(ConfigError, match=r"task\.reference_downscale=2: clip clip1 has a latent reference of 6x4"):
        require_factors(target, target, Task(reference_downscale=2), "clip1")
    with pytest.raises(ConfigError, match=r"task\.reference_temporal_scale=1: clip clip1 has 2 latent frames"):
        require_factors(target, target[:, :, :2], Task(), "clip1")


def test_the_learning_rate_warms_up_holds_and_decays() -> None:
    linear = Optim(warmup_steps=4, decay="linear", decay_from=0.5)
    assert [lr_factor(step, linear, 20) for step in (0, 1, 3, 4, 10, 15, 20)] == [0.25, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    cosine = Optim(warmup_steps=0, decay="cosine", decay_from=0.0)
    assert [lr_factor(step, cosine, 20) for step in (0, 10, 20)] == pytest.approx([1.0, 0.5, 0.0])
    assert lr_factor(999, Optim(warmup_steps=4), 1000) == 1.0


def test_the_module_has_its_device_before_a_trainer_moves_it(tmp_path: Path) -> None:
    base = BaseModel.open(str(write_tiny_base(tmp_path)))
    module = ICLoRA(composed("conf=deblur", f"model.checkpoint={tmp_path}"), base, "meta")
    assert module.device == module.adapter[0].device == torch.device("meta")
