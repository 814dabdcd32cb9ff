"""Every command ends with one line and an exit code, whatever stopped it."""

from __future__ import annotations

import errno
import getpass
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.call import _call_and_handle_interrupt

from iclora_train import train
from iclora_train.config import ConfigError
from iclora_train.config.endings import SIGNALS, StoppedError, TerminatedError, explain_os_error, one_line_ending
from iclora_train.config.hydra_app import _wait
from iclora_train.core.stop_signals import (
    forget_signal,
    recorded_signal,
    start_recording,
    stop_recording,
    unless_stopped,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *SIGNALS)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and as a background job, which ignores SIGINT
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ending(act: Callable[[], object], **remedies: str) -> int:
    with pytest.raises(SystemExit) as end, one_line_ending("the same command continues", lambda: remedies):
        act()
    assert isinstance(end.value.code, int)
    return end.value.code


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("act", "code", "line"),
    [
        (fail(ConfigError("seed=-1 must be 0 or more")), 2, "error: seed=-1 must be 0 or more\n"),
        (send(signal.SIGINT), 130, "interrupted: the same command continues\n"),
        (send(signal.SIGTERM), 143, "terminated: the same command continues\n"),
        (send(signal.SIGHUP), 129, "terminated: the same command continues\n"),
        (send(signal.SIGUSR1), 138, "terminated: the same command continues\n"),
        (send(signal.SIGUSR2), 140, "terminated: the same command continues\n"),
        (fail(StoppedError(signal.SIGUSR1, "terminated at step 5")), 138, "terminated at step 5\n"),
        (fail(StoppedError(signal.SIGTERM, None)), 143, ""),
        (fail(PermissionError(errno.EACCES, "Permission denied", "/x")), 2, "error: /x: Permission denied\n"),
        (fail(OSError(errno.ENOSPC, "No space left on device")), 2, "error: No space left on device: make room\n"),
    ],
)
def test_a_command_ends_with_one_line(
    act: Callable[[], None], code: int, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ending(act) == code
    assert capfd.readouterr() == ("", line)


def test_a_command_under_nohup_survives_the_end_of_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with one_line_ending(""):
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_signal_that_is_repeated_does_not_interrupt_the_ending(capfd: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        try:
            send(signal.SIGTERM)()
        finally:
            send(signal.SIGTERM)()
            send(signal.SIGUSR1)()

    assert ending(act) == 143
    assert capfd.readouterr() == ("", "terminated: the same command continues\n")


def test_while_training_a_signal_is_recorded_and_ends_only_interruptible_work(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup

    def act() -> None:
        start_recording()
        send(signal.SIGHUP)()
        assert unless_stopped(lambda: (recorded_signal(), "done")) == (None, "done")
        assert unless_stopped(lambda: (send(signal.SIGUSR1)(), "done")) is None
        send(signal.SIGTERM)()
        assert recorded_signal() == signal.SIGUSR1
        assert unless_stopped(lambda: "done") is None
        stop_recording()

    assert ending(act) == 138
    assert capfd.readouterr() == ("", "terminated: the same command continues\n")


def test_while_training_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        start_recording()
        send(signal.SIGINT)()
        send(signal.SIGINT)()  # of the same keypress, through a parent process
        monkeypatch.setattr("iclora_train.core.stop_signals.ONE_KEYPRESS", 0.0)
        send(signal.SIGINT)()
        pytest.fail("training goes on after the second Ctrl-C")

    assert ending(act) == 130


def test_an_error_while_a_signal_is_recorded_is_not_hidden() -> None:
    start_recording()
    send(signal.SIGTERM)()
    assert forget_signal() == signal.SIGTERM
    assert recorded_signal() is None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_reader_that_ends_early_is_no_error() -> None:
    program = """
from iclora_train.config.endings import one_line_ending
with one_line_ending(""):
    while True:
        print("line")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("number", "path", "remedy"),
    [
        (errno.EACCES, "/data/runs/a/run.json", "Set runs_dir=<folder>, where you can write"),
        (errno.EROFS, "/data/shards/.lock", "Set data.root=<folder>, where you can write"),
        (errno.ENOSPC, "/data/shards/latents/train.tar", "Make room, or set data.root=<folder>"),
        (errno.EACCES, os.path.expanduser("~/.triton/cache"), "Set HOME=<folder>, where you can write"),
        (errno.ENOSPC, os.path.join(tempfile.gettempdir(), "tmpx/clip.mp4"), "Make room, or set TMPDIR=<folder>"),
        (errno.ENOSPC, "/dev/shm/torch_1", "Make room, or set data.workers=0"),
        (errno.EMFILE, "/data/clip.mp4", "raise the limit with `ulimit -n 4096`"),
        (errno.ENOENT, "/data/runs/adapter.safetensors", "adapter.safetensors: No such file or directory"),
    ],
)
def test_the_error_names_the_file_and_what_to_set(number: int, path: str, remedy: str) -> None:
    remedies = {"/data/runs": "runs_dir=<folder>", "/data/shards": "data.root=<folder>"}
    line = explain_os_error(OSError(number, os.strerror(number), path), remedies)
    assert line.startswith(path) or number == errno.EMFILE
    assert os.strerror(number) in line
    assert remedy in line


COMMANDS = [  # module, command line, the function that does the work
    ("iclora_train.__main__", ["conf=deblur"], "iclora_train.train.train"),
    ("data_prep.__main__", ["conf=deblur"], "data_prep.sources.prepare_all"),
    ("data_prep.__main__", ["preview", "conf=deblur"], "data_prep.sources.preview_all"),
    ("data_prep.__main__", ["caption", "conf=deblur", "captioner.model=x"], "data_prep.captions.command.caption"),
    ("data_prep.__main__", ["verify", "data.root=x"], "data_prep.verify.verify"),
    ("eval.__main__", ["conf=deblur"], "eval.run.evaluate"),
    ("eval.handout", ["conf=deblur", "videos=x"], "eval.handout.write_handout"),
    ("eval.compare", ["a", "b"], "eval.compare.load"),
    ("iclora_train.generate.__main__", ["adapter=a", "reference=b", "out=c.mp4"], "iclora_train.generate.run.generate"),
    ("iclora_train.adapters.__main__", ["check", "a"], "iclora_train.adapters.commands.check"),
]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted: "),
        (TerminatedError(signal.SIGTERM), 143, "terminated: "),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 2, "error: /x: Read-only file system"),
    ],
)
def test_all_commands_end_in_the_same_way(
    error: BaseException,
    code: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for module, arguments, function in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        monkeypatch.setattr(function, lambda *_: fail(error)())
        with pytest.raises(SystemExit) as end:
            importlib.import_module(module).main()
        out, err = capfd.readouterr()
        assert (end.value.code, out, err.count("\n")) == (code, "", 1), module
        assert err.startswith(line)


def test_lightning_keeps_the_reason_of_the_end() -> None:
    strategy = SimpleNamespace(launcher=None, on_exception=lambda _: None)
    trainer = SimpleNamespace(strategy=strategy, state=SimpleNamespace(), callbacks=[], datamodule=None, loggers=[])
    trainer.lightning_module = trainer.profiler = None
    trainer._teardown = lambda: None
    with pytest.raises(TerminatedError), train.interrupts_unchanged():
        _call_and_handle_interrupt(trainer, fail(TerminatedError(signal.SIGTERM)))


def test_a_started_command_ends_first_and_its_parent_adds_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    program = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated: the child's line"))
os.kill(os.getppid(), signal.SIGTERM)
signal.pause()
"""
    assert ending(lambda: _wait(subprocess.Popen([sys.executable, "-c", program]))) == 143
    assert capfd.readouterr() == ("", "terminated: the child's line\n")


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with one_line_ending(""):
        assert getpass.getuser() == f"uid{os.getuid()}"


def test_an_odd_locale_changes_neither_files_nor_output(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("été".encode())
    program = """
import sys
from iclora_train.config.endings import one_line_ending
with one_line_ending(""):
    print(open(sys.argv[1]).read())
"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt")]
    plain = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (plain.stdout, plain.stderr) == ("été\n".encode(), b"")
    terminal = subprocess.run(
        command, env={**environment, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert terminal.stdout == b"\\xe9t\\xe9\n"
