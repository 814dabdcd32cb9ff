"""A SLURM cluster of several nodes on this machine, as root, without systemd and without changes outside its folder.

Debian and Ubuntu: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
Each node is one slurmd with a port of its own. Two clusters on a machine number their jobs differently, since the ports
of ranks follow from these numbers. Every node offers two cores, which up to four tasks share, and two GPUs
that do not exist, so that scripts can ask for them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HOST = socket.gethostname().split(".")[0]
NODES = (HOST, f"{HOST}-b", f"{HOST}-c", f"{HOST}-d")  # rank 0 is on the first node of a job, whose name must resolve
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY", "NODE_FAIL"}
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
FirstJobId={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=9
"""


def can_run() -> bool:
    """Whether this process may start a cluster: SLURM and munge are installed, and it runs as root."""
    return os.geteuid() == 0 and all(shutil.which(program) is not None for program in PROGRAMS)


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `environment` is for its clients and for the jobs that they submit."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 60) -> str:
        """The output of a command of SLURM's client, which must succeed."""
        result = subprocess.run(
            command, check=False, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}{self.logs()}"
        return result.stdout

    def submit(self, cwd: Path, *arguments: str) -> str:
        """Submit a batch script from the folder `cwd`. Returns the number of the job."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd).strip()

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, such as JobState, Restarts and ExitCode (`2:0`: exit code 2)."""
        match = re.search(rf"\b{name}=(\S+)", self.run("scontrol", "show", "job", job))
        assert match is not None, name
        return match[1]

    def wait(self, job: str, timeout: float = 180) -> tuple[str, int]:
        """Wait until a job is final. Returns its state and exit code. A requeued job starts at once.

        SLURM itself waits two minutes before it starts a requeued job again.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            state = self.field(job, "JobState")
            if state in FINAL and self.run("squeue", "--noheader", "--states=COMPLETING", "--jobs", job) == "":
                return state, int(self.field(job, "ExitCode").split(":")[0])
            self.start_requeued()
            time.sleep(0.3)
        raise AssertionError(f"job {job} has not ended: {self.run('scontrol', 'show', 'job', job)}{self.logs()}")

    def start_requeued(self) -> None:
        """Start the jobs at once that were requeued and wait two minutes."""
        for line in self.run("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def logs(self) -> str:
        """The last lines of the daemons' logs, for the message of a failed test."""
        tails = (f"\n{path.name}:\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))
        return "".join(tails)


@contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Start a cluster of the nodes NODES, and stop it with all its jobs at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, as the name of munge's socket must be
    folder.chmod(0o755)
    pid_files = [folder / "slurmctld.pid", *(folder / f"{node}.pid" for node in NODES), folder / "munge" / "pid"]
    try:
        yield _start(folder)
    finally:
        subprocess.run(
            ["scancel", "--signal=KILL", "--full", "--user=root"],
            check=False,
            env=_environment(folder),
            capture_output=True,
            timeout=60,
        )
        time.sleep(1)
        _stop([int(path.read_text()) for path in pid_files if path.exists()])
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> Cluster:
    (folder / "munge").mkdir(mode=0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o400)
    ports = _free_ports(len(NODES) + 1)
    lines = [CONFIGURATION.format(host=HOST, folder=folder, controller=ports[0])]
    for node, port in zip(NODES, ports[1:], strict=True):
        (folder / "spool" / node).mkdir(parents=True)
        resources = "CPUs=2 RealMemory=1000000 Gres=gpu:2 State=UNKNOWN"
        lines.append(f"NodeName={node} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={port} {resources}\n")
    (folder / "slurm.conf").write_text("".join(lines))
    for number in range(2):
        (folder / f"gpu{number}").touch()  # takes the place of a GPU's device file
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-1]\n")
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge/{name}" for option, name in munge.items()]
    configuration = str(folder / "slurm.conf")
    cluster = Cluster(folder, _environment(folder))
    for command in (
        ["munged", *options],
        ["slurmctld", "-c", "-f", configuration],
        *(["slurmd", "-f", configuration, "-N", node] for node in NODES),
    ):
        subprocess.run(command, check=True, env=cluster.environment, stdout=subprocess.DEVNULL, timeout=60)
    deadline = time.monotonic() + 60
    while cluster.run("sinfo", "--noheader", "--partition=main", "--format=%T %D").strip() != f"idle {len(NODES)}":
        assert time.monotonic() < deadline, cluster.run("sinfo") + cluster.logs()
        time.sleep(0.2)
    return cluster


def _environment(folder: Path) -> dict[str, str]:
    """The environment without settings of another SLURM, for clients and jobs of this cluster."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    return {**inherited, "SLURM_CONF": str(folder / "slurm.conf")}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _stop(pids: list[int]) -> None:
    """Send SIGTERM to the daemons and wait until they have ended; SIGKILL after ten seconds."""
    for seconds, number in ((10, signal.SIGTERM), (2, signal.SIGKILL)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
