"""How much host memory may be pinned is what the machine and the process's control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from iclora_train.training.host_memory import free_host_memory

GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    """A file system of a machine that has 100 GiB free."""
    for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {100 * 2**20} kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, limit: str, used: int, idle: int, old: bool = False) -> dict[str, str]:
    names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file") if old else ("max", "current", "inactive_file")
    stat = f"anon 5\n{names[2]} {idle * GIB}\n"
    used_file = {f"{folder}/memory.{names[1]}": f"{used * GIB}\n", f"{folder}/memory.stat": stat}
    return {f"{folder}/memory.{names[0]}": f"{limit}\n", **used_file}


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": "0::/\n"})) == 100 * GIB
    assert free_host_memory(tmp_path / "nothing") == 0


@pytest.mark.parametrize(
    ("own", "around", "free"),
    [("max", "max", 100), (str(40 * GIB), "max", 40 - 12 + 2), ("max", str(30 * GIB), 30 - 20 + 5)],
)
def test_a_job_may_take_what_its_group_and_those_around_it_leave(
    own: str, around: str, free: int, tmp_path: Path
) -> None:
    files = group("sys/fs/cgroup/slurm/job_7", own, 12, 2) | group("sys/fs/cgroup/slurm", around, 20, 5)
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": "0::/slurm/job_7\n", **files})) == free * GIB


def test_a_container_of_the_old_kind(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup/memory", str(16 * GIB), 6, 1, old=True)
    listed = "5:cpu,cpuacct:/\n4:memory:/\n1:name=systemd:/\n"
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": listed, **files})) == 11 * GIB


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup", str(4 * GIB), 5, 0)
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": "0::/\n", **files})) == 0


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says so there")
def test_here() -> None:
    assert free_host_memory() > 0
