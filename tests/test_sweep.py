"""A sweep is refused before its first job starts if two of its jobs would write to one run."""

from __future__ import annotations

import re

import pytest
from hydra.core.global_hydra import GlobalHydra

from iclora_train.config import Config, ConfigError
from iclora_train.config.command_line import as_typed
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.config.sweep import check_sweep


def check(*arguments: str, command: str = "train") -> list[str]:
    register_schema()
    GlobalHydra.instance().clear()
    return check_sweep(command, conf_dir(), as_typed(list(arguments), Config, ["conf", "model", "optim", "eval"]))


def test_the_tasks_of_a_sweep_have_names_of_their_own() -> None:
    check("-m", "conf=deblur,canny")


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        (("seed=0,1",), "run=${task.name}-${model.name}-${seed}"),
        (("optim=adamw,muon",), "run=${task.name}-${model.name}-${hydra:runtime.choices.optim}"),
        (("seed=0,1", "run=a,b"), "run=${task.name}-${model.name}-${seed}"),  # four jobs with two names
    ],
)
def test_a_shared_name_is_refused_and_the_proposed_one_is_accepted(swept: tuple[str, ...], name: str) -> None:
    with pytest.raises(ConfigError, match=f"two jobs of this sweep.*{re.escape(name)}"):
        check("-m", "conf=deblur", *swept)
    check("-m", "conf=deblur", swept[0], name)


def test_without_a_sweep_nothing_is_checked() -> None:
    check("conf=deblur", "seed=0")


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'iclora_train[slurm]'")):
        check("-m", "conf=deblur,canny", "hydra/launcher=submitit_slurm")


@pytest.mark.parametrize(
    ("swept", "label"),
    [
        (("sample.steps=4,8",), "steps=${sample.steps}"),
        (("eval=default,quick",), "${hydra:runtime.choices.eval}"),
        (("eval.seeds=[0],[0,1]", "model.precision=fp32,bf16"), "seeds=${eval.seeds}-precision=${model.precision}"),
    ],
)
def test_each_evaluation_of_a_sweep_gets_a_folder_of_its_own(swept: tuple[str, ...], label: str) -> None:
    added = check("-m", "conf=deblur", *swept, command="eval")
    assert added == [f"eval.label='{label}'"]
    assert check("-m", "conf=deblur", *swept, *added, command="eval") == []
    with pytest.raises(ConfigError, match=re.escape(f"eval.label=mine ({swept[0].split(',')[0]}")):
        check("-m", "conf=deblur", *swept[:1], "eval.label=mine", command="eval")


@pytest.mark.parametrize("swept", ["conf=deblur,canny", "adapter=a,b", "conf=deblur"])
def test_evaluations_with_folders_of_their_own_keep_their_names(swept: str) -> None:
    assert check("-m", *({"conf=deblur", swept} if "adapter" in swept else {swept}), command="eval") == []
