"""Prefetch: no batch is lost or out of order, one batch is copied ahead, and computation does not corrupt a batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from iclora_train.core.device import to_device
from iclora_train.data.batch import Batch
from iclora_train.data.prefetch import Prefetch


def batches(count: int, size: int = 1, pinned: bool = False) -> Iterator[Batch]:
    """Batches in fp16, filled with their number."""
    for n in range(count):
        target, text, fps = (torch.full((1, size), n, dtype=torch.float16) for _ in range(3))
        batch = Batch(target, [target + 0.5], text, fps, keys=[str(n)], captions=[""])
        yield batch.pin_memory() if pinned else batch


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_batch_arrives_once_in_order_as_fp32(count: int) -> None:
    received = list(Prefetch(batches(count), torch.device("cpu")))
    assert [batch.keys for batch in received] == [[str(n)] for n in range(count)]
    for n, batch in enumerate(received):
        for tensor, value in ((batch.target, n), (batch.text, n), (batch.references[0], n + 0.5)):
            assert tensor.dtype == torch.float32
            assert tensor.item() == value


def test_a_batch_is_yielded_after_the_copy_of_the_next_has_started() -> None:
    loaded: list[int] = []

    def loader() -> Iterator[Batch]:
        for n, batch in enumerate(batches(4)):
            loaded.append(n)
            yield batch

    batches_ahead = iter(Prefetch(loader(), torch.device("cpu")))
    assert loaded == []
    for n, num_loaded in enumerate((2, 3, 4, 4)):
        assert next(batches_ahead).keys == [str(n)]
        assert len(loaded) == num_loaded


def test_an_error_of_the_loader_is_raised() -> None:
    def loader() -> Iterator[Batch]:
        yield from batches(1)
        raise OSError("a disk is gone")

    with pytest.raises(OSError, match="a disk is gone"):
        list(Prefetch(loader(), torch.device("cpu")))


@pytest.mark.gpu
def test_slow_steps_on_a_gpu_read_uncorrupted_batches() -> None:
    """Each step takes longer than a copy and reads its batch at the end, while later batches are copied."""
    device = torch.device("cuda")
    weight = torch.randn(4096, 4096, device=device) / 64
    rows = []
    for batch in Prefetch(batches(12, size=1 << 22, pinned=True), device):
        work = weight
        for _ in range(20):
            work = work @ weight
        rows.append(torch.stack([batch.target.amin(), batch.target.amax(), work.sum() * 0]))
    assert [row[:2].tolist() for row in rows] == [[n, n] for n in range(12)]


@pytest.mark.gpu
def test_an_expanded_tensor_is_copied_to_a_gpu() -> None:
    """The clean parts of validation clips are one mask, expanded to the batch."""
    mask = torch.tensor([True, False]).expand(3, 2)
    assert torch.equal(to_device(mask, torch.device("cuda")).cpu(), mask)
