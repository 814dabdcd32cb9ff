"""The whole of a video on one page. One large model at a time: text encoder, VAE, transformer, and the VAE again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from iclora_train.adapters.file import Adapter
from iclora_train.config import require
from iclora_train.config.hydra_app import conf_dir
from iclora_train.core.device import device_from
from iclora_train.core.progress import progress_bar, status
from iclora_train.core.types import Geometry, VideoShape
from iclora_train.data.pixels import to_uint8
from iclora_train.data.prompts import TEMPLATE_KEY, extra_fields, fill_template, with_trigger
from iclora_train.diffusion.guidance import Guidance, guidance_from
from iclora_train.diffusion.noise_schedule import DISTILLED_STAGE2, make_sigmas
from iclora_train.diffusion.sampler import Reference, sample
from iclora_train.generate.adapters import adapted_transformer, open_adapter
from iclora_train.generate.inputs import Inputs, encode_first_frame, encode_references
from iclora_train.generate.output import generation_record, refuse_existing, write_outputs
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.size import SizeRules, video_shape
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.ltx2.build import compile_from_settings, vae_dtype
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.text_features import TextFeatures
from iclora_train.ltx2.vae.upsampler import LatentUpsampler
from iclora_train.ltx2.vae.video_vae import VideoVAE

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One pass of the sampler: the size in pixels, noise levels, and what is given."""

    shape: VideoShape
    sigmas: Sequence[float]
    references: Sequence[Reference]
    first_frame: Tensor | None  # (1,C,1,h,w)


def generate(settings: GenerateSettings) -> list[Path]:
    """Make the video that the settings describe and tell on stdout how it goes; the files that were written.

    ConfigError names the setting or file that is wrong.
    """
    say: Echo = Console(highlight=False, soft_wrap=True, markup=False).print
    device = device_from("device", settings.device, "device=cpu")
    refuse_existing(settings)
    up = settings.upsampler
    require(up is None or Path(up).expanduser().is_file(), f"upsampler={up} is no file: give the x2 upsampler's file")
    base = open_base(settings.model)
    adapter = open_adapter(settings, base)
    inputs = Inputs.open(settings)
    units = SizeRules.of(
        base.geometry, adapter.downscale, adapter.temporal_scale, stages=2 if settings.upsampler else 1
    )
    shape, rounded = video_shape(settings, inputs.references[0], units)
    prompt = full_prompt(settings, adapter, base)
    template = adapter.metadata.get(TEMPLATE_KEY)
    if template is not None and extra_fields(template):
        say(f"the adapter was trained on prompts of the form {template!r}: write yours likewise")
    say(f"{shape.bucket} at {shape.fps:g} fps, {base.name} on {device}: {prompt!r}")
    if rounded:
        say(f"rounded to what the VAE takes: {rounded}")
    if settings.task is None and is_tuned(adapter, settings.model.name):
        say(f"conf={adapter.metadata['task']} samples with the settings that were tuned for this adapter's task")
    text, negative = read_text_features(settings, base, prompt, device)
    vae = base.vae(vae_dtype(settings.model.precision, device))
    with status("encoding references"):
        stages = plan_stages(settings, inputs, shape, adapter, vae.to(device), say)
    upsampler = LatentUpsampler.open(settings.upsampler, vae) if settings.upsampler else None
    vae.cpu()
    latent = denoise(settings, base, adapter, stages, text, negative, upsampler, say)
    with status("decoding"):
        frames = to_frames(vae.to(device), latent)
    made = generation_record(settings, base, inputs, shape, prompt, [stage.sigmas for stage in stages], device.type)
    files = write_outputs(settings, frames, shape.fps, made)
    say(" ".join(map(str, files)))
    return files


def is_tuned(adapter: Adapter, model: str) -> bool:
    """Whether conf/tuned has settings for the adapter's task on a model."""
    return (conf_dir() / "tuned" / f"{adapter.metadata.get('task')}-{model}.yaml").is_file()


def full_prompt(settings: GenerateSettings, adapter: Adapter, base: BaseModel) -> str:
    """The prompt behind the adapter's trigger, or in its template, as captions are in training. A template that asks
    for more than a caption is the user's to follow. ConfigError when a real base has no prompt."""
    needed = "text" not in base.checkpoint.components
    require(
        bool(settings.prompt.strip()) or not needed,
        f'prompt is not set: {base.name} follows a description of the video, e.g. prompt="a dog runs on a beach"',
    )
    trigger, template = adapter.metadata.get("trigger", ""), adapter.metadata.get(TEMPLATE_KEY)
    if template is None or extra_fields(template) or not settings.prompt.strip():
        return with_trigger(trigger, settings.prompt)
    return fill_template(template, {"caption": settings.prompt, "trigger": trigger})


def read_text_features(
    settings: GenerateSettings, base: BaseModel, prompt: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (1,T,D) of the prompt and of the negative prompt, from the cache where they are in it."""
    texts = TextFeatures(Path(settings.cache).expanduser(), base)
    wanted = [prompt, settings.negative_prompt] if settings.sample.guidance > 1 else [prompt]
    texts.encode_missing(wanted, device)
    features = [texts.read(caption)[None].to(device) for caption in wanted]
    return features[0], features[-1]


def plan_stages(
    settings: GenerateSettings, inputs: Inputs, shape: VideoShape, adapter: Adapter, vae: VideoVAE, say: Echo
) -> list[Stage]:
    """One stage; or, with an upsampler, one of half the size and one that refines its enlarged latents in the distilled
    model's last steps, without guidance and without references (as ltx-pipelines and ComfyUI's workflows do).
    """
    shapes = [shape]
    if settings.upsampler:
        shapes = [replace(shape, height=shape.height // 2, width=shape.width // 2), shape]
    given = inputs.first_frame
    firsts = [None if given is None else encode_first_frame(given, s, settings.fit, vae) for s in shapes]
    references = encode_references(inputs, settings, shapes[0], (adapter.downscale, adapter.temporal_scale), vae, say)
    tokens = int(np.prod(vae.geometry.latent_size(shapes[0].frames, shapes[0].height, shapes[0].width)))
    first = Stage(shapes[0], make_sigmas(settings.sample, settings.flow, tokens), references, firsts[0])
    return [first] + [Stage(shape, DISTILLED_STAGE2, (), firsts[1]) for shape in shapes[1:]]


def denoise(
    settings: GenerateSettings,
    base: BaseModel,
    adapter: Adapter,
    stages: Sequence[Stage],
    text: Tensor,
    negative: Tensor,
    upsampler: LatentUpsampler | None,
    say: Echo,
) -> Tensor:
    """Latents (1,C,f,h,w) of the last stage. The transformer is loaded here, and gone on return."""
    device = text.device
    with status("loading the transformer"):
        transformer, passed = adapted_transformer(base, adapter, settings.model, device)
        compile_from_settings(transformer, base, settings.model)
    if passed:
        say(f"{passed} audio modules of the adapters are not used: the video stream alone is sampled")
    guidance = guidance_from(settings.sample, negative, transformer.config.num_layers)
    latent = run_stage(settings, transformer, base.geometry, stages[0], text, guidance, None, say)
    for stage in stages[1:]:
        assert upsampler is not None
        larger = upsampler.to(device)(latent)
        latent = run_stage(settings, transformer, base.geometry, stage, text, Guidance(), larger, say)
    return latent


def run_stage(
    settings: GenerateSettings,
    transformer: Transformer,
    geometry: Geometry,
    stage: Stage,
    text: Tensor,
    guidance: Guidance,
    start: Tensor | None,
    say: Echo,
) -> Tensor:
    """Latents (1,C,f,h,w) of a stage, with a bar over its steps."""
    shape, steps = stage.shape, len(stage.sigmas) - 1
    started = time.perf_counter()
    with progress_bar("sampling", steps, "step") as bar:
        latent = sample(
            transformer,
            text,
            geometry.latent_size(shape.frames, shape.height, shape.width),
            geometry,
            shape.fps,
            stage.sigmas,
            [settings.seed],
            stage.references,
            stage.first_frame,
            guidance,
            settings.between,
            settings.blend,
            start,
            on_step=lambda step: bar.advance(),
        )
    say(f"{shape.bucket}: {steps} steps of {(time.perf_counter() - started) / steps:.2f} s")
    return latent


@torch.inference_mode()
def to_frames(vae: VideoVAE, latent: Tensor) -> np.ndarray:
    """Latents (1,C,f,h,w) -> uint8 RGB (F,H,W,3)."""
    return to_uint8(vae.decode(latent))[0].cpu().numpy()
