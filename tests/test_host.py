"""Free host memory is limited by the machine and by the control groups (cgroups) of the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from iclora_train.training.host_memory import free_host_memory

GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    """A file system of a machine with 100 GiB of free memory."""
    for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {100 * 2**20} kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, limit: str, used: int, reclaimable: int, v1: bool = False) -> dict[str, str]:
    names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file") if v1 else ("max", "current", "inactive_file")
    stat = f"anon 5\n{names[2]} {reclaimable * GIB}\n"
    usage = {f"{folder}/memory.{names[1]}": f"{used * GIB}\n", f"{folder}/memory.stat": stat}
    return {f"{folder}/memory.{names[0]}": f"{limit}\n", **usage}


def test_without_group_limits_the_free_memory_of_the_machine_counts(tmp_path: Path) -> None:
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": "0::/\n"})) == 100 * GIB
    assert free_host_memory(tmp_path / "nothing") == 0


@pytest.mark.parametrize(
    ("group_limit", "parent_limit", "free"),
    [("max", "max", 100), (str(40 * GIB), "max", 40 - 12 + 2), ("max", str(30 * GIB), 30 - 20 + 5)],
)
def test_a_group_and_its_parents_limit_a_job(group_limit: str, parent_limit: str, free: int, tmp_path: Path) -> None:
    files = group("sys/fs/cgroup/slurm/job_7", group_limit, 12, 2) | group("sys/fs/cgroup/slurm", parent_limit, 20, 5)
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": "0::/slurm/job_7\n", **files})) == free * GIB


def test_cgroup_v1(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup/memory", str(16 * GIB), 6, 1, v1=True)
    groups = "5:cpu,cpuacct:/\n4:memory:/\n1:name=systemd:/\n"
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": groups, **files})) == 11 * GIB


def test_a_full_group_has_no_free_memory(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup", str(4 * GIB), 5, 0)
    assert free_host_memory(machine(tmp_path, {"proc/self/cgroup": "0::/\n", **files})) == 0


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_this_machine_has_free_memory() -> None:
    assert free_host_memory() > 0
