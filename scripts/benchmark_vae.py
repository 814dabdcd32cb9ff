"""Times the encoder of the video VAE in several variants: python -m scripts.benchmark_vae [--shapes 960x544x89 ...]

A variant is a list of words, for instance "bf16 diffusers compile":

    fp32, tf32, bf16      precision of the convolutions; tf32 is fp32 with cuDNN's TF32, as data_prep computes on a GPU
    diffusers             diffusers' own layers on the whole clip; otherwise chunks of frames, as data_prep encodes
    channels_last         with diffusers: weights and pixels in torch.channels_last_3d
    compile               with diffusers: torch.compile
    pair                  target and reference in one batch; otherwise one after the other

For each shape and variant it prints one JSON line: seconds for a window (target and reference of the same size),
TFLOP/s of the convolutions, GB/s, peak GiB, and the rms difference of the latents from those of the first variant over
their standard deviation. GB/s counts the inputs and outputs of all operations of diffusers' eager pass, so fused code,
which moves less, can exceed the GPU's bandwidth. The time of the first call, which compiles, is printed apart.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from iclora_train.config import ConfigError, require
from iclora_train.core.device import default_device, synced_time
from iclora_train.core.types import VideoShape
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.training.memory_plan import GIB
from scripts.synthetic.configs import GEMMA, SIZES, VERSIONS, official_config
from scripts.synthetic.layout import vae as vae_specs
from scripts.synthetic.writer import values

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
WORDS = {*PRECISIONS, "diffusers", "channels_last", "compile", "pair"}
VARIANTS = ["tf32 diffusers", "tf32", "bf16 diffusers", "bf16 diffusers channels_last compile", "bf16"]
Row = dict[str, Any]


class MovedBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write. Views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and add its inputs and outputs."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def random_vae(version: str, size: str, dtype: torch.dtype) -> VideoVAE:
    """The VAE of a version with random weights."""
    section = official_config(version, size, GEMMA[size][0])["vae"]
    state = {spec.name: torch.cat(list(values(spec, 0, "cpu"))).view(spec.shape) for spec in vae_specs(section)}
    return VideoVAE.from_config(section, state, dtype).requires_grad_(False)


def parse(variant: str) -> tuple[str, set[str]]:
    """The precision of a variant and its other words. ConfigError for an unknown word or several precisions."""
    words = variant.split()
    unknown = set(words) - WORDS
    require(not unknown, f"--variants: {variant!r} has unknown words {sorted(unknown)}; there are {sorted(WORDS)}")
    precisions = [word for word in words if word in PRECISIONS]
    require(len(precisions) == 1, f"--variants: {variant!r} must name one of {', '.join(PRECISIONS)}")
    return precisions[0], set(words) - set(precisions)


def video_shape(text: str) -> VideoShape:
    """`960x544x89` as a shape. ConfigError for other text."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None:
        raise ConfigError(f"--shapes: {text!r} is not width x height x frames, e.g. 960x544x89")
    width, height, frames = map(int, match.groups())
    return VideoShape(frames, height, width, 24.0)


def encoder_of(vae: VideoVAE, words: set[str]) -> Callable[[Tensor], Tensor]:
    """Pixels (B,3,F,H,W) -> latents, as the words say."""
    encode = vae.encode
    if "diffusers" in words:
        mean, std = vae.statistics()
        layers = torch.compile(vae.model.encode, dynamic=False) if "compile" in words else vae.model.encode

        def encode(video: Tensor) -> Tensor:
            return (layers(video.to(vae.model.dtype)).latent_dist.mode().float() - mean) / std

    if "channels_last" in words:
        vae.model.to(memory_format=torch.channels_last_3d)

    def encode_pair(video: Tensor) -> Tensor:
        if "channels_last" in words:
            video = video.contiguous(memory_format=torch.channels_last_3d)
        return encode(video) if "pair" in words else torch.cat([encode(clip) for clip in video.split(1)])

    return encode_pair


@torch.inference_mode()
def measure(
    make_vae: Callable[[torch.dtype], VideoVAE], shape: VideoShape, variant: str, repeats: int
) -> tuple[Row, Tensor]:
    """The row of a variant without its error, and its latents (2,C,f,h,w)."""
    precision, words = parse(variant)
    device = default_device()
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    vae = make_vae(PRECISIONS[precision]).to(device)
    size = 2, 3, shape.frames, shape.height, shape.width
    video = (torch.rand(size, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
    with FlopCounterMode(display=False) as flops, MovedBytes() as moved:
        encoder_of(vae, {"diffusers"})(video)
    encode = encoder_of(vae, words)
    begin = synced_time(device)
    latents = encode(video)
    first = synced_time(device) - begin
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of the pass that counts
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        begin = synced_time(device)
        encode(video)
        seconds.append(synced_time(device) - begin)
    per_window = median(seconds)
    row = {
        "shape": shape.bucket,
        "variant": variant,
        "seconds_per_window": round(per_window, 4),
        "first_call": round(first, 2),
        "TFLOP/s": round(flops.get_total_flops() / per_window / 1e12, 1),
        "GB/s": round(moved.total / per_window / 1e9, 1),
        "GiB": round(torch.cuda.max_memory_reserved(device) / GIB, 1) if device.type == "cuda" else None,
    }
    return row, latents.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="default: random weights")
    parser.add_argument("--version", default="2.3", choices=VERSIONS, help="of the random weights")
    parser.add_argument("--size", default="full", choices=SIZES, help="of the random weights")
    parser.add_argument("--shapes", nargs="+", default=["512x320x25", "960x544x89", "1280x704x121"])
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for variant in args.variants:
        parse(variant)

    def make_vae(dtype: torch.dtype) -> VideoVAE:
        if args.checkpoint:
            return BaseModel.open(args.checkpoint).vae(dtype)
        return random_vae(args.version, args.size, dtype)

    for shape in map(video_shape, args.shapes):
        reference: Tensor | None = None
        for variant in args.variants:
            try:
                row, latents = measure(make_vae, shape, variant, args.repeats)
            except torch.OutOfMemoryError:
                print(json.dumps({"shape": shape.bucket, "variant": variant, "error": "out of memory"}), flush=True)
                continue
            finally:
                torch._dynamo.reset()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            reference = latents if reference is None else reference
            error = (latents - reference).square().mean().sqrt() / reference.std()
            print(json.dumps(row | {"error": float(f"{error:.2e}")}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
