"""Work before and between steps: the ranks decide alike, share it, and get the results of a single process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from iclora_train.config import Config, ConfigError
from iclora_train.core.process_group import gather
from iclora_train.core.ranks import global_rank
from iclora_train.data.batch import Batch
from iclora_train.data.shards import ShardSet
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.training import dry_run as dry_run_module
from iclora_train.training import memory_measure, memory_search
from iclora_train.training.dry_run import dry_run
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.memory_plan import GIB, MemoryPlan
from iclora_train.training.validation import ValidationBatches, validation_losses
from iclora_train.training.validation_clips import ValidationClips, row_of_clips
from tests.rank_processes import on_ranks
from tests.tiny import SETTINGS, composed, write_tiny_base, write_tiny_latents


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on a tiny base with one clip per batch and five validation windows."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(folder / "base")
    overrides = ["conf=deblur", f"model.checkpoint={base}", f"data.root={folder}/shards", *SETTINGS]
    overrides += ["model.lora.rank=4", "optim=adamw", "trainer.accelerator=cpu", "trainer.max_steps=5"]
    overrides += ["data.batch_size=1", "validation.windows=5", "validation.sigmas=[0.3,0.8]", "sample.steps=2"]
    config = composed(*overrides)
    write_tiny_latents(folder / "shards" / "latents", base, config)
    return config


def parts_of(config: Config) -> tuple[BaseModel, ShardSet, ICLoRA]:
    base = BaseModel.open(config.model.checkpoint)
    module = ICLoRA(config, base)
    with torch.no_grad():
        for number, parameter in enumerate(module.adapter):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return base, ShardSet.open(Path(config.data.root, "latents")), module


def validate(config: Config, samples: Path) -> tuple[dict[str, float], dict[str, float], int]:
    """The row of validation losses, the metrics of the validation clips, and how many clips this rank sampled."""
    base, shards, module = parts_of(config)
    batches = ValidationBatches.open(shards, config)
    row = validation_losses(module.transformer, batches, config, base.geometry)
    clips = ValidationClips(config, base, batches, samples)
    share = clips.clips_of_rank(module, samples / "step-00000005")
    assert (clips.vae is None) == (not share)  # a rank without clips needs no VAE
    assert module.transformer.training
    return row, row_of_clips(gather(share)), len(share)


@pytest.mark.parametrize(("world_size", "clips"), [(2, [2, 2]), (5, [1, 1, 1, 1, 0])])
def test_validation_has_the_same_row_and_files_on_any_number_of_ranks(
    world_size: int, clips: list[int], tiny: Config, tmp_path: Path
) -> None:
    ((row, metrics, count),) = on_ranks(1, validate, tiny, tmp_path / "single")
    assert count == 4
    results = on_ranks(world_size, validate, tiny, tmp_path / "spread")
    assert [share for _, _, share in results] == clips
    assert all((losses, psnr) == (row, metrics) for losses, psnr, _ in results)  # to the last bit
    assert metrics.keys() == {"sampled_psnr", "sampled_psnr_other"}
    single, spread = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("single", "spread")
    )
    assert len(single) == 4
    assert spread == single


def dry_runs(config: Config, folder: Path, count: int) -> list[str]:
    base, shards, module = parts_of(config)
    clips = ValidationClips(config, base, ValidationBatches.open(shards, config), folder / "samples")
    before = [parameter.detach().clone() for parameter in module.adapter]
    messages = [str(dry_run(config, module, shards, clips, folder)) for _ in range(count)]
    assert all(torch.equal(a, b) for a, b in zip(before, module.adapter, strict=True))
    return messages


def test_ranks_do_not_collide_in_the_dry_run(tiny: Config, tmp_path: Path) -> None:
    first, second = on_ranks(2, dry_runs, tiny, tmp_path, 5)
    assert first == second  # seconds and GiB of the rank that needs most
    assert all("GiB (largest of 2 ranks), validation clips" in message for message in first)
    assert all("adapter 0 MB" in message for message in first)
    assert not (tmp_path / "dry-run.safetensors").exists()
    assert len(list((tmp_path / "samples").glob("dry-run-*.mp4"))) == 4


def dry_run_out_of_memory(config: Config, folder: Path) -> str:
    """The error of a dry run in which the steps of rank 1 run out of memory."""
    gpu = SimpleNamespace(total_memory=80 * GIB)
    error = torch.OutOfMemoryError() if global_rank() == 1 else None
    with (
        patch.object(dry_run_module, "optimizer_step", side_effect=error),
        patch.object(torch.cuda, "get_device_properties", return_value=gpu),
        pytest.raises(ConfigError) as raised,
    ):
        dry_runs(config, folder, 1)
    return str(raised.value)


def test_a_rank_out_of_memory_ends_the_dry_run_of_all_ranks_with_the_remedy(tiny: Config, tmp_path: Path) -> None:
    first, second = on_ranks(2, dry_run_out_of_memory, tiny, tmp_path)
    assert first == second
    assert "does not fit into 80.0 GiB on rank 1 of 2; these settings help: " in first


def searched_plan(config: Config, blocks: int) -> tuple[MemoryPlan, MemoryPlan, int]:
    """The plan of a search with simulated GPUs: rank 1 has less memory, and a slower bus. Also the settings in which
    the module is left, and the number of steps that this rank tried."""
    _, _, module = parts_of(config)
    runner, net = runner_of(module.transformer), module.transformer
    net.transformer_blocks = nn.ModuleList([*net.transformer_blocks] * (blocks // len(net.transformer_blocks)))
    steps = 0

    def simulated_step(module: ICLoRA, batch: Batch, subset: nn.ModuleList) -> tuple[int, float, float]:
        nonlocal steps
        steps += 1
        net.transformer_blocks = subset
        offload = runner.activation_offload.share if runner.activation_offload else 0.0
        budget = runner.activation_budget or 0.0
        used = 5 + len(subset) * (1 + 10 * budget) * (1 - offload)
        if used > (80, 41)[global_rank()]:
            raise torch.OutOfMemoryError
        return int(used * GIB), 0.001 * len(subset), (0.003 - 0.001 * budget) * len(subset)

    batch = Batch(torch.zeros(1, 8, 2, 4, 4), [], torch.zeros(1, 5, 8), fps=torch.tensor([25.0]), keys=["a"])
    with (
        patch.object(memory_measure, "_step", simulated_step),
        patch.object(memory_measure, "matmul_peak", return_value=1e12),
        patch.object(memory_search, "limit_gpu_memory", lambda memory, device: (80.0, 60.0)[global_rank()]),
        patch.object(memory_search, "measure_bandwidth", lambda device: (3000.0, 20.0)[global_rank()] * GIB),
    ):
        plan = memory_search.search_memory_plan(module, batch, "auto", print)
    share = runner.activation_offload.share if runner.activation_offload else 0.0
    assert runner.activation_budget is not None
    return plan, MemoryPlan(runner.activation_budget, share, plan.gib), steps


def test_all_ranks_take_the_same_plan_though_one_of_them_runs_out_of_memory(tiny: Config) -> None:
    config = replace(tiny, model=replace(tiny.model, compile=True))
    (plan, left, steps), second = on_ranks(2, searched_plan, config, 12)
    assert second == (plan, left, steps)  # the same trials, in lockstep
    assert plan == left
    assert 5 + 12 * (1 + 10 * plan.activation_budget) * (1 - plan.activation_offload) <= 41
    assert plan.activation_budget >= 0.1


def planned_on_gpu(config: Config, folder: Path) -> tuple[MemoryPlan | None, MemoryPlan | None, int, list[str]]:
    """The plan that is searched, the plan that is read afterwards, the ranks of the dry run, and the messages."""
    base, shards = BaseModel.open(config.model.checkpoint), ShardSet.open(Path(config.data.root, "latents"))
    module, messages = ICLoRA(config, base, "cuda"), list[str]()
    searched = memory_search.plan_memory(config, module, shards, folder, messages.append)
    trials = len(messages)
    ranks = dry_run(config, module, shards, None, folder).ranks
    again = memory_search.plan_memory(config, module, shards, folder, messages.append)
    return searched, again, ranks, messages[trials:]


@pytest.mark.gpu
def test_on_a_gpu_two_ranks_search_one_plan_and_read_it_again(tiny: Config, tmp_path: Path) -> None:
    """Both ranks use the same GPU. gloo connects them: NCCL needs a GPU for each rank."""
    model = replace(tiny.model, compile=True, precision="bf16")
    config = replace(tiny, model=model, trainer={**tiny.trainer, "accelerator": "gpu", "memory": 4})
    first, second = on_ranks(2, planned_on_gpu, config, tmp_path)
    assert first == second
    searched, again, ranks, messages = first
    assert searched == again is not None
    assert ranks == 2
    assert messages == []  # the plan was read, not searched
    assert json.loads((tmp_path / "memory.json").read_text())["place"]["ranks_per_node"] == "2"
