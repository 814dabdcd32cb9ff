"""Settings files choose values and run no code; errors in them are named with file and line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from iclora_train.config import ConfigError
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.config.trust import refuse_code
from iclora_train.core.atomic_files import DiskFullError
from iclora_train.training.loggers import CsvLogger
from iclora_train.training.optimizer import create_optimizer
from tests.command import run

GROUPS = {1.0: [torch.nn.Parameter(torch.zeros(2, 2))]}  # by the factor on their learning rate


def task_file(folder: Path, text: str, name: str = "mine") -> Path:
    (folder / "conf").mkdir(exist_ok=True)
    path = folder / f"conf/{name}.yaml"
    path.write_text(f"# @package _global_\ndefaults: [deblur]\n{text}")
    return path


def check(folder: Path, *arguments: str) -> None:
    register_schema()
    refuse_code("train", conf_dir(), ["--config-dir", str(folder), *arguments])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hydra: {callbacks: {x: {_target_: os.system, command: 'touch ran'}}}\n", "hydra.callbacks"),
        ("hydra: {job: {env_set: {LD_PRELOAD: x.so}}}\n", "hydra.job.env_set"),
        ("hydra: {launcher: {_target_: subprocess.run}}\n", "hydra.launcher._target_"),
        ("hydra: {sweeper: {_target_: subprocess.run}}\n", "hydra.sweeper._target_"),
        ("hydra: {job_logging: {handlers: {x: {(): os.system, command: ls}}}}\n", "hydra.job_logging"),
        ("hydra: {hydra_logging: {handlers: {x: {class: mine.Handler}}}}\n", "hydra.hydra_logging"),
    ],
)
def test_a_task_file_cannot_make_hydra_call_something(text: str, key: str, tmp_path: Path) -> None:
    task_file(tmp_path, text)
    task_file(tmp_path, "seed: 1\n", "plain")
    check(tmp_path, "conf=plain")
    for sweep in (["conf=mine"], ["-m", "conf=plain,mine"], ["-m", "seed=1,2", "conf=choice(plain,mine)"]):
        with pytest.raises(ConfigError, match=f"{key} .* a settings file"):
            check(tmp_path, *sweep)


def test_settings_of_hydra_on_the_command_line_are_the_users_own(tmp_path: Path) -> None:
    task_file(tmp_path, "seed: 1\n")
    check(tmp_path, "conf=mine", "+hydra.job.env_set.NAME=value")


def test_nothing_is_run_before_the_refusal(tmp_path: Path) -> None:
    task_file(tmp_path, "hydra: {callbacks: {x: {_target_: pathlib.Path.touch, self: ran}}}\n")
    result = run(tmp_path, "iclora_train", "--config-dir", str(tmp_path), "conf=mine")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "hydra.callbacks" in result.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    [
        *("torch.load", "pathlib.Path.write_text", "numpy.savetxt", "urllib.request.urlretrieve", "os.system"),
        *("torch.optim.Optimizer", "torch.optim.lr_scheduler.LambdaLR", "torch.optim.adamw.torch", "torch.optim.AdamV"),
        *("torch.optim.adamw.adamw", "torch.optimx.AdamW", "AdamW", ""),
    ],
)
def test_only_optimizers_are_created(target: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\.optimizer\._target_=.* is not an optimizer"):
        create_optimizer({"_target_": target, "lr": 1e-3}, GROUPS)


def test_a_nested_target_is_not_called(tmp_path: Path) -> None:
    nested = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "ran")}
    with pytest.raises(ConfigError, match=r"optim\.optimizer: torch.optim.AdamW cannot be created"):
        create_optimizer({"_target_": "torch.optim.AdamW", "lr": nested}, GROUPS)
    assert not (tmp_path / "ran").exists()


def test_optimizers_of_torch_are_created() -> None:
    assert isinstance(create_optimizer({"_target_": "torch.optim.AdamW", "lr": 1e-3}, GROUPS), torch.optim.AdamW)
    assert isinstance(create_optimizer({"_target_": "torch.optim.adamw.AdamW"}, GROUPS), torch.optim.AdamW)
    with pytest.raises(ConfigError, match="prodigyopt"):  # not installed
        create_optimizer({"_target_": "prodigyopt.Prodigy"}, GROUPS)


def test_a_syntax_error_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = task_file(tmp_path, "seed: [1\n")
    result = run(tmp_path, "iclora_train", "--config-dir", str(tmp_path), "conf=mine")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"error: {path}, line 4, column 1: this is not YAML" in result.err


def test_a_settings_file_in_another_encoding_is_explained(tmp_path: Path) -> None:
    task_file(tmp_path, "").write_bytes("task: {trigger: été}\n".encode("latin-1"))
    result = run(tmp_path, "iclora_train", "--config-dir", str(tmp_path), "conf=mine")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "is not UTF-8 text" in result.err


def test_a_full_disk_is_named_by_the_csv_logger(tmp_path: Path) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    logger = CsvLogger(tmp_path / "metrics.csv", ["step", "loss"])
    logger.file = Full()  # type: ignore[assignment]
    with pytest.raises(DiskFullError, match=r"metrics.csv could not be written"):
        logger.write([{"step": 1.0, "loss": 0.5}])
