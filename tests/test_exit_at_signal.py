"""A signal ends a command also where no exception can: during imports, and while a rank waits for the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_during_an_import_that_drops_exceptions_ends_the_command(number: signal.Signals, word: str) -> None:
    """torch imports NumPy so: after a KeyboardInterrupt, NumPy is half imported."""
    program = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run as a background job, which ignores SIGINT
from iclora_train.config.endings import exit_at_signal, one_line_ending
with one_line_ending("another line"), exit_at_signal("the same command continues"):
    print("importing", flush=True)
    for _ in range(600):
        try:
            time.sleep(0.1)
        except BaseException:
            pass
"""
    code, line = ending_after_signal(program, number)
    assert (code, line) == (128 + number, f"{word}: the same command continues\n")


def test_a_signal_while_a_rank_waits_for_the_others_ends_it() -> None:
    with closing(socket.socket()) as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    program = f"""
import os, torch
from iclora_train.config.endings import one_line_ending
from iclora_train.core.process_group import process_group
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
with one_line_ending("another line"):
    print("connecting", flush=True)
    with process_group(torch.device("cpu")):
        pass
"""
    code, line = ending_after_signal(program, signal.SIGTERM)
    assert code == 143
    assert line == "terminated: the ranks were not yet connected; the same command starts again\n"


def ending_after_signal(program: str, number: signal.Signals) -> tuple[int, str]:
    """The exit code and the line of a program that gets a signal a second after its first line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)
        process.send_signal(number)
        _, line = process.communicate(timeout=30)
    return process.returncode, line
