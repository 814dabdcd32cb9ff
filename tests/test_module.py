"""The module in a Trainer: nothing waits for the GPU between two looks, and nothing bad is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from iclora_train.config import Config
from iclora_train.core.types import LatentPair
from iclora_train.data.batch import collate
from iclora_train.data.datamodule import LatentDataModule
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.training.callbacks import MetricsRecorder
from iclora_train.training.lightning_module import ICLoRA, optimizer_settings
from iclora_train.training.step_metrics import DivergedError
from tests.processes import a_group_of_one
from tests.tiny import composed, write_tiny_base

STEPS = 8
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-3}


class Clips(LightningDataModule):
    """Clips that go to the device as those of shards do."""

    transfer_batch_to_device = LatentDataModule.transfer_batch_to_device

    def __init__(self, clips: list[LatentPair]) -> None:
        super().__init__()
        self.clips = clips

    def train_dataloader(self) -> DataLoader[LatentPair]:
        return DataLoader(self.clips, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]


def fit(config: Config, base: BaseModel, device: str, callbacks: list[Callback]) -> Trainer:
    """Train on clips of noise."""
    module = ICLoRA(config, base, device)
    generator = torch.Generator().manual_seed(0)

    def clip(key: str) -> LatentPair:
        target, reference = torch.randn(2, base.geometry.channels, 2, 4, 4, generator=generator)
        text = torch.randn(6, module.transformer.config.text_width, generator=generator)
        return LatentPair(key, target, (reference,), text, 25.0)

    data = Clips([clip(f"clip{i}") for i in range(4 * STEPS)])
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        precision="bf16-mixed" if device == "cuda" else "32-true",
        devices=1,
        max_steps=STEPS,
        accumulate_grad_batches=2,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer


class Unwaiting(Callback):
    """Between two steps whatever makes the host wait for the GPU is an error; `mode` says so to PyTorch."""

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        self.batches = 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: object) -> None:
        if trainer.global_step == 3:
            self.mode("error")
        self.batches += 3 <= trainer.global_step < STEPS - 1
        if trainer.global_step == STEPS - 1:
            self.mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_between_two_looks_a_training_step_never_waits_for_the_gpu(optim: str, tmp_path: Path) -> None:
    write_tiny_base(tmp_path)
    tiny = f"model.checkpoint={tmp_path}"
    config = composed("conf=deblur", tiny, f"optim={optim}", "optim.ema=0.9", "trainer.accelerator=gpu")
    unwaiting = Unwaiting(torch.cuda.set_sync_debug_mode)
    try:
        fit(config, open_base(config.model), "cuda", [MetricsRecorder([], 0, None, log_every=100), unwaiting])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert unwaiting.batches == 2 * (STEPS - 4)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_after_a_step_that_was_not_finite_is_refused_whoever_asks(tmp_path: Path) -> None:
    write_tiny_base(tmp_path)
    config = composed("conf=deblur", f"model.checkpoint={tmp_path}", "optim=adamw", "optim.optimizer.lr=1e30")
    path = tmp_path / "made.ckpt"
    trainer = fit(config, BaseModel.open(str(tmp_path)), "cpu", [Unwaiting(lambda _: None)])  # nobody takes rows
    with pytest.raises(DivergedError, match=r"at step 2 \(clip"):
        trainer.save_checkpoint(path)
    assert not path.exists()


@pytest.mark.parametrize("said", [{"fused": False}, {"foreach": True}, {"capturable": True}])
def test_adamw_is_fused_on_a_gpu_unless_the_settings_say_how(said: dict[str, bool]) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert optimizer_settings(ADAMW, cuda) == {**ADAMW, "fused": True}
    assert optimizer_settings(ADAMW, cpu) == ADAMW
    assert optimizer_settings({**ADAMW, **said}, cuda) == {**ADAMW, **said}
    muon = {"_target_": "torch.optim.Muon"}
    assert optimizer_settings(muon, cuda) == muon


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # torch.distributed's own
def test_nothing_of_the_base_is_sent_to_other_processes(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base")
    config = composed("conf=deblur", f"model.checkpoint={tmp_path}/base", "model.compile=true", "model.precision=bf16")
    module = ICLoRA(config, BaseModel.open(str(tmp_path / "base")))
    assert any(".fused." in name for name, _ in module.named_buffers())  # weights that are one product
    with a_group_of_one(tmp_path):
        parallel = torch.nn.parallel.DistributedDataParallel(module)
        parallel._assign_modules_buffers()  # as before every forward pass
        assert not parallel.modules_buffers
        assert {id(part) for part in parallel._module_parameters} == {id(part) for part in module.adapter}
