"""Validation clips: a few val clips are sampled during training, with the sampler of generation.

Where both streams are trained (model.audio=on), both are sampled, with the audio reference of the clip, and the files
have the sound that was made. The clips are spread over the ranks. Each clip is sampled by itself, so neither the files
nor the metrics depend on the number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor

from iclora_train.config import Config
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.ranks import global_rank, world_size
from iclora_train.core.types import AudioGeometry, Sound
from iclora_train.data.batch import Batch
from iclora_train.data.recordings import partners_of_others
from iclora_train.diffusion.audio_inputs import require_sound
from iclora_train.diffusion.clean_cells import CleanCells, kept_of_target
from iclora_train.diffusion.guidance import AudioGuidance
from iclora_train.diffusion.joint_sampler import AudioStream, sample_with_sound
from iclora_train.diffusion.kept_latents import KeptLatents
from iclora_train.diffusion.sampler import Reference, SamplerSettings, sample
from iclora_train.diffusion.training_inputs import reference_start, tasks_of
from iclora_train.ltx2.audio.codec import AudioCodec, has_audio
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.media.pixels import to_uint8
from iclora_train.media.shard_clip import encode_clip
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.preemption import gather_work
from iclora_train.training.validation import ValidationBatches
from iclora_train.training.validation_metrics import ClipPsnr, clip_row, psnr

CLIPS = 4  # validation clips that are sampled


class ValidationClips(Callback):
    """Samples a few val clips every validation.clips_every steps and at the end, and writes reference, output and
    target side by side. `callbacks.MetricsRecorder` calls `sample_clips`, so that the metrics of the clips are in the
    row of their step.
    """

    def __init__(self, config: Config, base: BaseModel, batches: ValidationBatches, folder: Path) -> None:
        self.config, self.base, self.folder = config, base, folder
        self.clips, self.empty, self.empty_audio = batches.clips(CLIPS), batches.empty, batches.empty_audio
        self.partners = partners_of_others([batches.recordings[clip.keys[0]] for clip in self.clips])
        self.numbers = range(global_rank(), len(self.clips), world_size())  # of the clips that this rank samples
        self.vae = base.vae() if self.numbers else None
        sounding = config.model.audio == "on" and has_audio(base.checkpoint) and self.numbers
        self.codec = AudioCodec.open(base.checkpoint) if sounding else None
        self.seconds: list[float] = []  # that each of this rank's clips took to sample and decode, last round

    def due(self, trainer: Trainer) -> bool:
        """Whether clips are sampled at this step."""
        every, step = self.config.validation.clips_every, trainer.global_step
        return step == trainer.max_steps or bool(every and step % every == 0)

    def sample_clips(self, module: ICLoRA, step: int) -> dict[str, float]:
        """Write the clips as `step-<n>-<key>.mp4` and return their metrics (`validation_metrics.clip_row`). All ranks
        call this together, and get the metrics of all clips. StopRequestedError as in `preemption.gather_work`."""
        with module.averaged():
            shares = gather_work(lambda: self.clips_of_rank(module, self.folder / f"step-{step:08d}"))
        return {} if self.config.task.video_given else row_of_clips(shares)

    def clips_of_rank(self, module: ICLoRA, stem: Path) -> dict[int, ClipPsnr]:
        """Write this rank's share of the clips as `<stem>-<key>.mp4`; number of a clip -> its PSNR. Waits for no other
        rank."""
        if self.vae is None:
            return {}
        self.vae.to(module.device)
        runner_of(module.transformer).free_training_memory()
        targets: dict[int, np.ndarray] = {}  # number of a clip -> its target's pixels

        def target(number: int) -> np.ndarray:
            if number not in targets:
                targets[number] = self._pixels(self.clips[number].target.to(module.device))
            return targets[number]

        share = {}
        self.seconds = []
        for number in self.numbers:
            clip = self.clips[number].to(module.device)
            started = time.perf_counter()
            latent, heard = self._sample(module, clip, self.config.sample.seed + number)
            output, sound = self._pixels(latent), self._sound(heard, clip)  # on the host: the device has done its work
            self.seconds.append(time.perf_counter() - started)
            references = [self._pixels(reference) for reference in clip.references]
            video = _side_by_side([*references, output, target(number)])
            with write_atomic(stem.with_name(f"{stem.name}-{clip.keys[0]}.mp4")) as file:
                file.write(encode_clip(video, float(clip.fps[0]), lossless=False, sound=sound))
            other = None if self.partners is None else psnr(output, target(self.partners[number]))
            share[number] = ClipPsnr(psnr(output, target(number)), other)
        return share

    def _sample(self, module: ICLoRA, clip: Batch, seed: int) -> tuple[Tensor, Tensor | None]:
        """The latents (1,C,f,h,w) that are sampled for a clip's caption, references and clean parts, and those of the
        sound (1,C,l,m), None where the video stream is trained alone."""
        task, settings, transformer = self.config.task, self.config.sample, module.transformer
        f, h, w = clip.target.shape[2:]
        negative = self.empty.to(clip.text)[None]
        references = []
        for number, (latent, part) in enumerate(zip(clip.references, tasks_of(task, clip), strict=True)):
            frame = reference_start(part, clip, number, self.base.geometry.temporal)
            places = frame if isinstance(frame, Tensor) else None
            references.append(Reference.of_task(latent, part, places=places))
        blocks = transformer.config.num_layers
        sampler = SamplerSettings.from_config(settings, self.config.flow, (f, h, w), blocks, negative)
        given = (transformer, clip.text, (f, h, w), self.base.geometry, clip.fps)
        kept = kept_of_target(clip.target, CleanCells(task.conditions, self.base.geometry.temporal), clip.mask)
        if module.audio is None:
            return sample(*given, sampler, [seed], references, kept), None
        if task.video_given:
            kept = KeptLatents(clip.target, torch.ones_like(clip.target[:, 0], dtype=torch.bool))
        stream = self._audio_stream(module.audio, clip)
        assert self.empty_audio is not None
        guidance = AudioGuidance.from_config(settings, self.empty_audio.to(clip.text)[None])
        return sample_with_sound(*given, replace(sampler, audio=guidance), [seed], stream, references, kept)

    def _audio_stream(self, geometry: AudioGeometry, clip: Batch) -> AudioStream:
        """The sound to sample for a clip: as long as its own, with its caption and its audio reference."""
        audio, text = require_sound(clip)
        reference = self.config.task.reference_sound
        stream = AudioStream(geometry, audio.shape[2], text)
        if reference is None:
            return stream
        return replace(stream, reference=clip.audio_reference, placement=reference.placement)

    def _sound(self, latent: Tensor | None, clip: Batch) -> Sound | None:
        """The sound of latents (1,C,l,m), as long as the clip; None without sound or a vocoder."""
        if latent is None or self.codec is None:
            return None
        codec = self.codec.to(latent.device)
        frames = (clip.target.shape[2] - 1) * self.base.geometry.temporal + 1
        return codec.decode(latent).fitted(frames / float(clip.fps[0]))

    @torch.no_grad()
    def _pixels(self, latent: Tensor) -> np.ndarray:
        """Latents (1,C,f,h,w) as uint8 RGB (F,H,W,3)."""
        assert self.vae is not None
        pixels: np.ndarray = to_uint8(self.vae.decode(latent.float()))[0].cpu().numpy()
        return pixels


def row_of_clips(shares: Sequence[Mapping[int, ClipPsnr]]) -> dict[str, float]:
    """The metrics of all clips, from those of each rank (`ValidationClips.clips_of_rank`)."""
    clips = {number: clip for share in shares for number, clip in share.items()}
    return clip_row([clips[number] for number in sorted(clips)])


def _side_by_side(clips: list[np.ndarray]) -> np.ndarray:
    """Clips (F,H,W,3) in one row. Smaller and slower clips are enlarged to the size of the last one by repetition."""
    frames, height = clips[-1].shape[:2]
    timed = [clip[np.arange(frames) * len(clip) // frames] for clip in clips]
    factors = [height // clip.shape[1] for clip in timed]
    return np.concatenate([clip.repeat(n, 1).repeat(n, 2) for clip, n in zip(timed, factors, strict=True)], axis=2)
