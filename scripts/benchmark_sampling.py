"""Times sampling against diffusers' LTX2InContextPipeline: python -m scripts.benchmark_sampling FOLDER

FOLDER is a checkpoint in diffusers' layout, which both programs read (`python -m scripts.synthetic_checkpoint --layout
diffusers --size full --device cuda` writes one with random weights). Both make the same clip with the distilled
model's 8 steps and a reference of the same size: once with the reference at full attention, once at `--strength`.
With --sound both sample the audio stream too, and decode it. --memory limits the GPU memory of the process, so that a
large GPU stands for a small one. Prints one JSON line per variant, then how many times as fast as diffusers in bf16
each variant is.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclora_train.core.device import default_device, synced_time
from iclora_train.diffusion.joint_sampler import AudioStream, sample_with_sound
from iclora_train.diffusion.noise_schedule import DISTILLED
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.ltx2.audio.codec import AudioCodec
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.runtime.compile import compile_blocks
from iclora_train.training.memory_plan import GIB

TEXT_TOKENS = 1024
VARIANTS = (
    "'ours' or 'diffusers', each optionally with 'fp8' and 'offload' (weights of blocks in host memory); "
    "'ours eager' is not compiled"
)


@dataclass
class Job:
    """The clip to sample."""

    folder: Path
    width: int
    height: int
    frames: int
    fps: float
    device: torch.device
    dtype: torch.dtype
    sound: bool = False
    weight_offload: int = 0  # blocks of 'ours offload' in host memory
    ends: list[float] = field(default_factory=list)  # end time of each step

    def video(self) -> Tensor:
        """The reference (1,3,F,H,W) in [-1,1]: a pattern of waves."""
        f, h, w = (torch.linspace(0, 6, n) for n in (self.frames, self.height, self.width))
        wave = torch.sin(f[:, None, None] + h[:, None] + 2 * w)
        return wave.expand(1, 3, -1, -1, -1).to(self.device)

    def step(self, *_: Any) -> Any:
        """Called after each step by either program."""
        self.ends.append(synced_time(self.device))
        return {}


def ours(job: Job, options: frozenset[str]) -> Callable[[float], None]:
    """A function that samples the clip with this project, given an attention strength."""
    base = BaseModel.open(str(job.folder))
    offload = job.weight_offload if "offload" in options else 0
    net = base.transformer(job.dtype, job.device, "fp8" in options, offload, audio=job.sound)
    vae = base.vae(job.dtype).to(job.device)
    if "eager" not in options:
        compile_blocks(net)
    text = torch.zeros(1, TEXT_TOKENS, net.config.text_width, device=job.device)
    size = base.geometry.latent_size(job.frames, job.height, job.width)
    codec = AudioCodec.open(base.checkpoint, job.dtype).to(job.device) if job.sound else None

    @torch.inference_mode()
    def make(strength: float) -> None:
        reference = Reference(vae.encode(job.video()), attention_strength=strength)
        clip = (net, text, size, base.geometry, job.fps, SamplerSettings(DISTILLED), [0])
        if codec is None:
            vae.decode(sample(*clip, [reference], on_step=job.step))
            return
        audio_text = torch.zeros(1, TEXT_TOKENS, net.config.audio_text_width, device=job.device)
        stream = AudioStream(codec.geometry, codec.geometry.latent_frames(job.frames, job.fps), audio_text)
        latent, sound = sample_with_sound(*clip, stream, [reference], on_step=job.step)
        vae.decode(latent)
        codec.decode(sound)

    return make


def diffusers_models(job: Job, options: frozenset[str]) -> dict[str, Any]:
    """The models of diffusers' pipeline on the device.

    fp8: layerwise casting, which stores weights in fp8 and casts them layer by layer. offload: every block of the
    transformer waits in host memory (group offload with a copy stream).
    """
    from diffusers import (  # noqa: PLC0415 (slow)
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder, LTX2VocoderWithBWE  # noqa: PLC0415

    def load(kind: Any, name: str) -> Any:
        return kind.from_pretrained(job.folder / name, torch_dtype=job.dtype, local_files_only=True)

    transformer = load(LTX2VideoTransformer3DModel, "transformer")
    if "fp8" in options:
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=job.dtype)
    if "offload" in options:
        host = torch.device("cpu")
        transformer.enable_group_offload(job.device, host, "block_level", num_blocks_per_group=1, use_stream=True)
    else:
        transformer.to(job.device)
    models = {"transformer": transformer, "vae": load(AutoencoderKLLTX2Video, "vae").to(job.device)}
    models["vae"].enable_tiling()
    models["connectors"] = load(LTX2TextConnectors, "connectors").to(job.device)
    models["audio_vae"] = load(AutoencoderKLLTX2Audio, "audio_vae").to(job.device)
    bandwidth_extension = "bwe" in (job.folder / "vocoder" / "config.json").read_text()
    vocoder = LTX2VocoderWithBWE if bandwidth_extension else LTX2Vocoder
    models["vocoder"] = load(vocoder, "vocoder").to(job.device)
    return models


def diffusers_pipeline(job: Job, options: frozenset[str]) -> Callable[[float], None]:
    """The same with diffusers' pipeline. It always samples both streams; without --sound the audio is not decoded."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2InContextPipeline  # noqa: PLC0415 (slow)
    from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition  # noqa: PLC0415

    models = diffusers_models(job, options)
    vae, config = models["vae"], models["connectors"].config
    pipe = LTX2InContextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=None, tokenizer=None, processor=None, **models
    )
    pipe.set_progress_bar_config(disable=True)
    width = config.caption_channels * config.text_proj_in_factor
    embeds = torch.zeros(1, TEXT_TOKENS, width, dtype=job.dtype, device=job.device)
    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.long, device=job.device)
    frames = ((job.video()[0] + 1) / 2).transpose(0, 1).cpu()  # (F,3,H,W) in [0,1]

    @torch.inference_mode()
    def make(strength: float) -> None:
        clip = pipe(
            prompt_embeds=embeds, prompt_attention_mask=mask, height=job.height, width=job.width,
            num_frames=job.frames, frame_rate=job.fps, sigmas=list(DISTILLED[:-1]), guidance_scale=1.0,
            stg_scale=0.0, modality_scale=1.0, guidance_rescale=0.0, audio_guidance_scale=1.0, audio_stg_scale=0.0,
            audio_modality_scale=1.0, audio_guidance_rescale=0.0, output_type="pt" if job.sound else "latent",
            reference_conditions=[LTX2ReferenceCondition(frames)], conditioning_attention_strength=strength,
            callback_on_step_end=job.step,
        ).frames  # fmt: skip
        if not job.sound:
            vae.decode(clip.to(job.dtype))

    return make


def build(variant: str, job: Job) -> Callable[[float], None]:
    """The function that samples a clip with a variant of `--variants`, given an attention strength."""
    program, *options = variant.split()
    return {"ours": ours, "diffusers": diffusers_pipeline}[program](job, frozenset(options))


def measure(variant: str, job: Job, make: Callable[[float], None], strength: float, rounds: int) -> dict[str, Any]:
    """Results of the last of `rounds` clips: total seconds, seconds per step, peak GiB."""
    for _ in range(rounds):
        job.ends.clear()
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(job.device)
        begin = synced_time(job.device)
        make(strength)
        seconds = synced_time(job.device) - begin
    peak = torch.cuda.max_memory_reserved(job.device) / GIB if job.device.type == "cuda" else 0.0
    step = (job.ends[-1] - job.ends[0]) / (len(job.ends) - 1)
    row = {"variant": variant, "strength": strength, "seconds": round(seconds, 3), "seconds_per_step": round(step, 4)}
    row |= {"gib": round(peak, 2), "steps": len(job.ends)}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="960x544x121", metavar="WxHxF")
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=2, help="clips per variant; the last one is timed")
    parser.add_argument(
        "--variants", nargs="+", default=["ours", "diffusers", "ours fp8", "diffusers fp8"], help=VARIANTS
    )
    parser.add_argument("--sound", action="store_true", help="sample and decode the audio stream too")
    parser.add_argument("--memory", type=float, metavar="GIB", help="GPU memory that the process may use")
    parser.add_argument(
        "--weight-offload", type=int, default=32, metavar="N", help="blocks of 'ours offload' on the host"
    )
    args = parser.parse_args()
    device = default_device()
    if args.memory and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.memory * GIB / total)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    job = Job(args.folder, *map(int, args.size.split("x")), fps=24.0, device=device, dtype=dtype)
    job.sound, job.weight_offload = args.sound, args.weight_offload
    rows = []
    for name in args.variants:
        begin, make = time.perf_counter(), build(name, job)
        print(json.dumps({"variant": name, "loading": round(time.perf_counter() - begin, 1)}), flush=True)
        for strength in (1.0, args.strength):
            try:
                rows.append(measure(name, job, make, strength, args.rounds))
            except torch.OutOfMemoryError as error:
                print(json.dumps({"variant": name, "strength": strength, "failed": str(error)[:120]}), flush=True)
        del make
        gc.collect()
        torch.cuda.empty_cache()
    diffusers_seconds = {row["strength"]: row["seconds_per_step"] for row in rows if row["variant"] == "diffusers"}
    for row in rows:
        if row["strength"] in diffusers_seconds:
            ratio = diffusers_seconds[row["strength"]] / row["seconds_per_step"]
            print(
                json.dumps({"variant": row["variant"], "strength": row["strength"], "times as fast": round(ratio, 2)})
            )


if __name__ == "__main__":
    main()
