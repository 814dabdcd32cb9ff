"""The VAE's encoder on consecutive chunks of a clip: memory is bounded by the chunk, and no cell depends on its size.

All convolutions of the encoder are causal in time with a kernel of 3 frames: a frame needs the two input frames before
it. Each convolution keeps the last two frames of its input for the next chunk. The first frame of a clip is repeated
instead. (Overlapping tiles in time would encode the overlap twice, and cells after a cut would differ.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CONTEXT = 2  # input frames before a frame that a convolution sees
Frames = dict[Any, Tensor]  # convolution -> the last CONTEXT frames of its input (B,C,2,H,W)


class CausalEncoder:
    """Runs the layers of diffusers' LTX2VideoEncoder3d on a clip in chunks.

    encoder: the module. Any: diffusers is not typed.
    """

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._last: Frames = {}

    def encode(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Consecutive chunks of pixels (B,3,F,H,W) of one clip -> their latents, not normalised, with the channels of
        the encoder's output. The first chunk has 1 + k T frames and all others k T, where T is the temporal factor."""
        self._last = {}
        for chunk in chunks:
            yield self._forward(self._patches(chunk))
        self._last = {}

    def _forward(self, x: Tensor) -> Tensor:
        encoder = self._encoder
        x = self._conv(encoder.conv_in, x)
        for block in encoder.down_blocks:
            x = self._downsample(block.downsamplers[0], self._resnets(block.resnets, x))
        x = self._resnets(encoder.mid_block.resnets, x)
        return self._conv(encoder.conv_out, encoder.conv_act(encoder.norm_out(x)))

    def _patches(self, video: Tensor) -> Tensor:
        """Pixels (B,3,F,H,W) -> (B,3 p p,F,H/p,W/p). Columns of a patch vary slower than its rows."""
        patch = self._encoder.patch_size
        split = video.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # (B,3,F,H/p,p,W/p,p)
        return split.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)

    def _resnets(self, blocks: Iterable[Any], x: Tensor) -> Tensor:
        for block in blocks:
            h = self._conv(block.conv1, block.nonlinearity(block.norm1(x)))
            x = self._conv(block.conv2, block.nonlinearity(block.norm2(h))) + x
        return x

    def _downsample(self, down: Any, x: Tensor) -> Tensor:
        """Space and time to channels of a convolution, plus means of x over groups of channels."""
        if self._is_first(down.conv):
            x = torch.cat([x[:, :, : down.stride[0] - 1], x], dim=2)
        shortcut = to_channels(x, down.stride).unflatten(1, (-1, down.group_size)).mean(dim=2)
        return to_channels(self._conv(down.conv, x), down.stride) + shortcut

    def _conv(self, conv: Any, x: Tensor) -> Tensor:
        """A causal convolution of x, which continues its input in the chunk before."""
        before = x[:, :, :1].repeat(1, 1, CONTEXT, 1, 1) if self._is_first(conv) else self._last[conv]
        x = torch.cat([before, x], dim=2)
        self._last[conv] = x[:, :, -CONTEXT:].clone()
        result: Tensor = conv.conv(x)
        return result

    def _is_first(self, conv: Any) -> bool:
        """Whether the convolution has not run on this clip."""
        return conv not in self._last


def to_channels(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(B,C,F,H,W) -> (B,C t h w,F/t,H/h,W/w) for a stride of (t,h,w)."""
    t, h, w = stride
    split = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def split_frames(video: Tensor, temporal: int, cells: int) -> Iterator[Tensor]:
    """A clip (B,3,F,H,W) in chunks of at most `cells` latent frames, as equal as possible. The first latent frame is
    one frame, all others `temporal` frames."""
    length = (video.shape[2] - 1) // temporal + 1
    count = -(-length // cells)
    cuts = [0, *(1 + temporal * (i * length // count - 1) for i in range(1, count + 1))]  # in frames
    return (video[:, :, start:stop] for start, stop in pairwise(cuts))
