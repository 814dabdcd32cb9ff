"""How the adapter's gradients are averaged over ranks: the settings of PyTorch's DistributedDataParallel.

The gradients of LTX-2.3 at rank 32 are 654 MB. They leave in messages of BUCKET_MIB while the backward pass goes on,
also where its blocks are replayed as CUDA graphs (`ltx2.runtime.cuda_graphs`). With gradient accumulation only the last
batch of a step sends them.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Large enough for the full bandwidth of NVLink and InfiniBand. The last message leaves when the backward pass is over,
# so it should be a small share of all gradients.
BUCKET_MIB = 50


def data_parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The module, with gradients averaged over all ranks after each backward pass. All ranks get rank 0's parameters.

    Frozen parameters and buffers are not sent (`ICLoRA._ddp_params_and_buffers_to_ignore`): every rank loads the base.
    The gradients are views of the sent messages: no second copy of them is in memory. The parameters' AccumulateGrad
    nodes belong to a side stream, because nodes of the default stream cannot be part of the capture of a CUDA graph.
    """
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # the mismatch is intended, see above
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))  # which may still write the parameters
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        parallel = DistributedDataParallel(
            module,
            device_ids=None if stream is None else [device],
            bucket_cap_mb=BUCKET_MIB,
            gradient_as_bucket_view=True,
        )
    if stream is not None:
        torch.cuda.current_stream(device).wait_stream(stream)  # which copies rank 0's parameters
    return parallel
