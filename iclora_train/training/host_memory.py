"""Memory of the host that this process may still take: what the machine has free, and what its control groups leave.

In containers and under cluster schedulers a process that takes more than its group may is killed, however much the
machine has (cgroups: docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1/memory.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_NEW = "memory.max", "memory.current", "inactive_file"  # limit, use, and what of it is given back when it is needed
_OLD = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def free_host_memory(root: Path = ROOT) -> float:
    """Bytes of memory that the host can still give this process; 0 where that cannot be known."""
    machine = [1024.0 * int(row[1]) for row in _rows(root / "proc/meminfo") if row[0] == "MemAvailable:"]
    return max(0.0, min([*machine, *_left(root)])) if machine else 0.0


def _left(root: Path) -> Iterator[float]:
    """Bytes that each group of this process, and those around it, may still take."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, names = root / "sys/fs/cgroup", _NEW
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", _OLD
        else:
            continue
        group = base / path.lstrip("/")
        for folder in [group, *(parent for parent in group.parents if parent == base or base in parent.parents)]:
            limit, used, idle = names
            if (most := _text(folder / limit).strip()).isdigit():
                idling = sum(int(row[1]) for row in _rows(folder / "memory.stat") if row[0] == idle)
                yield int(most) - int(_text(folder / used).strip() or 0) + idling


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
