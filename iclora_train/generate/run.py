"""Generate one video. Only one large model is on the device at a time: text encoder, VAE, transformer, VAE again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iclora_train.adapters.conditions import not_given
from iclora_train.adapters.file import Adapter
from iclora_train.config import require
from iclora_train.config.hydra_app import conf_dir
from iclora_train.config.paths import user_path
from iclora_train.core.console import make_console
from iclora_train.core.device import device_from
from iclora_train.core.progress import progress_bar, status
from iclora_train.core.types import Geometry, VideoShape
from iclora_train.data.prompts import TEMPLATE_KEY, extra_fields, fill_template, with_trigger
from iclora_train.diffusion.guidance import Guidance
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.noise_schedule import DISTILLED_STAGE2
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.generate.adapters import adapted_transformer, open_adapter, published_use
from iclora_train.generate.inputs import Inputs, encode_references
from iclora_train.generate.kept import encode_kept
from iclora_train.generate.output import generation_record, refuse_existing, write_outputs
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.size import SizeRules, video_shape
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.ltx2.build import compile_from_settings, vae_dtype
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.text_features import TextFeatures
from iclora_train.ltx2.vae.upsampler import LatentUpsampler
from iclora_train.ltx2.vae.video_vae import VideoVAE
from iclora_train.media.pixels import to_uint8

Echo = Callable[[str], None]  # prints a line


@dataclass(frozen=True)
class Stage:
    """One run of the sampler: the size in pixels, the sampler's settings, references and kept parts of the video."""

    shape: VideoShape
    sampler: SamplerSettings
    references: Sequence[Reference]
    kept: KeptLatents | None


def generate(settings: GenerateSettings) -> list[Path]:
    """Generate the video and print the progress to stdout. Returns the files that were written.

    ConfigError names the setting or the file that is wrong.
    """
    echo: Echo = make_console(highlight=False, soft_wrap=True).print
    device = device_from("device", settings.device, "device=cpu")
    refuse_existing(settings)
    path = settings.upsampler
    require(
        path is None or user_path(path).is_file(),
        f"upsampler={path} is not a file: give the x2 upsampler's file",
    )
    base = open_base(settings.model)
    adapter = open_adapter(settings, base, echo)
    inputs = Inputs.open(settings)
    rules = SizeRules.of(base.geometry, adapter.downscale, adapter.temporal_scale, stages=2 if path else 1)
    shape, rounded = video_shape(settings, inputs.references[0], rules)
    inputs.kept.check(settings, shape, base.geometry.temporal)
    prompt = full_prompt(settings, adapter, base)
    _print_plan(settings, base, adapter, shape, rounded, prompt, device, echo)
    for line in published_use(settings, shape):
        echo(line)
    for media in inputs.media:
        if media.changes:
            echo(f"{media.path}: {', '.join(media.changes)}")
    text, negative_text = read_text_features(settings, base, prompt, device)
    vae = base.vae(vae_dtype(settings.model.precision, device))
    with status("encoding references"):
        stages = plan_stages(settings, base, inputs, shape, adapter, negative_text, vae.to(device), echo)
    upsampler = LatentUpsampler.open(settings.upsampler, vae) if settings.upsampler else None
    vae.cpu()
    latent = denoise(settings, base, adapter, stages, text, upsampler, echo)
    with status("decoding"):
        frames = to_frames(vae.to(device), latent)
    sigmas = [stage.sampler.sigmas for stage in stages]
    record = generation_record(settings, base, inputs, shape, prompt, sigmas, device.type)
    record["unused_modules"] = len(adapter.audio)
    files = write_outputs(settings, frames, shape.fps, record)
    echo(" ".join(map(str, files)))
    return files


def _print_plan(
    settings: GenerateSettings,
    base: BaseModel,
    adapter: Adapter,
    shape: VideoShape,
    rounded: str,
    prompt: str,
    device: torch.device,
    echo: Echo,
) -> None:
    """Print the size, base and prompt of the video, and hints on the prompt and on tuned settings."""
    template = adapter.metadata.get(TEMPLATE_KEY)
    if template is not None and extra_fields(template):
        echo(f"the adapter was trained on prompts of the form {template!r}: write the prompt in the same form")
    echo(f"{shape.bucket} at {shape.fps:g} fps, {base.name} on {device}: {prompt!r}")
    if rounded:
        echo(f"rounded to sizes that fit the VAE: {rounded}")
    for line in not_given(adapter.metadata, settings.kept_parts()):
        echo(line)
    if settings.task is None and is_tuned(adapter, settings.model.name):
        echo(f"conf={adapter.metadata['task']} would use the sampling settings that were tuned for this adapter's task")


def is_tuned(adapter: Adapter, model: str) -> bool:
    """Whether conf/tuned has settings for the adapter's task on a model."""
    return (conf_dir() / "tuned" / f"{adapter.metadata.get('task')}-{model}.yaml").is_file()


def full_prompt(settings: GenerateSettings, adapter: Adapter, base: BaseModel) -> str:
    """The prompt with the adapter's trigger before it, or filled into the adapter's template, as in training.

    A template with more fields than caption and trigger is not filled: the user writes the prompt in the form of the
    template. ConfigError when an LTX base gets no prompt.
    """
    needs_prompt = "text" not in base.checkpoint.components
    require(
        bool(settings.prompt.strip()) or not needs_prompt,
        f'prompt is not set: {base.name} needs a description of the video, e.g. prompt="a dog runs on a beach"',
    )
    trigger, template = adapter.metadata.get("trigger", ""), adapter.metadata.get(TEMPLATE_KEY)
    if template is None or extra_fields(template) or not settings.prompt.strip():
        return with_trigger(trigger, settings.prompt)
    return fill_template(template, {"caption": settings.prompt, "trigger": trigger})


def read_text_features(
    settings: GenerateSettings, base: BaseModel, prompt: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (1,T,D) of the prompt and of the negative prompt. Features in the cache are not encoded again."""
    cache = TextFeatures(user_path(settings.cache), base)
    prompts = [prompt, settings.negative_prompt] if settings.sample.guidance > 1 else [prompt]
    cache.encode_missing(prompts, device)
    features = [cache.read(caption)[None].to(device) for caption in prompts]
    return features[0], features[-1]


def plan_stages(
    settings: GenerateSettings,
    base: BaseModel,
    inputs: Inputs,
    shape: VideoShape,
    adapter: Adapter,
    negative_text: Tensor,
    vae: VideoVAE,
    echo: Echo,
) -> list[Stage]:
    """One stage, or two stages with an upsampler.

    With two stages, the first samples at half the width and height. The second refines the enlarged latents in the last
    steps of the distilled schedule, without guidance and without references (as in ltx-pipelines and ComfyUI's
    workflows).
    """
    shapes = [shape]
    if settings.upsampler:
        shapes = [replace(shape, height=shape.height // 2, width=shape.width // 2), shape]
    kept = [encode_kept(inputs.kept, settings, s, vae) for s in shapes]
    references = encode_references(inputs, settings, shapes[0], (adapter.downscale, adapter.temporal_scale), vae, echo)
    size = vae.geometry.latent_size(shapes[0].frames, shapes[0].height, shapes[0].width)
    num_blocks = TransformerConfig.from_metadata(base.config["transformer"]).num_layers
    sampler = SamplerSettings.from_config(
        settings.sample, settings.flow, size, num_blocks, negative_text, settings.between, settings.blend
    )
    refine = replace(sampler, sigmas=DISTILLED_STAGE2, guidance=Guidance())
    stages = [Stage(shapes[0], sampler, references, kept[0])]
    return stages + [Stage(shape, refine, (), kept[1]) for shape in shapes[1:]]


def denoise(
    settings: GenerateSettings,
    base: BaseModel,
    adapter: Adapter,
    stages: Sequence[Stage],
    text: Tensor,
    upsampler: LatentUpsampler | None,
    echo: Echo,
) -> Tensor:
    """Latents (1,C,f,h,w) of the last stage. The transformer is loaded here and freed on return."""
    device = text.device
    with status("loading the transformer"):
        transformer, num_audio = adapted_transformer(base, adapter, settings.model, device)
        compile_from_settings(transformer, base, settings.model)
    if num_audio:
        echo(f"{num_audio} audio modules of the adapters are not used: only the video stream is sampled")
    latent = run_stage(transformer, base.geometry, stages[0], text, settings.seed, None, echo)
    for stage in stages[1:]:
        assert upsampler is not None
        start = upsampler.to(device)(latent)
        latent = run_stage(transformer, base.geometry, stage, text, settings.seed, start, echo)
    return latent


def run_stage(
    transformer: Transformer,
    geometry: Geometry,
    stage: Stage,
    text: Tensor,
    seed: int,
    start: Tensor | None,
    echo: Echo,
) -> Tensor:
    """Latents (1,C,f,h,w) of a stage, with a progress bar over its steps."""
    shape, steps = stage.shape, len(stage.sampler.sigmas) - 1
    started = time.perf_counter()
    with progress_bar("sampling", steps, "step") as bar:
        latent = sample(
            transformer,
            text,
            geometry.latent_size(shape.frames, shape.height, shape.width),
            geometry,
            shape.fps,
            stage.sampler,
            [seed],
            stage.references,
            stage.kept,
            start,
            on_step=lambda step: bar.advance(),
        )
    echo(f"{shape.bucket}: {steps} steps of {(time.perf_counter() - started) / steps:.2f} s")
    return latent


@torch.inference_mode()
def to_frames(vae: VideoVAE, latent: Tensor) -> np.ndarray:
    """Latents (1,C,f,h,w) -> uint8 RGB (F,H,W,3)."""
    return to_uint8(vae.decode(latent))[0].cpu().numpy()
