"""The VAE's encoder on a GPU: channels-last, with one kernel between two convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from iclora_train.ltx2.kernels.dispatch import HAS_TRITON
from iclora_train.ltx2.kernels.encoder_ops import norm_silu_pad, space_to_depth
from iclora_train.ltx2.vae.causal_encoder import CONTEXT, CausalEncoder

LAYOUT = torch.channels_last_3d


class FusedEncoder(CausalEncoder):
    """CausalEncoder with tensors (B,F,H,W,C) between the convolutions.

    Bias, residual sum, norm, SiLU and the frames before a chunk are one pass over memory. The weights of the encoder
    become channels-last in place.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        with torch.inference_mode(False):  # parameters of inference mode could not be used outside of it
            encoder.to(memory_format=LAYOUT)

    @staticmethod
    def supports(encoder: Any) -> bool:
        """Whether the kernels take the encoder's device and padding."""
        weight, convolutions = encoder.conv_in.conv.weight, (m for m in encoder.modules() if hasattr(m, "padding_mode"))
        return HAS_TRITON and weight.is_cuda and all(conv.padding_mode == "zeros" for conv in convolutions)

    def _forward(self, x: Tensor) -> Tensor:
        encoder = self._encoder
        _, x = self._pad(encoder.conv_in, x.permute(0, 2, 3, 4, 1).contiguous())
        x = _conv3d(encoder.conv_in, x, encoder.conv_in.conv.bias)
        for block in encoder.down_blocks:
            x = self._downsample(block.downsamplers[0], self._resnets(block.resnets, x))
        x = self._resnets(encoder.mid_block.resnets, x)
        _, x = self._pad(encoder.conv_out, x, eps=encoder.norm_out.eps)
        return _conv3d(encoder.conv_out, x, encoder.conv_out.conv.bias).permute(0, 4, 1, 2, 3)

    def _resnets(self, blocks: Iterable[Any], x: Tensor) -> Tensor:
        bias: Tensor | None = None
        residual: Tensor | None = None
        for block in blocks:
            residual, h = self._pad(block.conv1, x, bias, residual, block.norm1.eps)
            h = _conv3d(block.conv1, h)
            _, h = self._pad(block.conv2, h, block.conv1.conv.bias, None, block.norm2.eps)
            x, bias = _conv3d(block.conv2, h), block.conv2.conv.bias
        return norm_silu_pad(x, bias, residual, None, 0, None)[0]

    def _downsample(self, down: Any, x: Tensor) -> Tensor:
        repeated = down.stride[0] - 1 if self._is_first(down.conv) else 0
        _, x = self._pad(down.conv, x, repeated=repeated)
        return space_to_depth(_conv3d(down.conv, x), down.conv.conv.bias, x, CONTEXT, down.stride, down.group_size)

    def _pad(
        self,
        conv: Any,
        x: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        eps: float | None = None,
        repeated: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """See norm_silu_pad; with the frames of the chunk before. repeated: more copies of a clip's first frame."""
        total, padded = norm_silu_pad(x, bias, residual, self._last.get(conv), CONTEXT + repeated, eps)
        self._last[conv] = padded[:, -CONTEXT:].clone()
        return total, padded


def _conv3d(conv: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x (B,F,H,W,C), whose frames are padded, without its bias unless given."""
    layer = conv.conv
    y = functional.conv3d(x.permute(0, 4, 1, 2, 3), layer.weight, bias, layer.stride, layer.padding)
    return y.contiguous(memory_format=LAYOUT).permute(0, 2, 3, 4, 1)
