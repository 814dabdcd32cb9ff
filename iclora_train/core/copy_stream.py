"""A side CUDA stream for copies that overlap with computation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class CopyStream:
    """A CUDA stream for copies, besides the stream that computes. On a CPU all work runs in the order of the calls."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def context(self) -> AbstractContextManager[object]:
        """Inside the `with`, copies and allocations run on this stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def wait_for_compute(self) -> None:
        """Later work on this stream waits for all work that is queued on the compute stream so far."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def record(self) -> torch.cuda.Event | None:
        """An event that completes when all work queued on this stream so far is done. None on a CPU."""
        return None if self.stream is None else self.stream.record_event()

    def make_compute_wait(self, event: torch.cuda.Event | None) -> None:
        """Later work on the compute stream waits for the event."""
        if self.stream is not None and event is not None:
            torch.cuda.current_stream(self.stream.device).wait_event(event)
