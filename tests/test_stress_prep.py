"""scripts.stress_prep: a preparation that is killed again and again ends with the files of an undisturbed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.stress_prep import differences


def test_differences_are_files_with_other_bytes_or_in_one_folder_only(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "latents").mkdir(parents=True)
        (folder / "latents" / "same.tar").write_bytes(b"same")
    (one / "changed").write_bytes(b"ab")
    (other / "changed").write_bytes(b"ac")
    (one / "missing").write_bytes(b"")
    (other / "latents" / "new.tar").write_bytes(b"")
    assert differences(one, other) == ["changed", "latents/new.tar", "missing"]
    assert differences(one, one) == []


@pytest.mark.slow
def test_a_killed_preparation_equals_an_undisturbed_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.stress_prep", str(tmp_path), "--clips", "200", "--kill-every", "12"]
    run = subprocess.run([*command, "data.workers=1"], capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "files are equal" in run.stdout
    assert "killed 0 times" not in run.stdout
