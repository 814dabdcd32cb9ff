"""A sweep is refused before its first job starts if two of its jobs would write to one run."""

from __future__ import annotations

import re

import pytest
from hydra.core.global_hydra import GlobalHydra

from iclora_train.config import Config, ConfigError
from iclora_train.config.command_line import as_typed
from iclora_train.config.hydra_app import conf_dir, register_schema
from iclora_train.config.sweep import check_sweep


def check(*arguments: str) -> None:
    register_schema()
    GlobalHydra.instance().clear()
    check_sweep("train", conf_dir(), as_typed(list(arguments), Config, ["conf", "model", "optim"]))


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
