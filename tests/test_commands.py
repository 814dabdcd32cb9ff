"""Commands run this project's code, whatever the working folder and PYTHONPATH hold, and end with their parent."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from iclora_train import commands
from iclora_train.config import hydra_app
from iclora_train.config.hydra_app import task_names

ROOT = Path(__file__).parent.parent
FOREIGN = "raise SystemExit('a file of the working folder was imported: ' + __file__)\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose file names are those of our packages and of Python's modules. PYTHONPATH names a folder
    with packages of our names, before ours."""
    folder, library = tmp_path / "my project", tmp_path / "library"
    folder.mkdir()
    for name in ("eval", "data_prep", "random", "queue", "logging", "dataclasses", "csv", "torch", "yaml"):
        (folder / f"{name}.py").write_text(FOREIGN)
    for name in ("eval", "data_prep"):
        (library / name).mkdir(parents=True)
        (library / name / "__init__.py").write_text(FOREIGN)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(library), str(ROOT)]))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["eval", "data_prep"])
def test_training_starts_our_command(
    command: str, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hydra_app, "overrides", lambda: ["--help"])
    hydra_app.run_module(command)
    out, err = capfd.readouterr()
    assert f"conf: {', '.join(task_names())}" in out
    assert err == ""


def test_a_command_imports_nothing_of_the_working_folder(project: Path) -> None:
    result = python("-m", "iclora_train", "conf=deblur", "--cfg", "job")
    assert (result.returncode, result.stderr) == (0, "")
    assert "name: deblur" in result.stdout


def test_processes_that_a_command_starts_import_nothing_of_the_working_folder(project: Path) -> None:
    (project.parent / "library/worker.py").write_text("def work(n):\n    import eval, data_prep\n")
    program = """
from iclora_train.commands import protect_imports
if __name__ == "__main__":
    protect_imports()
    import multiprocessing, worker
    for method in ("spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=worker.work, args=(1,))
        process.start()
        process.join()
        print(process.exitcode)
"""
    (project.parent / "library/program.py").write_text(program)
    result = python("-m", "program")
    assert (result.stdout, result.stderr) == ("0\n0\n", "")


def test_the_folder_of_the_packages_stays_on_the_path_where_it_is_the_working_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", ["", "/library"])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    commands.protect_imports()
    assert sys.path == ["", "/library"]
    assert os.environ["PYTHONPATH"] == str(ROOT)


def test_the_working_folder_is_searched_last_where_pythonpath_names_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = str(project.parent / "library")
    monkeypatch.setattr(sys, "path", ["", str(project), library, "/stdlib", str(ROOT)])
    commands.protect_imports()
    assert sys.path == ["/stdlib", str(ROOT), library, str(project)]


def test_a_started_command_ends_when_its_parent_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeper").mkdir()
    sleeper = "import signal\n\ndef main():\n    print('started', flush=True)\n    signal.pause()\n"
    (tmp_path / "sleeper/__main__.py").write_text(sleeper)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    program = "from iclora_train.config import hydra_app as h; h.overrides = lambda: []; h.run_module('sleeper')"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        assert parent.stdout.read() == ""  # the child, which holds the same pipe, has ended


def test_the_exit_code_of_a_started_command_is_passed_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_app, "overrides", lambda: ["conf=no_such_task"])
    with pytest.raises(SystemExit) as ended:
        hydra_app.run_module("eval")
    assert ended.value.code == 2


def test_console_scripts_name_functions_that_start_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    started: list[str] = []
    monkeypatch.setattr(commands, "run_command", started.append)
    for target in scripts.values():
        module, function = target.split(":")
        assert module == "iclora_train.commands"
        getattr(commands, function)()
    for module in started:
        assert callable(importlib.import_module(module).main)
    assert {"iclora_train.__main__", "data_prep.__main__", "eval.__main__"} < set(started)
