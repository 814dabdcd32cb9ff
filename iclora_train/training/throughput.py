"""Training throughput: seconds, tokens and clips, and FLOPs as a share of the measured peak (MFU).

FLOPs are counted by formula. A linear costs 2 * rows * inputs * outputs. With N tokens of target and references, T text
tokens, width D and context width D', in each of L blocks and for each clip:

    forward   attn1  q, k, v, out   4 x 2 N D^2      attention  4 N^2 D   (q k^T, and the weighted sum of the values)
              attn2  q, out         2 x 2 N D^2      attention  4 N T D
              attn2  k, v           2 x 2 T D' D
              ff                    2 x 8 N D^2
              gates (since 2.3)     2 x 2 N D heads
    backward  linears once more, for the gradient of their inputs; frozen weights need no gradient
              attention twice more (the usual convention: recomputing q k^T in the kernel does not count)
    adapters  2 rows rank (inputs + outputs) forward, the same for the gradients of A and B, the same for the inputs'

The text and the input of attn1 in the first block get no gradient. Recomputed activations are not counted, and neither
is work outside the blocks (below 1 % for a real base). Attention that adapter targets or hidden references make
unnecessary is not subtracted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from iclora_train.data.batch import Batch
from iclora_train.ltx2.model.transformer import TransformerConfig

THROUGHPUT_COLUMNS = ("s_per_step", "tokens_per_s", "clips_per_s", "tflops", "mfu", "memory_gib")
Ranks = tuple[tuple[str, int], ...]  # linears with an adapter, and their ranks
_ROUNDS = 4  # measurements of the peak; the fastest counts
_GPU, _CPU = (4096, 20), (512, 4)  # side of the square matrices, products per measurement


@dataclass(frozen=True)
class _Linear:
    inputs: int
    outputs: int
    on_text: bool = False


@lru_cache(maxsize=8)
def _linears(config: TransformerConfig) -> dict[str, _Linear]:
    """The linear layers of a block by name."""
    width, context = config.width, config.cross_attention_dim
    square, up, down = _Linear(width, width), _Linear(width, 4 * width), _Linear(4 * width, width)
    text = _Linear(context, width, on_text=True)
    linears = {f"attn1.{name}": square for name in ("to_q", "to_k", "to_v", "to_out.0")}
    linears |= {"attn2.to_q": square, "attn2.to_k": text, "attn2.to_v": text, "attn2.to_out.0": square}
    if config.apply_gated_attention:
        linears |= {f"{attn}.to_gate_logits": _Linear(width, config.num_attention_heads) for attn in ("attn1", "attn2")}
    return {**linears, "ff.net.0.proj": up, "ff.net.2": down}


@lru_cache(maxsize=64)
def step_flops(config: TransformerConfig, ranks: Ranks, tokens: int, text: int, clips: int) -> int:
    """FLOPs of forward and backward for `clips` clips with `tokens` tokens and `text` text tokens each.

    ranks: the adapted linears and the ranks of their adapters (`lora.ranks`).
    """
    total, rank_of = 0, dict(ranks)
    for i in range(config.num_layers):
        for name, linear in _linears(config).items():
            rows = text if linear.on_text else tokens
            first = i == 0 and name.startswith("attn1.") and name != "attn1.to_out.0"
            into_inputs = not linear.on_text and not first
            total += 2 * rows * linear.inputs * linear.outputs * (1 + into_inputs)
            rank = rank_of.get(f"transformer_blocks.{i}.{name}", 0)
            total += 2 * rows * rank * (3 * linear.outputs + (2 + into_inputs) * linear.inputs)
        total += 3 * 4 * tokens * (tokens + text) * config.width
    return clips * total


@dataclass
class Work:
    """Work of one or more batches: clips, tokens of targets and references, FLOPs."""

    clips: int = 0
    tokens: int = 0
    flops: int = 0


def batch_work(batch: Batch, config: TransformerConfig, ranks: Ranks) -> Work:
    """The work of a training batch."""
    latents = batch.latents
    clips, tokens = len(latents[0]), sum(latent[0, 0].numel() for latent in latents)
    flops = step_flops(config, ranks, tokens, batch.text.shape[1], clips)
    return Work(clips, clips * tokens, flops)


@dataclass(frozen=True)
class Interval:
    """Seconds of training, finished optimizer steps, and the work of one device. peak: FLOP/s that the device reaches
    (`matmul_peak`)."""

    seconds: float
    steps: int
    work: Work
    peak: float


def throughput_row(ranks: Sequence[Interval]) -> dict[str, float]:
    """s_per_step; tokens_per_s and clips_per_s of all devices; tflops (TFLOP/s) and mfu (share of the peak) of one
    device, mean over the devices. Empty when no step was finished.

    ranks: the same steps on each rank. Ranks wait for one another in every step, so the slowest one's seconds count.
    """
    steps, seconds = ranks[0].steps, max(rank.seconds for rank in ranks)
    if not steps:
        return {}
    flops = sum(rank.work.flops for rank in ranks)
    return {
        "s_per_step": seconds / steps,
        "tokens_per_s": sum(rank.work.tokens for rank in ranks) / seconds,
        "clips_per_s": sum(rank.work.clips for rank in ranks) / seconds,
        "tflops": flops / len(ranks) / seconds / 1e12,
        "mfu": flops / seconds / sum(rank.peak for rank in ranks),
    }


class ThroughputMeter:
    """Adds up the work of one device, and the seconds it took, while the meter is running.

    peak: FLOP/s that the device reaches (`matmul_peak`).
    """

    def __init__(self, peak: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.peak, self.clock = peak, clock
        self.since: float | None = None  # time of the last `resume`; None while paused
        self.seconds, self.steps, self.work = 0.0, 0, Work()

    def resume(self) -> None:
        """Start counting time."""
        if self.since is None:
            self.since = self.clock()

    def pause(self) -> None:
        """Stop counting time until `resume`."""
        if self.since is not None:
            self.seconds += self.clock() - self.since
            self.since = None

    def add(self, work: Work, step_done: bool) -> None:
        """Count a finished batch. Nothing is counted while the meter is paused."""
        if self.since is None:
            return
        self.steps += step_done
        for field in fields(Work):
            setattr(self.work, field.name, getattr(self.work, field.name) + getattr(work, field.name))

    def collect(self) -> Interval:
        """What was counted since the last call that saw a finished step."""
        running = self.since is not None
        self.pause()
        interval = Interval(self.seconds, self.steps, self.work, self.peak)
        if running:
            self.resume()
        if interval.steps:
            self.seconds, self.steps, self.work = 0.0, 0, Work()
        return interval


@lru_cache(maxsize=4)
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on this device, measured once per process (a tenth of a second)."""
    side, products = _GPU if device.type == "cuda" else _CPU
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, side, side, generator=generator, device=device, dtype=torch.float32).to(dtype)
    seconds = [_seconds(a, b, products) for _ in range(1 + _ROUNDS)][1:]  # the first measurement warms up
    return 2 * side**3 * products / min(seconds)


def _seconds(a: Tensor, b: Tensor, products: int) -> float:
    """Seconds of `products` matrix products."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if a.is_cuda else lambda: None
    synchronize()
    started = time.perf_counter()
    for _ in range(products):
        a @ b
    synchronize()
    return time.perf_counter() - started
