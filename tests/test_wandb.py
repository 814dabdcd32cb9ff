"""W&B selects its mode from settings, environment and login, and never ends a run."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from iclora_train.core import wandb_run
from iclora_train.training.loggers import WandbLogger

KEY = "0123456789" * 4
LOGIN = f"machine api.wandb.ai\n  login user\n  password {KEY}\n"
NOWHERE = "http://127.0.0.1:9"  # refuses connections


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder without a login, and W&B as at the start of a process."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in wandb_run.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield folder
    wandb.teardown()


@pytest.fixture
def started(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each wandb.init, which is not called."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return arguments

    monkeypatch.setattr(wandb, "init", init)
    return calls


def start(folder: Path, mode: str = "auto", **arguments: Any) -> Any:
    return wandb_run.start_run(folder, "name", {}, {"project": "p", "mode": mode, **arguments})


@pytest.mark.parametrize(
    ("variables", "setting", "mode"),
    [
        ({}, "auto", "offline"),
        ({"WANDB_API_KEY": KEY}, "auto", "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "auto", "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "auto", "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "run"}, "auto", "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "shared"}, "auto", "shared"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "auto", None),
        ({"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, "auto", None),
        ({"WANDB_API_KEY": KEY, "WANDB_DISABLED": "false"}, "auto", "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "online", "online"),  # the command line comes first
        ({"WANDB_API_KEY": KEY}, "offline", "offline"),
        ({"WANDB_API_KEY": KEY}, "disabled", None),
        ({"WANDB_MODE": "online"}, "auto", "offline"),
        ({}, "online", "offline"),
    ],
)
def test_the_mode(
    variables: dict[str, str],
    setting: str,
    mode: str | None,
    started: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start(tmp_path, setting)
    assert [call["mode"] for call in started] == ([] if mode is None else [mode])
    asked_without_key = "online" in (setting, variables.get("WANDB_MODE")) and "WANDB_API_KEY" not in variables
    assert ("no key is stored" in capfd.readouterr().err) == asked_without_key


@pytest.mark.parametrize(
    ("netrc", "mode"),
    [
        (LOGIN, "online"),
        (LOGIN.replace("wandb.ai", "example.org"), "offline"),
        ("machine api.wandb.ai login", "offline"),
        ("\0\xff", "offline"),
    ],
)
def test_a_key_of_wandb_login_is_a_login(
    netrc: str, mode: str, started: list[dict[str, Any]], home: Path, tmp_path: Path
) -> None:
    (home / ".netrc").write_bytes(netrc.encode("latin1"))
    (home / ".netrc").chmod(0o600)
    start(tmp_path)
    assert [call["mode"] for call in started] == [mode]


def test_arguments_of_the_settings_and_the_environment_come_first(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path, name="mine", id="1", settings={"finish_timeout": 5})
    monkeypatch.setenv("WANDB_NAME", "from the environment")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "logs"))
    start(tmp_path)
    first, second = started
    assert (first["name"], first["id"], first["dir"]) == ("mine", "1", tmp_path)
    assert (first["settings"].finish_timeout, first["settings"].init_timeout) == (5, 30)
    assert ("name" in second, second["dir"]) == (False, str(tmp_path / "logs"))
    assert (second["settings"].finish_timeout, second["resume"]) == (600, "allow")


def test_the_id_is_random_and_kept_in_the_folder(started: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two machines with the same path would share a hash of it."""
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, first, second):
        start(folder)
    moved = first.rename(tmp_path / "moved")
    start(moved)
    start(first)  # the path of another run now
    ids = [call["id"] for call in started]
    assert ids[0] == ids[1] == ids[3]
    assert len({ids[0], ids[2], ids[4]}) == 3


def test_a_folder_of_an_earlier_version_keeps_its_run(started: list[dict[str, Any]], tmp_path: Path) -> None:
    former = hashlib.sha256(str(tmp_path.resolve()).encode()).hexdigest()[:16]
    (tmp_path / "wandb" / f"offline-run-20260101_000000-{former}").mkdir(parents=True)
    start(tmp_path)
    assert started[0]["id"] == former


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": NOWHERE, "WANDB_INIT_TIMEOUT": "1"}, "connection refused"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid"),
    ],
)
def test_a_run_that_cannot_start_online_writes_offline_files(
    variables: dict[str, str],
    reason: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    logger = WandbLogger(tmp_path, "name", {}, {"project": "p"})
    logger.start(0)
    logger.write([{"step": 1, "loss": 0.5}])
    logger.close()
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert reason in err
    assert f"offline files go to {tmp_path}/wandb" in err


def test_training_goes_on_when_the_service_process_dies(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = WandbLogger(tmp_path, "name", {}, {"project": "p"})
    logger.start(0)
    logger.write([{"step": 1, "loss": 0.5}])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    service = next(pid for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(int(service), 9)
    for step in range(2, 200):  # the write after the connection has closed fails
        logger.write([{"step": step, "loss": 0.5}])
    logger.close()
    err = capfd.readouterr().err
    assert (err.count("\n"), err.startswith("W&B: ")) == (1, True)
    for process in [item for item in gc.get_objects() if type(item) is subprocess.Popen]:
        if process.pid == int(service):  # W&B does not wait for it, of which Python would warn in a later test
            process.wait()


@pytest.mark.parametrize("variable", ["WANDB_MODE", None])
def test_training_goes_on_when_wandb_cannot_be_used(
    variable: str | None,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if variable is None:
        monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    else:
        monkeypatch.setenv(variable, "of")
    logger = WandbLogger(tmp_path, "name", {}, {"project": "p"})
    logger.start(0)
    logger.write([{"step": 1, "loss": 0.5}])
    logger.close()
    err = capfd.readouterr().err
    assert (err.count("\n"), err.startswith("W&B: starting failed (")) == (1, True)


PROGRAM = """
import json, sys
events = []
sys.addaudithook(lambda event, args: events.append((event, repr(args))) if event.startswith("socket.") else None)
from pathlib import Path
from iclora_train.training.loggers import WandbLogger
logger = WandbLogger(Path(sys.argv[1]), "name", {}, {"project": "p"})
logger.start(0)
logger.write([{"step": 1, "loss": 0.5}])
logger.close()
print(json.dumps(events))
"""


def test_without_a_key_nothing_leaves_the_machine(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's connections are seen by an audit hook. Those of W&B's service process would go through the proxy."""
    requests: list[bytes] = []
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def accept() -> None:
            while True:
                connection, _ = proxy.accept()
                requests.append(connection.recv(100))
                connection.close()
                if requests[-1] == b"end":
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
        )
        with socket.create_connection(proxy.getsockname()) as connection:
            connection.sendall(b"end")
        thread.join()
    assert requests == [b"end"]
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    names = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
    for event, arguments in json.loads(result.stdout):
        assert event not in names, arguments
        # The connection to the service process is a Unix socket.
        assert event != "socket.connect" or "AF_UNIX" in arguments or "family=1," in arguments, arguments
