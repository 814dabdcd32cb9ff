"""Times the forward pass of the transformer with its audio half and without: python -m scripts.benchmark_audio

The base has random weights. The clip has a clean reference of the same size, 1,024 text tokens, and sound of its own
length. On a GPU the blocks are compiled unless --eager. Prints one JSON line per precision and case: seconds of a pass
(the median) and the most GPU memory.

    video      the video stream alone, loaded without the audio half
    eager      both streams, before the blocks are compiled
    joint      both streams
    isolated   both streams without the attention between them (the extra pass of modality guidance)
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from iclora_train.core.device import default_device, synced_time
from iclora_train.core.types import AudioTokens, Tokens
from iclora_train.diffusion.reference import append_reference, target_tokens
from iclora_train.ltx2.build import base_dtype
from iclora_train.ltx2.model.transformer import AudioInput, Transformer
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training.memory_plan import GIB
from scripts.synthetic.configs import SIZES, VERSIONS
from scripts.synthetic.random_base import RandomBase

FPS, AUDIO_RATE = 24.0, 25.0  # frames and audio tokens per second
TEXT_TOKENS = 1024


def video_tokens(base: RandomBase, width: int, height: int, frames: int, device: torch.device) -> Tokens:
    """A noisy target and a clean reference of random latents."""
    shape = (1, base.geometry.channels, *base.geometry.latent_size(frames, height, width))
    generator = torch.Generator(device).manual_seed(0)
    target, reference = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
    return append_reference(target_tokens(target, torch.full((1,), 0.7, device=device), base.geometry, FPS), reference)


def audio_input(net: Transformer, seconds: float, device: torch.device) -> AudioInput:
    """Sound of random latents at the noise level of the video."""
    sizes = net.config.audio
    assert sizes is not None
    count = max(round(seconds * AUDIO_RATE), 1)
    edges = torch.arange(count + 1, device=device) / AUDIO_RATE
    tokens = AudioTokens(
        latent=torch.randn(1, count, sizes.in_channels, device=device),
        sigma=torch.full((1, 1), 0.7, device=device),
        level=torch.zeros(1, count, dtype=torch.long, device=device),
        position=torch.stack([edges[:-1], edges[1:]], dim=-1)[None, None],
        group=torch.zeros(count, dtype=torch.long, device=device),
        loss_mask=torch.ones(1, count, dtype=torch.bool, device=device),
    )
    return AudioInput(tokens, torch.randn(1, TEXT_TOKENS, net.config.audio_text_width, device=device))


def measure(forward: Callable[[], object], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of a pass after the first one, and peak GiB with the weights."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    forward()
    seconds = []
    for _ in range(rounds):
        begin = synced_time(device)
        forward()
        seconds.append(synced_time(device) - begin)
    peak = torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else 0.0
    return {"seconds": round(statistics.median(seconds), 4), "gib": round(peak, 2)}


@torch.no_grad()
def run(args: argparse.Namespace, precision: str, audio: bool, device: torch.device) -> None:
    """Load the transformer with or without its audio half, and print its rows."""

    def row(name: str, forward: Callable[[], object]) -> None:
        values = {"precision": precision, "case": name, "tokens": tokens.latent.shape[1]}
        print(json.dumps(values | measure(forward, device, args.rounds)), flush=True)

    base, dtype = RandomBase(args.version, args.model), base_dtype(precision)
    width, height, frames = map(int, args.size.split("x"))
    net = base.transformer(dtype, device, precision == "fp8", args.weight_offload, audio)
    tokens = video_tokens(base, width, height, frames, device)
    text = torch.randn(1, TEXT_TOKENS, net.config.text_width, device=device)
    compiled = device.type == "cuda" and not args.eager
    if not audio:
        if compiled:
            compile_blocks(net)
        row("video", lambda: net(tokens, text))
        return
    sound = audio_input(net, frames / FPS, device)
    isolated = replace(sound, isolated=True)
    if compiled:
        row("eager", lambda: net(tokens, text, audio=sound))
        compile_blocks(net)
    row("joint", lambda: net(tokens, text, audio=sound))
    row("isolated", lambda: net(tokens, text, audio=isolated))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", choices=VERSIONS, default="2.3")
    parser.add_argument("--model", choices=SIZES, default="full", help="size of the transformer")
    parser.add_argument("--size", default="960x544x121", metavar="WxHxF")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16", "fp8"), default=["bf16", "fp8"])
    parser.add_argument("--weight-offload", type=int, default=0, help="blocks whose weights stay in host memory")
    parser.add_argument("--eager", action="store_true", help="do not compile the blocks")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = default_device()
    for precision in args.precision:
        for audio in (False, True):
            run(args, precision, audio, device)
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
