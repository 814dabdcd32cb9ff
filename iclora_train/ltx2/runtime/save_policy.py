"""Tells torch.compile what never to compute twice: attention, and the inverse root mean squares of tokens.

Its partitioner weighs recomputation of products and FlashAttention, but takes cuDNN's attention for something cheap and
recomputes it in every backward pass (torch 2.11, 2.13; seen in a profile), although nothing costs more per byte kept.
An inverse root mean square is one number a token, and computing it again is a pass over all its channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy

from iclora_train.ltx2.kernels import attention_backends

SOURCE = tuple(str(file) for file in sorted(Path(__file__).parents[1].rglob("*.py")))


def must_save() -> frozenset[OpOverload]:
    """The operators whose outputs are saved for the backward pass."""
    return attention_backends.saved_ops() | {torch.ops.aten.rsqrt.default}


class SavePolicy(CustomGraphPass):
    """Marks these as kept for the backward pass, before the graph is cut into forward and backward."""

    def __call__(self, graph: fx.Graph) -> None:
        saved = must_save()
        for node in graph.nodes:
            if node.target in saved:
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> bytes:
        """For the compiler's cache on disk: code made by another version of this package is not used again. It calls
        our operators, which it knows by name alone, and counts on the shapes that they gave then."""
        return get_hash_for_files(SOURCE)
