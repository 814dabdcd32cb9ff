"""The module in a Trainer: no host sync between two reads of metrics, no checkpoint of a diverged step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from iclora_train.config import Config
from iclora_train.core.ranks import Placement
from iclora_train.core.types import LatentPair
from iclora_train.data.batch import Batch, collate
from iclora_train.data.datamodule import LatentDataModule
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.training.callbacks import MetricsRecorder
from iclora_train.training.dry_run import mean_loss
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.optimizer import optimizer_settings
from iclora_train.training.preemption import Preemption
from iclora_train.training.step_metrics import DivergedError
from iclora_train.training.strategy import PlacedProcess, RankStrategy
from tests.processes import single_process_group
from tests.tiny import composed, write_tiny_base

STEPS = 8
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-3}


class Clips(LightningDataModule):
    """Clips in memory. They move to the device like clips of shards."""

    transfer_batch_to_device = LatentDataModule.transfer_batch_to_device

    def __init__(self, clips: list[LatentPair]) -> None:
        super().__init__()
        self.clips = clips

    def train_dataloader(self) -> DataLoader[LatentPair]:
        return DataLoader(self.clips, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]


def fit(config: Config, base: BaseModel, device: str, callbacks: list[Callback], **arguments: Any) -> Trainer:
    """Train on clips of noise. arguments: further ones of the Trainer."""
    module = ICLoRA(config, base, device)
    generator = torch.Generator().manual_seed(0)

    def clip(key: str) -> LatentPair:
        target, reference = torch.randn(2, base.geometry.channels, 2, 4, 4, generator=generator)
        text = torch.randn(6, module.transformer.config.text_width, generator=generator)
        return LatentPair(key, target, (reference,), text, 25.0)

    data = Clips([clip(f"clip{i}") for i in range(4 * STEPS)])
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        precision="bf16-mixed" if config.model.precision == "bf16" else "32-true",
        devices=1,
        max_steps=STEPS,
        accumulate_grad_batches=2,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(module, data)
    return trainer


class NoHostSync(Callback):
    """Makes every host sync between steps 3 and STEPS - 1 an error. mode: torch.cuda.set_sync_debug_mode."""

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        self.batches = 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: object) -> None:
        if trainer.global_step == 3:
            self.mode("error")
        self.batches += 3 <= trainer.global_step < STEPS - 1
        if trainer.global_step == STEPS - 1:
            self.mode("default")


class AutocastStates(Callback):
    """Notes the state of autocast, for which blocks are compiled, in a step of training and in a step before it."""

    def __init__(self) -> None:
        self.states: list[tuple[object, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            module.transformer.register_forward_pre_hook(lambda *_: self.states.append(autocast_state()))
            mean_loss(module, batch, 0)


def autocast_state() -> tuple[object, ...]:
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return enabled, dtype, torch.is_autocast_cache_enabled()


@pytest.mark.filterwarnings("ignore")
def test_a_step_before_training_compiles_the_blocks_for_training(tmp_path: Path) -> None:
    """A step of the dry run. Otherwise training would compile the blocks again, while CUDA graphs are captured."""
    write_tiny_base(tmp_path / "base")
    config = composed("conf=deblur", f"model.checkpoint={tmp_path}/base", "model.precision=bf16")
    noted = AutocastStates()
    fit(config, open_base(config.model), "cpu", [noted])
    assert noted.states[0] == noted.states[1] == (True, torch.bfloat16, False)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_training_step_never_waits_for_the_gpu_between_two_reads_of_metrics(optim: str, tmp_path: Path) -> None:
    write_tiny_base(tmp_path)
    checkpoint = f"model.checkpoint={tmp_path}"
    config = composed("conf=deblur", checkpoint, f"optim={optim}", "optim.ema=0.9", "trainer.accelerator=gpu")
    no_sync = NoHostSync(torch.cuda.set_sync_debug_mode)
    try:
        preemption = Preemption(Console(quiet=True))
        recorder = MetricsRecorder([], 0, None, preemption, log_every=100)
        fit(config, open_base(config.model), "cuda", [preemption, recorder, no_sync])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert no_sync.batches == 2 * (STEPS - 4)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_after_a_step_that_was_not_finite_is_refused(tmp_path: Path) -> None:
    write_tiny_base(tmp_path)
    config = composed("conf=deblur", f"model.checkpoint={tmp_path}", "optim=adamw", "optim.optimizer.lr=1e30")
    path = tmp_path / "after.ckpt"
    trainer = fit(config, BaseModel.open(str(tmp_path)), "cpu", [NoHostSync(lambda _: None)])  # without MetricsRecorder
    with pytest.raises(DivergedError, match=r"at step 2 \(clip"):
        trainer.save_checkpoint(path)
    assert not path.exists()


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}, {"capturable": True}])
def test_adamw_is_fused_on_a_gpu_unless_the_settings_choose_an_implementation(choice: dict[str, bool]) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert optimizer_settings(ADAMW, cuda) == {**ADAMW, "fused": True}
    assert optimizer_settings(ADAMW, cpu) == ADAMW
    assert optimizer_settings({**ADAMW, **choice}, cuda) == {**ADAMW, **choice}
    muon = {"_target_": "torch.optim.Muon"}
    assert optimizer_settings(muon, cuda) == muon


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # a warning of torch.distributed
def test_ddp_broadcasts_no_tensor_of_the_base(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base")
    config = composed("conf=deblur", f"model.checkpoint={tmp_path}/base", "model.compile=true", "model.precision=bf16")
    module = ICLoRA(config, BaseModel.open(str(tmp_path / "base")))
    assert any(".fused." in name for name, _ in module.named_buffers())  # fused weights
    with single_process_group(tmp_path):
        parallel = torch.nn.parallel.DistributedDataParallel(module)
        parallel._assign_modules_buffers()  # as before every forward pass
        assert not parallel.modules_buffers
        assert {id(p) for p in parallel._module_parameters} == {id(p) for p in module.adapter}


class CountsMessages(Callback):
    """Counts the messages in which DistributedDataParallel sends gradients."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        def counted(_state, bucket):  # type: ignore[no-untyped-def] # register_comm_hook refuses string annotations
            self.count += 1
            result: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            result.set_result(bucket.buffer())
            return result

        parallel = trainer.strategy.model
        assert isinstance(parallel, torch.nn.parallel.DistributedDataParallel)
        parallel.register_comm_hook(None, counted)


@pytest.mark.filterwarnings("ignore")
def test_accumulated_gradients_are_sent_once_per_optimizer_step(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base")
    config = composed("conf=deblur", f"model.checkpoint={tmp_path}/base", "optim=adamw")
    messages = CountsMessages()
    with single_process_group(tmp_path):
        base = BaseModel.open(str(tmp_path / "base"))
        plugins = [PlacedProcess(Placement())]
        trainer = fit(config, base, "cpu", [messages], strategy=RankStrategy(), plugins=plugins)
    assert trainer.global_step == STEPS
    assert messages.count == STEPS  # of two batches each; the tiny adapter fits into one message
