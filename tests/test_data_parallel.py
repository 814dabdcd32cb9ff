"""Two processes: gradients are the mean over the ranks' batches, with replayed CUDA graphs and with accumulation."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from iclora_train.core.ranks import global_rank
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.ltx2.runtime.cuda_graphs import CudaGraphs
from iclora_train.training.data_parallel import data_parallel
from tests.rank_processes import on_ranks
from tests.test_compiled import network
from tests.test_graphs import FakeCapture, accumulate_grads, adapter, random_tokens

STEPS, RANKS = 3, 2  # the first step runs normally, the second one is captured, the third one is replayed


def gradients_of_rank(batches: int) -> list[np.ndarray]:
    """The adapter's gradients after the last step. The batches of ranks differ."""
    net = network()
    runner_of(net).cuda_graphs = CudaGraphs(FakeCapture)
    parallel = data_parallel(net, torch.device("cpu"))
    for step in range(STEPS):
        net.zero_grad()
        for batch in range(batches):
            with nullcontext() if batch == batches - 1 else parallel.no_sync():
                accumulate_grads(net, random_tokens(4, step, 8), batches * global_rank() + batch, parallel)
    assert runner_of(net).cuda_graphs.captured
    return [parameter.grad.numpy() for parameter in adapter(net) if parameter.grad is not None]


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_are_the_mean_over_ranks(batches: int) -> None:
    net = network()
    for text in range(RANKS * batches):
        accumulate_grads(net, random_tokens(4, STEPS - 1, 8), text)
    expected = [parameter.grad.numpy() / RANKS for parameter in adapter(net) if parameter.grad is not None]
    for gradients in on_ranks(RANKS, gradients_of_rank, batches):
        for gradient, mean in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(gradient, mean, rtol=1e-4, atol=1e-6)
