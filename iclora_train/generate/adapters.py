"""Open the adapters of a video, check them against the base, combine them and load them into the transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from iclora_train.adapters import lora
from iclora_train.adapters.algebra import combine
from iclora_train.adapters.base_spec import BaseSpec, require_same_base
from iclora_train.adapters.check import adapter_notes
from iclora_train.adapters.convert import ReferenceFactors, import_adapter
from iclora_train.adapters.file import Adapter
from iclora_train.adapters.fuse import fuse
from iclora_train.adapters.metadata import declares_factor
from iclora_train.adapters.official import completed, recognise, usage_notes
from iclora_train.config import Model, require
from iclora_train.config.official import Match
from iclora_train.config.paths import user_path
from iclora_train.core.types import VideoShape
from iclora_train.generate.settings import GenerateSettings
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.build import build_transformer
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.weights.safetensors_header import read_header


def open_adapter(settings: GenerateSettings, base: BaseModel, echo: Callable[[str], None]) -> Adapter:
    """Open all adapters and combine them, at their strengths, into one.

    Its metadata has the reference factors and all triggers. Official files declare neither their base nor a factor of
    1: `echo` gets a line that says what is assumed, or taken from conf/official. ConfigError when a file does not
    exist, is not an adapter or fits another base, and when the reference factors of the adapters differ.
    """
    paths = [user_path(name) for name in settings.adapter]
    for path in paths:
        require(path.is_file(), f"adapter={path} does not exist: give an adapter's .safetensors file")
    spec = BaseSpec.open(settings.model.checkpoint)
    metadata = [read_header(path).metadata for path in paths]
    known = [recognise(path, entries) for path, entries in zip(paths, metadata, strict=True)]
    declaring = [
        path
        for path, entries, match in zip(paths, metadata, known, strict=True)
        if declares_factor(completed(entries, match))
    ]
    adapters = []
    for path, entries, match in zip(paths, metadata, known, strict=True):
        factors = ReferenceFactors()
        if path not in declaring:
            factors = ReferenceFactors(reference=False) if declaring else ReferenceFactors(downscale=1)
            kind = "a plain LoRA" if declaring else "an IC-LoRA whose reference has the size of the video"
            echo(f"{path} declares no reference factor: it is used as {kind} (`convert --downscale` adds one)")
        for note in adapter_notes(path, entries, match, spec):
            echo(f"{path} {note}")
        adapter = import_adapter(path, spec, factors)
        require_same_base(path, adapter, base.family, base.version, base.fingerprint if base.embedded else None)
        adapters.append(adapter)
    return combine(list(zip(adapters, settings.adapter_strength, strict=True)))


def adapted_transformer(
    base: BaseModel,
    adapter: Adapter,
    model: Model,
    device: torch.device,
    separate: bool = False,
    audio: bool = False,
) -> tuple[Transformer, int]:
    """The transformer with the adapter, and the number of the adapter's modules that are not used: without `audio`
    those of the audio stream and of the attention between the streams.

    The adapter is merged into the weights. It stays a separate LoRA path with fp8 weights, whose rounding would lose
    part of the adapter; with weight offload, because offloaded weights are read-only; and if `separate`, so that its
    strength can change (`lora.set_strength`).
    """
    transformer = build_transformer(base, model, device, audio)
    if model.precision != "fp8" and not model.weight_offload and not separate:
        return transformer, fuse(transformer, [(adapter, 1.0)])
    num_audio = lora.load_adapter(transformer, adapter)
    return transformer.to(device).eval(), num_audio


def recognised(name: str) -> Match | None:
    """The published adapter that the file of a setting is."""
    path = user_path(name)
    return recognise(path, read_header(path).metadata)


def published_use(settings: GenerateSettings, shape: VideoShape) -> list[str]:
    """Where the settings differ from those that are published for an official adapter."""
    return [
        line
        for name, strength in zip(settings.adapter, settings.adapter_strength, strict=True)
        if (match := recognised(name)) is not None
        for line in usage_notes(match.official, settings.sample, strength, shape.width, shape.height, shape.fps)
    ]
