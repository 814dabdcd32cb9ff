"""Copies beside the computation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class CopyStream:
    """The stream that copies run on, beside the one that computes. On a CPU all is done in the order of the calls."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def context(self) -> AbstractContextManager[object]:
        """Inside the `with`, memory is taken and copied on the copy_stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def wait_for_compute(self) -> None:
        """What comes on the copy_stream waits for all that is to be computed so far."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def record(self) -> torch.cuda.Event | None:
        """The moment when all that is on the copy_stream so far is done."""
        return None if self.stream is None else self.stream.record_event()

    def make_compute_wait(self, moment: torch.cuda.Event | None) -> None:
        """What is computed from now on waits for that moment."""
        if self.stream is not None and moment is not None:
            torch.cuda.current_stream(self.stream.device).wait_event(moment)
