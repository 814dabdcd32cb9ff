"""The choices to measure: each differs from the task's own settings in one thing, or cannot be measured here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any

from eval.clips.classic_filters import makers_within
from eval.clips.resized import Size
from eval.metrics.region import PAINTED
from eval.transfer.settings import SIZE, TransferConfig
from iclora_train.config import Sampling, Task, require
from iclora_train.core.types import Geometry
from iclora_train.data.controls import configured_controls
from iclora_train.diffusion.noise_schedule import DISTILLED, DISTILLED_STAGE2
from iclora_train.generate.size import SizeRules
from iclora_train.ltx2.build import base_dtype

REFERENCE = "task's settings"
DISTILLED_STEPS = len(DISTILLED) - 1
PLACED = ("control.pose", "control.tracks", *PAINTED)  # makers whose record or mask holds for one size only
CHANGED_BY_AVERAGING = ("degrade.", "control.")  # beginnings of makers whose references are others after averaging
KEPT_BY_AVERAGING = ("degrade.grey",)  # averages of grey pixels are grey
DISTILLED_RUN = (
    "the task's settings are those of a distilled model: start from a dev checkpoint and sample.schedule=dev"
)


@dataclass(frozen=True)
class Variant:
    """One choice. axis: the kind of choice. sample, precision, checkpoint: settings `sample`, `model.precision` and
    `model.checkpoint`. size: of the clips, F, H, W. obstacle: why it cannot be measured here; empty if it can. audio:
    whether the audio stream is sampled too."""

    name: str
    axis: str
    sample: Sampling
    precision: str
    checkpoint: str
    size: Size
    adapter_strength: float = 1.0
    effect_strength: float | None = None
    two_stage: bool = False
    obstacle: str = ""
    audio: bool = False

    @property
    def guided_passes(self) -> int:
        """Passes of a step with guidance (`Guidance.passes`, with sound `AudioGuidance.passes`)."""
        sample, scales = self.sample, self.sample.audio_scales
        text, perturbed = sample.guidance > 1, sample.stg_scale > 0
        if not self.audio:
            return 1 + text + perturbed
        modality = (scales.video_modality, scales.sound_modality) != (1, 1)
        return 1 + (text or scales.guidance > 1) + (perturbed or scales.stg_scale > 0) + modality

    @property
    def passes(self) -> list[tuple[int, float, bool]]:
        """Of each stage: passes of the transformer, share of the clip's tokens, and whether it has references."""
        first = self.sample.steps * self.guided_passes
        if not self.two_stage:
            return [(first, 1.0, True)]
        return [(first, 0.25, True), (len(DISTILLED_STAGE2) - 1, 1.0, False)]

    @property
    def weights(self) -> tuple[object, ...]:
        """What the loaded weights depend on: variants with the same ones share a loaded model."""
        return self.checkpoint, self.precision, self.adapter_strength, self.effect_strength, self.two_stage

    def same_as(self, other: Variant) -> bool:
        """Whether both sample the same clips."""
        return replace(self, name="", axis="", obstacle="") == replace(other, name="", axis="", obstacle="")


def reference_variant(config: TransferConfig, size: Size, audio: bool = False) -> Variant:
    """The task's own settings, which every choice is compared with."""
    precision = _resolved(config.model.precision)
    return Variant(REFERENCE, "reference", config.sample, precision, config.model.checkpoint, size, audio=audio)


def variants(config: TransferConfig, size: Size, geometry: Geometry, audio: bool = False) -> list[Variant]:
    """The reference and all choices, without two that would sample the same clips. size: of the windows, F, H, W.
    audio: whether the audio stream is sampled too.

    ConfigError for a file that does not exist.
    """
    for key in ("effect", "distilled", "upsampler"):
        path = getattr(config.transfer, key)
        message = f"transfer.{key}={path} does not exist: give an existing file, or leave it out"
        require(path is None or Path(path).exists(), message)
    reference = reference_variant(config, size, audio)
    chosen = [reference]
    for choice in _choices(config, reference, geometry):
        twin = next((known for known in chosen if not choice.obstacle and choice.same_as(known)), None)
        if twin is None:
            chosen.append(choice)
        elif twin is reference:
            chosen.append(replace(choice, obstacle=f"the same as the {REFERENCE}"))
    return chosen


def _resolved(precision: str) -> str:
    """`fp32`, `bf16` or `fp8`: what model.precision means on this machine."""
    return precision if precision == "fp8" else {"float32": "fp32"}.get(str(base_dtype(precision))[6:], "bf16")


def _choices(config: TransferConfig, reference: Variant, geometry: Geometry) -> Iterator[Variant]:
    settings = config.transfer
    yield from (_schedule(name, config, reference, geometry) for name in settings.schedules)
    yield from (_size(text, config, reference, geometry) for text in settings.sizes)
    for steps in settings.steps:
        if reference.sample.schedule == "distilled":
            obstacle = f"the distilled schedule has {DISTILLED_STEPS} steps"
            yield replace(reference, name=f"{steps} steps", axis="steps", obstacle=obstacle)
        else:
            yield replace(reference, name=f"{steps} steps", axis="steps", sample=replace(reference.sample, steps=steps))
    for precision in settings.precisions:
        yield replace(reference, name=precision, axis="precision", precision=precision)
    for strength in settings.adapter_strengths:
        name = f"adapter {strength:g}"
        yield replace(reference, name=name, axis="adapter strength", adapter_strength=strength)
    yield from _effects(config, reference)


def _schedule(name: str, config: TransferConfig, reference: Variant, geometry: Geometry) -> Variant:
    settings, two_stage = config.transfer, name == "two_stage"
    if name == "dev":
        obstacle = "" if reference.sample.schedule != "distilled" else DISTILLED_RUN
        sample = replace(reference.sample, schedule="dev")
        return replace(reference, name="dev", axis="schedule", sample=sample, obstacle=obstacle)
    variant = replace(
        reference,
        name="two stages" if two_stage else "distilled",
        axis="schedule",
        sample=replace(reference.sample, schedule="distilled", steps=DISTILLED_STEPS, guidance=1.0, stg_scale=0.0),
        checkpoint=settings.distilled or reference.checkpoint,
        two_stage=two_stage,
    )
    if not two_stage:
        return variant
    if settings.upsampler is None:
        return replace(variant, obstacle="it needs transfer.upsampler=<file>, the x2 latent upsampler of the base")
    return replace(variant, obstacle=_misfit(reference.size, _rules(config, geometry, stages=2)))


def _rules(config: TransferConfig, geometry: Geometry, stages: int) -> SizeRules:
    parts = config.task.for_references()
    downscale = lcm(*(part.reference_downscale for part in parts))
    return SizeRules.of(geometry, downscale, lcm(*(part.reference_temporal_scale for part in parts)), stages)


def _misfit(size: Size, rules: SizeRules) -> str:
    """Why the VAE, the references or the stages cannot have this size; empty if they can."""
    sides = dict(zip(("frames", "height", "width"), size, strict=True))
    wrong = [key for key, side in sides.items() if rules.round_down(key, side) != side]
    fitting = {"frames": f"{rules.temporal}k+1", "height": f"a multiple of {rules.spatial}"}
    fitting["width"] = fitting["height"]
    return "; ".join(f"{key} {sides[key]} is not {fitting[key]}" for key in wrong)


def _size(text: str, config: TransferConfig, reference: Variant, geometry: Geometry) -> Variant:
    frames, height, width = reference.size
    rules, match = _rules(config, geometry, stages=1), SIZE.fullmatch(text)
    if match is None:
        share = float(text)
        height, width = (rules.round_down("height", round(share * side)) for side in (height, width))
    else:
        width, height, frames = int(match[1]), int(match[2]), int(match[3] or frames)
    size = (frames, height, width)
    larger = any(side > stored for side, stored in zip(size, reference.size, strict=True))
    obstacle = _misfit(size, rules)
    if larger:
        stored = "{2}x{1}x{0}".format(*reference.size)
        obstacle = f"the windows have {stored}: prepare larger ones (data.width, data.height, data.frames)"
    elif size != reference.size:
        obstacle = obstacle or _unlike_prepared(config.task, size, reference.size)
    return replace(reference, name=f"{width}x{height}x{frames}", axis="size", size=size, obstacle=obstacle)


def _unlike_prepared(task: Task, size: Size, stored: Size) -> str:
    """Why pairs reduced from the size `stored` are not those that would be prepared at `size`; empty if they are.

    Averaging removes interlaced lines, noise and thin edges and makes blur narrower, so a loss would be one of the
    degradation, not of the adapter. Fewer frames leave every picture as it is.
    """
    chosen_from = [choice for part in task.for_references() for choice in _makers_of(part)]
    makers = list(dict.fromkeys(name for maker, args in chosen_from for name, _ in makers_within(maker, args)))
    remedy = f"prepare windows of {size[2]}x{size[1]}x{size[0]}"
    if placed := [maker for maker in makers if maker in PLACED]:
        return f"pairs of {', '.join(placed)} hold for the prepared size: {remedy}"
    changed = [m for m in makers if m.startswith(CHANGED_BY_AVERAGING) and m not in KEPT_BY_AVERAGING]
    if size[1:] == stored[1:] or not changed:
        return ""
    return f"averaging down changes the references of {', '.join(changed)}: {remedy}"


def _makers_of(task: Task) -> list[tuple[str, Mapping[str, Any]]]:
    """The maker of a reference with its arguments; of a union all that it chooses from."""
    return [(c.maker, c.args) for c in configured_controls(task)] or [(task.maker, task.maker_args)]


def _effects(config: TransferConfig, reference: Variant) -> Iterator[Variant]:
    """The effect LoRA at every strength beside the adapter at every strength."""
    settings = config.transfer
    if settings.effect is None:
        obstacle = "it needs transfer.effect=<file>, a LoRA to use beside the adapter"
        yield replace(reference, name="effect LoRA", axis="effect", effect_strength=1.0, obstacle=obstacle)
        return
    for effect in settings.effect_strengths:
        for adapter in settings.adapter_strengths:
            name = f"effect {effect:g}, adapter {adapter:g}"
            yield replace(reference, name=name, axis="effect", effect_strength=effect, adapter_strength=adapter)
