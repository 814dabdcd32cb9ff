"""Free host memory of this process: the machine's free memory, limited by the process's control groups (cgroups).

In containers and under cluster schedulers a process that exceeds the limit of its control group is killed, however
much memory the machine has (docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_CGROUP_V2 = "memory.max", "memory.current", "inactive_file"  # limit, usage, reclaimable part of the usage
_CGROUP_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def free_host_memory(root: Path = ROOT) -> float:
    """Bytes of host memory that this process can still allocate; 0 if unknown."""
    machine = [1024.0 * int(row[1]) for row in _rows(root / "proc/meminfo") if row[0] == "MemAvailable:"]
    return max(0.0, min([*machine, *_group_limits(root)])) if machine else 0.0


def _group_limits(root: Path) -> Iterator[float]:
    """Bytes that each control group of this process, and each group that contains it, can still allocate."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, files = root / "sys/fs/cgroup", _CGROUP_V2
        elif "memory" in controllers.split(","):
            base, files = root / "sys/fs/cgroup/memory", _CGROUP_V1
        else:
            continue
        group = base / path.lstrip("/")
        for folder in [group, *(parent for parent in group.parents if parent == base or base in parent.parents)]:
            limit_file, usage_file, reclaimable_key = files
            if (limit := _text(folder / limit_file).strip()).isdigit():
                usage = int(_text(folder / usage_file).strip() or 0)
                reclaimable = sum(int(row[1]) for row in _rows(folder / "memory.stat") if row[0] == reclaimable_key)
                yield int(limit) - usage + reclaimable


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
