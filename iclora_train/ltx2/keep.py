"""Tells torch.compile what never to compute twice: attention, and the inverse root mean squares of tokens.

Its partitioner weighs recomputation of products and FlashAttention, but takes cuDNN's attention for something cheap and
recomputes it in every backward pass (torch 2.11, 2.13; seen in a profile), although nothing costs more per byte kept.
An inverse root mean square is one number a token, and computing it again is a pass over all its channels.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

from iclora_train.ltx2 import combine, flash  # noqa: F401 (the second defines the operator)

_aten = torch.ops.aten
ATTENTION = {
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.iclora_train.flash_forward.default,
}
KEPT = ATTENTION | {_aten.rsqrt.default}


class Keep(CustomGraphPass):
    """Marks these as kept for the backward pass, before the graph is cut into forward and backward."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.target in KEPT:
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> bytes:
        """For the compiler's cache on disk: code made under another rule is not used again."""
        return get_hash_for_files((__file__, combine.__file__))
