"""Generate one video. Only one large model is on the device at a time: text encoder, VAE, transformer, VAE again.

A video in windows is the exception: between two windows, the VAE works next to the transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lcm
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iclora_train.adapters.conditions import not_given, other_mode
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.sound_context import sound_not_given
from iclora_train.config import require
from iclora_train.config.hydra_app import conf_dir
from iclora_train.config.paths import user_path
from iclora_train.core.console import make_console
from iclora_train.core.device import device_from, synced_time
from iclora_train.core.progress import progress_bar, status
from iclora_train.core.types import VideoShape
from iclora_train.data.prompts import TEMPLATE_KEY, extra_fields
from iclora_train.generate.adapters import adapted_transformer, open_adapter, published_use
from iclora_train.generate.audio import AudioPlan, plan_audio
from iclora_train.generate.guides import (
    common_factor,
    missing_references,
    reference_layouts,
    unusual_places,
    with_trained_strengths,
)
from iclora_train.generate.inputs import Inputs, check_references, require_references
from iclora_train.generate.output import finished_windows, generation_record, refuse_existing, write_outputs
from iclora_train.generate.prompts import PromptFeatures, describe_prompts, read_text_features, window_prompts
from iclora_train.generate.seams import measure_seams
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.signals import with_signals
from iclora_train.generate.size import SizeRules, video_shape
from iclora_train.generate.stages import Latents, Stage, plan_stages, run_stage
from iclora_train.generate.tiling import describe_tiles, tiles_for
from iclora_train.generate.video import Video
from iclora_train.generate.windows import Window, describe_windows, plan_windows
from iclora_train.ltx2.base_model import BaseModel, open_base
from iclora_train.ltx2.build import compile_from_settings, vae_dtype
from iclora_train.ltx2.vae.upsampler import LatentUpsampler

Echo = Callable[[str], None]  # prints a line


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
    settings = with_signals(settings, base.geometry, echo)
    require_references(settings, adapter)
    layouts = reference_layouts(settings, adapter)
    settings = with_trained_strengths(settings, adapter)
    inputs = Inputs.open(settings)
    factors = common_factor(layouts), lcm(*(layout.temporal_scale for layout in layouts))
    rules = SizeRules.of(base.geometry, *factors, stages=2 if path else 1)
    shape, rounded = video_shape(settings, inputs.size_source(settings, adapter), rules)
    windows = plan_windows(settings, shape.frames, rules, base.geometry.temporal)
    inputs.kept.check(settings, shape, base.geometry.temporal)
    prompts = window_prompts(settings, adapter, base, windows)
    tiles = tiles_for(settings, shape, base.geometry, factors[0])
    audio = plan_audio(settings, base, adapter, inputs, shape, windows, tiles, device)
    _print_plan(settings, base, adapter, shape, rounded, prompts[0], device, echo)
    if len(windows) > 1:
        for line in [describe_windows(windows), *describe_prompts(prompts, windows)]:
            echo(line)
    if tiles:
        echo(describe_tiles(tiles, shape, base.geometry))
    echo(audio.line)
    check_references(inputs, layouts, shape, base.geometry.temporal, len(windows) > 1, echo)
    for line in published_use(settings, shape):
        echo(line)
    for media in inputs.media:
        if media.changes:
            echo(f"{media.path}: {', '.join(media.changes)}")
    files = _make_video(settings, base, adapter, inputs, shape, windows, prompts, audio, device, echo)
    echo(" ".join(map(str, files)))
    return files


def _make_video(
    settings: GenerateSettings,
    base: BaseModel,
    adapter: Adapter,
    inputs: Inputs,
    shape: VideoShape,
    windows: Sequence[Window],
    prompts: Sequence[str],
    audio: AudioPlan,
    device: torch.device,
    echo: Echo,
) -> list[Path]:
    """Encode, sample, decode and write. Returns the files that were written."""
    texts, negative = read_text_features(settings, base, prompts, device, audio.geometry is not None)
    vae = base.vae(vae_dtype(settings.model.precision, device)).to(device)
    with status("encoding references"):
        plans = plan_stages(settings, base, inputs, shape, windows, adapter, negative, vae, audio)
    upsampler = LatentUpsampler.open(settings.upsampler, vae) if settings.upsampler else None
    vae.cpu()
    sigmas = [stage.sampler.sigmas for stage in plans[0]]
    record = generation_record(settings, base, inputs, shape, prompts, sigmas, device.type)
    record["unused_modules"] = 0 if audio.geometry is not None else len(adapter.audio)
    record["audio"] = {"mode": audio.mode, "stream": audio.geometry is not None}
    record["windows"] = [[window.start, window.end] for window in windows]
    video = Video(vae, device, windows, finished_windows(settings, record) if len(windows) > 1 else None)
    sound: Tensor | None = None
    if video.finished < len(windows):
        latents = denoise(settings, base, adapter, plans, video, texts, upsampler, echo)
        with status("decoding"):
            whole = inputs.kept.whole(settings, shape)
            video.add(latents.video) if whole is None else video.add_frames(whole)
            sound = latents.sound
    along = (media for media, layout in inputs.along(settings, adapter) if layout.temporal_scale == 1)
    record["seams"] = measure_seams(video.frames, windows, next(along, None), shape, echo)
    track = audio.track(base, shape, sound, device)
    record["audio"]["rate"] = track and track[1].rate
    files = write_outputs(settings, video.frames, shape.fps, record, track)
    video.forget()
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
    places = unusual_places(settings, adapter, shape.frames)
    for line in [*missing_references(settings, adapter), *places, *not_given(adapter.metadata, settings.kept_parts())]:
        echo(line)
    inputs_set = {key for key in ("audio_reference", "source") if getattr(settings, key) is not None}
    for line in sound_not_given(adapter.metadata, inputs_set):
        echo(line)
    for line in other_mode(adapter.metadata, settings.regenerate_mode) if settings.regenerate else ():
        echo(line)
    if settings.task is None and is_tuned(adapter, settings.model.name):
        echo(f"conf={adapter.metadata['task']} would use the sampling settings that were tuned for this adapter's task")


def is_tuned(adapter: Adapter, model: str) -> bool:
    """Whether conf/tuned has settings for the adapter's task on a model."""
    return (conf_dir() / "tuned" / f"{adapter.metadata.get('task')}-{model}.yaml").is_file()


def denoise(
    settings: GenerateSettings,
    base: BaseModel,
    adapter: Adapter,
    plans: Sequence[Sequence[Stage]],
    video: Video,
    texts: Sequence[PromptFeatures],
    upsampler: LatentUpsampler | None,
    echo: Echo,
) -> Latents:
    """Sample the windows that the video does not have yet; `plans` has the stages of every window, `texts` the
    features of its prompt.

    Returns the latents of the last window, all others are in the video. The transformer is loaded here once
    for all windows and freed on return.
    """
    device, latents = texts[0].video.device, None
    with status("loading the transformer"):
        separate, audio = settings.refine_strength != 1, plans[0][0].sound is not None
        transformer, num_audio = adapted_transformer(base, adapter, settings.model, device, separate, audio)
        compile_from_settings(transformer, base, settings.model)
    if num_audio:
        echo(f"{num_audio} audio modules of the adapters are not used: only the video stream is sampled")
    if video.finished:
        echo(f"{video.finished} of {len(video.windows)} windows were finished by an earlier run")
    seconds: dict[str, list[float]] = {}
    total = [sum(stage.steps for stage in stages) for stages in plans]
    with progress_bar("sampling", sum(total), "step") as bar:
        bar.skip(sum(total[: video.finished]))
        for window, stages, text in list(zip(video.windows, plans, texts, strict=True))[video.finished :]:
            if latents is not None:
                video.add(latents.video)
                latents = None
            for stage in video.begin(window, stages):
                start = None
                if latents is not None and upsampler is not None:
                    start = Latents(upsampler.to(device)(latents.video), latents.sound)
                started = synced_time(device)
                latents = run_stage(transformer, base.geometry, stage, text, settings.seed, start, bar)
                steps = seconds.setdefault(stage.shape.bucket, [])
                steps += [(synced_time(device) - started) / max(stage.steps, 1)] * stage.steps
    for bucket, steps in seconds.items():
        echo(f"{bucket}: {len(steps)} steps of {np.mean(steps or [0.0]):.2f} s")
    assert latents is not None
    return latents
