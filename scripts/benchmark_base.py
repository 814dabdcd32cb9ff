"""Times loading a base in several processes at once: python -m scripts.benchmark_base CHECKPOINT [--processes 1 2 8]

Every rank of a run reads the base itself. The first process that reads a part of the file brings it into the page
cache, from where the others take it. For each number of processes this program loads once with the file out of the page
cache ("cold") and once with it there ("warm"), and prints the seconds of each process. Process N loads to GPU N; with
fewer GPUs than processes all load to the first one, which must have room for them.

Cold means that this program asked the system to drop the file (posix_fadvise). Disks and file servers have caches of
their own, which stay warm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import base_dtype

MOST_SECONDS = 600.0  # after which a process no longer waits for one that has failed


def drop_from_page_cache(checkpoint: Path) -> float:
    """Ask the system to drop the checkpoint's files from memory. Returns their size in GB."""
    files = [checkpoint] if checkpoint.is_file() else [file for file in checkpoint.rglob("*") if file.is_file()]
    os.sync()  # only pages that are on disk are dropped
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return sum(file.stat().st_size for file in files) / 1e9


def load(checkpoint: str, precision: str, rank: int, ready: Barrier, seconds: multiprocessing.Queue[float]) -> None:
    """Load the transformer when all processes are ready."""
    on_gpu, count = torch.cuda.is_available(), torch.cuda.device_count()
    device = torch.device("cuda", rank if rank < count else 0) if on_gpu else torch.device("cpu")
    torch.zeros(1, device=device)  # starts CUDA
    ready.wait()
    begin = time.perf_counter()
    BaseModel.open(checkpoint).transformer(base_dtype(precision), device, precision == "fp8")
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds.put(time.perf_counter() - begin)
    ready.wait()  # all models are in memory at the same time, as in a run


def load_at_once(checkpoint: str, precision: str, processes: int) -> list[float]:
    """Seconds of each of `processes` that load at the same time, ascending."""
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(processes, timeout=MOST_SECONDS), context.Queue()
    workers = [
        context.Process(target=load, args=(checkpoint, precision, rank, ready, seconds)) for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit(f"loading in {processes} processes failed")
    return sorted(seconds.get() for _ in workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp8", "fp32"])
    args = parser.parse_args()
    for processes in args.processes:
        for page_cache in ("cold", "warm"):
            if page_cache == "cold":
                size = drop_from_page_cache(Path(args.checkpoint))
            seconds = load_at_once(args.checkpoint, args.precision, processes)
            row = {"processes": processes, "page_cache": page_cache, "seconds": [round(s, 2) for s in seconds]}
            print(json.dumps({**row, "file_gb": round(size, 2)}), flush=True)


if __name__ == "__main__":
    main()
