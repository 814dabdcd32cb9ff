"""The Triton kernels of `encoder_ops`."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=["count", "clip_rows", "frame_rows", "lead", "has_bias", "has_residual", "norm", "repeat"]
)
def norm_silu_pad_kernel(
    x, bias, residual, total, padded, count, clip_rows, frame_rows, eps, has_bias, has_residual, norm, repeat, lead,
    C: tl.constexpr, TILE: tl.constexpr, MAX_LEAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A row is the channels of a pixel. repeat: the first frame is stored in the `lead` frames before it too.

    Flags are arguments at run time: the kernel is compiled once for each number of channels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, TILE)
    valid = (row < count)[:, None] & (channel < C)[None, :]
    offset = row[:, None] * C + channel[None, :]
    value = tl.load(x + offset, mask=valid, other=0.0).to(tl.float32)
    if has_bias:
        value += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    if has_residual:
        value += tl.load(residual + offset, mask=valid, other=0.0).to(tl.float32)
    if has_bias + has_residual > 0:
        tl.store(total + offset, value, mask=valid)
        value = value.to(total.dtype.element_ty).to(tl.float32)
    if norm:
        value *= tl.rsqrt(tl.sum(value * value, 1) / C + eps)[:, None]
        value *= tl.sigmoid(value)
    clip, place = row // clip_rows, row % clip_rows
    start = clip * (clip_rows + lead * frame_rows) + place
    tl.store(padded + (start + lead * frame_rows)[:, None] * C + channel[None, :], value, mask=valid)
    if repeat:
        first = valid & (place < frame_rows)[:, None]
        for i in tl.static_range(MAX_LEAD):
            mask = first & (i < lead)
            tl.store(padded + (start + i * frame_rows)[:, None] * C + channel[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["count", "out_frames", "out_height", "out_width", "x_frames", "shortcut_frames", "skip"])
def space_to_depth_kernel(
    x, bias, shortcut, out, count, out_frames, out_height, out_width, x_frames, shortcut_frames, skip,
    C: tl.constexpr, SHORTCUT_C: tl.constexpr, OUT_C: tl.constexpr, TILE: tl.constexpr,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A row is the channels of a pixel of `out`. Channel c of `out` is channel c // (T H W) of x, at the place
    c % (T H W) of a cell of T x H x W pixels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, TILE)
    valid = (row < count)[:, None] & (channel < OUT_C)[None, :]
    column = (row % out_width)[:, None] * W
    line = (row // out_width % out_height)[:, None] * H
    frame = (row // (out_width * out_height) % out_frames)[:, None] * T
    clip = (row // (out_width * out_height * out_frames))[:, None]
    height, width = out_height * H, out_width * W
    mean = tl.zeros((ROWS, TILE), tl.float32)
    for i in tl.static_range(GROUP):
        source = channel * GROUP + i
        place = (source % (T * H * W))[None, :]
        f = clip * shortcut_frames + skip + frame + place // (H * W)
        pixel = (f * height + line + place // W % H) * width + column + place % W
        mean += tl.load(shortcut + pixel * SHORTCUT_C + (source // (T * H * W))[None, :], mask=valid, other=0.0).to(
            tl.float32
        )
    place = (channel % (T * H * W))[None, :]
    source = channel // (T * H * W)
    pixel = ((clip * x_frames + frame + place // (H * W)) * height + line + place // W % H) * width + column + place % W
    value = tl.load(x + pixel * C + source[None, :], mask=valid, other=0.0).to(tl.float32)
    value += tl.load(bias + source, mask=channel < OUT_C, other=0.0).to(tl.float32)[None, :]
    value = value.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row[:, None] * OUT_C + channel[None, :], value + mean / GROUP, mask=valid)
