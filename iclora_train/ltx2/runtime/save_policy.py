"""Tells torch.compile what to save for the backward pass: outputs of attention and inverse root mean squares.

The partitioner assigns a recomputation cost to matmuls and FlashAttention, but treats cuDNN's attention as cheap and
recomputes it in every backward pass (torch 2.11 and 2.13, by profiles). Yet no other operation costs more time per byte
of its output. An inverse root mean square is one number per token; recomputing it is a pass over all channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy

from iclora_train.ltx2.kernels import attention_backends

SOURCES = tuple(str(file) for file in sorted(Path(__file__).parents[1].rglob("*.py")))


def must_save() -> frozenset[OpOverload]:
    """The operators whose outputs are saved for the backward pass."""
    return attention_backends.saved_ops() | {torch.ops.aten.rsqrt.default}


class SavePolicy(CustomGraphPass):
    """Marks the outputs of `must_save` as saved, before the joint graph is partitioned into forward and backward."""

    def __call__(self, graph: fx.Graph) -> None:
        saved = must_save()
        for node in graph.nodes:
            if node.target in saved:
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> bytes:
        """Key of the compiler's disk cache, so that code compiled by another version of this package is not reused.

        Compiled code calls our operators by name and relies on the output shapes that they had when it was compiled.
        """
        return get_hash_for_files(SOURCES)
