"""The runs of the sampler that make one window of a video: one stage, or two with an upsampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.adapters.file import Adapter
from iclora_train.config import require
from iclora_train.core.progress import ProgressBar
from iclora_train.core.types import AudioGeometry, Geometry, VideoShape
from iclora_train.diffusion.guidance import AudioGuidance, Guidance
from iclora_train.diffusion.joint_sampler import AudioStream, sample_with_sound
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.noise_schedule import DISTILLED_STAGE2
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.diffusion.tiles import Tile
from iclora_train.generate.audio import AudioPlan
from iclora_train.generate.guides import common_factor, reference_layouts
from iclora_train.generate.input_media import fit_frame
from iclora_train.generate.inputs import Inputs, encode_references
from iclora_train.generate.kept import encode_frames, encode_kept
from iclora_train.generate.prompts import PromptFeatures
from iclora_train.generate.settings import GenerateSettings
from iclora_train.generate.tiling import tiles_for
from iclora_train.generate.windows import Window
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import Transformer, TransformerConfig
from iclora_train.ltx2.vae.video_vae import VideoVAE


class Latents(NamedTuple):
    """What a stage samples: the video (1,C,f,h,w), and its sound (1,C,l,m) where the audio stream is sampled."""

    video: Tensor
    sound: Tensor | None


@dataclass(frozen=True)
class StageSound:
    """The audio stream of a stage: l = `frames` latent frames. clean (1,C,l,m): the sound that the model gets.

    made: the sound of the file is that of the model. reference: latents (1,C,l',m) of the audio reference, and its
    placement.
    """

    geometry: AudioGeometry
    frames: int
    clean: Tensor | None = None
    made: bool = False
    reference: tuple[Tensor, str] | None = None


@dataclass(frozen=True)
class Stage:
    """One run of the sampler: the window's size in pixels, the sampler's settings, references and kept parts.

    strength: of the adapter, relative to `adapter_strength`. tiles: none if the picture is sampled as a whole. sound:
    None if the video stream is sampled alone.
    """

    shape: VideoShape
    sampler: SamplerSettings
    references: Sequence[Reference]
    kept: KeptLatents | None
    strength: float = 1.0
    tiles: Sequence[Tile] = ()
    sound: StageSound | None = None

    @property
    def steps(self) -> int:
        """Steps of the sampler; 0 where all is kept, unless its sound is made."""
        makes_sound = self.sound is not None and self.sound.made
        return 0 if self.keeps_all and not makes_sound else len(self.sampler.sigmas) - 1

    @property
    def keeps_all(self) -> bool:
        """Whether the whole video is kept."""
        return self.kept is not None and bool(self.kept.mask.all())

    def with_carried(self, frames: np.ndarray, vae: VideoVAE) -> Stage:
        """The stage of a window that begins with these frames (n,H,W,3) of the window before."""
        size = (self.shape.height, self.shape.width)
        with torch.inference_mode():
            latent = encode_frames(np.stack([fit_frame(frame, size, "crop") for frame in frames]), vae)
        kept = self.kept or KeptLatents.none(1, vae.channels, vae.geometry.latent_size(self.shape.frames, *size))
        return replace(self, kept=kept.with_span(latent, 0))


def plan_stages(
    settings: GenerateSettings,
    base: BaseModel,
    inputs: Inputs,
    shape: VideoShape,
    windows: Sequence[Window],
    adapter: Adapter,
    negative: PromptFeatures,
    vae: VideoVAE,
    audio: AudioPlan,
) -> list[list[Stage]]:
    """The stages of every window of a video of `shape`. ConfigError if `regenerate` covers nothing in any of them."""
    sounds, reference = audio.source_latents(base, shape, windows), audio.encoded_reference(base, shape)
    plans = []
    for window, clean in zip(windows, sounds, strict=True):
        sound = None
        if audio.geometry is not None:
            frames = audio.geometry.latent_frames(window.frames, shape.fps)
            sound = StageSound(audio.geometry, frames, clean, audio.mode == "generate", reference)
        plans.append(_plan_window(settings, base, inputs, shape, window, adapter, negative, vae, sound))
    require(
        not (settings.regenerate or settings.regenerate_frames)
        or not all(stage.keeps_all for stages in plans for stage in stages),
        f"regenerate={settings.regenerate} covers no part of the video: white is made anew",
    )
    return plans


def _plan_window(
    settings: GenerateSettings,
    base: BaseModel,
    inputs: Inputs,
    shape: VideoShape,
    window: Window,
    adapter: Adapter,
    negative: PromptFeatures,
    vae: VideoVAE,
    sound: StageSound | None,
) -> list[Stage]:
    """The stages of a window of a video of `shape`: one, or two with an upsampler. sound: of the first stage.

    With two stages, the first samples at half the width and height. The second refines the enlarged latents in the last
    steps of the distilled schedule, without guidance, and without references unless `refine_reference` is set (as in
    ltx-pipelines and ComfyUI's workflows). It refines the sound too, as ltx-pipelines' pipeline for IC-LoRAs does.
    """
    shapes = [shape]
    if settings.upsampler:
        shapes = [replace(shape, height=shape.height // 2, width=shape.width // 2), shape]
    kept = [encode_kept(inputs.kept, settings, s, window, vae) for s in shapes]

    def references(shape: VideoShape) -> list[Reference]:
        return encode_references(inputs, settings, shape, window, adapter, vae)

    factor = common_factor(reference_layouts(settings, adapter))
    tiles = [tiles_for(settings, s, vae.geometry, factor) for s in shapes]
    size = vae.geometry.latent_size(window.frames, shapes[0].height, shapes[0].width)
    num_blocks = TransformerConfig.from_metadata(base.config["transformer"]).num_layers
    sampler = SamplerSettings.from_config(
        settings.sample,
        settings.flow,
        tiles[0][0].size(size) if tiles[0] else size,
        num_blocks,
        negative.video,
        settings.between,
        settings.blend,
    )
    if sound is not None:
        sampler = replace(sampler, audio=AudioGuidance.from_config(settings.sample, negative.audio))
    first = replace(shapes[0], frames=window.frames)
    stage = Stage(first, sampler, references(shapes[0]), kept[0], 1.0, tiles[0], sound)
    if not settings.upsampler:
        return [stage]
    refine = replace(sampler, sigmas=DISTILLED_STAGE2, guidance=Guidance(), audio=AudioGuidance())
    again = references(shape) if settings.refine_reference else ()
    if sound is not None and not settings.refine_reference:
        sound = replace(sound, reference=None)
    full = replace(shape, frames=window.frames)
    return [stage, Stage(full, refine, again, kept[1], settings.refine_strength, tiles[1], sound)]


def run_stage(
    transformer: Transformer,
    geometry: Geometry,
    stage: Stage,
    text: PromptFeatures,
    seed: int,
    start: Latents | None,
    bar: ProgressBar,
) -> Latents:
    """The latents of a stage. What is kept as a whole is not sampled. Each step advances the bar.

    start: enlarged latents of the stage before, and its sound.
    """
    shape, sound = stage.shape, stage.sound
    if stage.kept is not None and stage.steps == 0:
        return Latents(stage.kept.latent.to(text.video.device), None)
    lora.set_strength(transformer, stage.strength)
    size = geometry.latent_size(shape.frames, shape.height, shape.width)
    arguments = (transformer, text.video, size, geometry, shape.fps, stage.sampler, [seed])
    begin = None if start is None else start.video

    def advance(step: int) -> None:
        bar.advance()

    before = None if start is None else start.sound
    if sound is None or (begin is not None and before is None and sound.clean is None):
        video = sample(*arguments, stage.references, stage.kept, begin, on_step=advance, tiles=stage.tiles)
        return Latents(video, None)
    assert text.audio is not None
    reference, placement = sound.reference or (None, "av2av")
    audio = AudioStream(
        sound.geometry, sound.frames, text.audio, sound.clean, before, reference=reference, placement=placement
    )
    return Latents(*sample_with_sound(*arguments, audio, stage.references, stage.kept, begin, on_step=advance))
