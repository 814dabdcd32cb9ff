"""The command line: help, printing a run, sweeps, and one-line errors for everything that is misspelt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iclora_train.config import Model
from iclora_train.config.hydra_app import conf_dir, task_names
from iclora_train.config.settings import RENAMED_KEYS
from tests.command import Result, run

COMMANDS = ("iclora_train", "data_prep", "eval")
ROOT = Path(__file__).parent.parent


def python(*args: str) -> subprocess.CompletedProcess[str]:
    """Run `python -W error ...` in the repository, in a new process."""
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, "-W", "error", *args], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_tasks_and_groups(command: str) -> None:
    result = python("-m", command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"conf: {', '.join(task_names())}" in result.stdout
    for group in (
        "model: ltx2, ltx2_3, ltx2_5, nano",
        "data: buckets, clips, images, samples",
        "optim: adamw, muon, official",
        "logger: csv, default, none, wandb",
    ):
        assert group in result.stdout
    assert "first_frame_p: 0.2" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_composing_imports_nothing_heavy(command: str) -> None:
    program = f"import sys, {command}.__main__; print({{'torch', 'lightning', 'diffusers', 'cv2'}} & set(sys.modules))"
    assert python("-c", program).stdout.strip() == "set()"


def test_cfg_job_prints_the_run_without_starting_it(tmp_path: Path) -> None:
    result = run(tmp_path, "iclora_train", "conf=canny", "data.batch_size=3", "--cfg", "job")
    assert result.code == 0
    assert "name: canny" in result.out
    assert "batch_size: 3" in result.out
    assert {path.name for path in tmp_path.iterdir()} == {"out.txt", "err.txt"}


def refused(folder: Path, command: str, *args: str) -> str:
    """The one-line error of a refused command."""
    result: Result = run(folder, command, *args)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_task_names_the_tasks(command: str, tmp_path: Path) -> None:
    assert ", ".join(task_names()) in refused(tmp_path, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelt_task_is_named_with_the_choices(command: str, tmp_path: Path) -> None:
    assert f"conf=deblurr is not one of {', '.join(task_names())}" in refused(tmp_path, command, "conf=deblurr")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim=adam", "optim=adam is not one of adamw"),
        ("dta.frames=3", "no setting 'dta'; there are adapter, captioner, checks, data, engine,"),
        ("data.frmes=3", "no setting 'data.frmes'; there are batch_size, buckets, captioner,"),
        ("model.lora.rnk=3", "no setting 'model.lora.rnk'; there are alpha, alpha_pattern, lr_pattern, rank,"),
        ("model.kept=0.5", "error: model.kept is now called model.activation_budget"),
        ("model.offload=2", "error: model.offload is now called model.weight_offload"),
        (
            "optim.optimizer.lrr=3",
            "no setting 'optim.optimizer.lrr'; there are _target_, adjust_lr_fn, lr, momentum, weight_decay",
        ),
        ("data.frames=many", "Value 'many' of type 'str' could not be converted to Integer"),
        ("data.batch_size=0", "data.batch_size=0 must be at least 1"),
        ("model.precision=fp4", "model.precision='fp4' is not one of auto, fp32, bf16, fp8"),
        ("flow.distribution=normal", "flow.distribution='normal' is not one of shifted_logit_normal, uniform"),
        ("data.frames=[3", "data.frames=[3 cannot be read: no viable alternative"),
    ],
)
def test_a_misspelt_key_or_value_is_named_with_the_choices(argument: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, "iclora_train", "conf=deblur", argument)


def test_a_misspelt_key_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mine.yaml").write_text("# @package _global_\ntask:\n  name: mine\n  makr: control.canny\n")
    line = refused(tmp_path, "iclora_train", "--config-dir", str(tmp_path), "conf=mine")
    assert (
        "In 'conf/mine': no setting 'task.makr'; there are audio_reference, conditions, family, maker, maker_args,"
        in line
    )


def test_a_missing_folder_of_settings_is_named(tmp_path: Path) -> None:
    assert "nowhere' not found" in refused(tmp_path, "iclora_train", "--config-dir", "nowhere", "conf=deblur")


def test_a_renamed_key_in_a_file_is_named_with_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mine.yaml").write_text("# @package _global_\nmodel:\n  recompute: true\n")
    line = refused(tmp_path, "iclora_train", "--config-dir", str(tmp_path), "conf=mine")
    assert "In 'conf/mine': model.recompute is now called model.activation_checkpointing" in line


def test_every_renamed_key_names_a_setting() -> None:
    for old, new in RENAMED_KEYS.items():
        assert old.startswith("model.")
        assert not hasattr(Model, old.removeprefix("model."))
        assert hasattr(Model, new.removeprefix("model."))


@pytest.mark.parametrize("task", task_names())
def test_every_task_composes(task: str, tmp_path: Path) -> None:
    assert run(tmp_path, "iclora_train", f"conf={task}", "--cfg", "job", "--resolve").code == 0


def test_conf_is_next_to_the_package() -> None:
    assert (conf_dir() / "train.yaml").is_file()
