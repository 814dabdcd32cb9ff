"""How many CPUs this process may use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time in a period, or `max`


def available_cpus(variables: Mapping[str, str] | None = None, quota: Path = QUOTA) -> int:
    """CPUs on which this process may run, at most those of its SLURM task and of its container's quota; at least 1.

    variables: the environment, by default this process's.
    """
    limits = [len(os.sched_getaffinity(0))]
    per_task = (os.environ if variables is None else variables).get("SLURM_CPUS_PER_TASK", "")
    if per_task.isdigit() and int(per_task) > 0:
        limits.append(int(per_task))
    try:
        time, period = quota.read_text().split()
        limits.append(int(time) // int(period))
    except (OSError, ValueError):  # no quota
        pass
    return max(min(limits), 1)
