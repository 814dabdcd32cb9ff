"""Validation during training, on val clips: losses with the correct, a wrong and no reference; sampled clips.

Validation does not draw from the random state of training, and uses the adapter that would be exported.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import Config, Task, require
from iclora_train.core.atomic_files import write_atomic
from iclora_train.core.types import Geometry, LatentPair
from iclora_train.data.batch import Batch, collate
from iclora_train.data.batch_sampler import clips_per_batch
from iclora_train.data.recordings import half_a_list_away, partners_of_others, recording_of_clips
from iclora_train.data.shards import ShardSet
from iclora_train.diffusion.loss import training_losses
from iclora_train.diffusion.sampler import Reference, SamplerSettings, draw_noise, sample
from iclora_train.diffusion.training_inputs import RandomDraws
from iclora_train.ltx2.base_model import BaseModel
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.media.pixels import to_uint8
from iclora_train.media.shard_clip import encode_clip
from iclora_train.training.lightning_module import ICLoRA
from iclora_train.training.validation_metrics import CLIP_COLUMNS, CONDITIONS, clip_row, loss_columns, loss_row

CLIPS = 4  # validation clips that are sampled


@dataclass(frozen=True)
class ValidationBatches:
    """Val clips in batches, and each batch again with references of other recordings.

    no_swap: the reason if swapped references are missing, else None. recordings: the recording of each clip, by key.
    """

    batches: tuple[tuple[Batch, Batch | None], ...]  # (correct, swapped)
    empty: Tensor  # (T,D), text features of the empty caption
    recordings: dict[str, str]
    no_swap: str | None = None

    @classmethod
    def open(cls, shards: ShardSet, config: Config) -> ValidationBatches:
        """`validation.windows` clips, spread evenly over the commonest size of the val split; if no size has two
        windows, over all sizes. ConfigError for a val split without clips.

        A swapped reference is of the same size if another recording has one. Otherwise it is fitted (`fit_latent`).
        """
        val = shards.indices("val")
        require(
            len(val) > 0,
            f"validation needs val clips and {shards.folder} has none: prepare more, or set "
            "validation.loss_every=0 validation.clips_every=0",
        )
        recording_of = recording_of_clips(shards, val)
        recordings = {i: recording_of[shards.samples[i].source] for i in val}
        bucket, count = Counter(shards.samples[i].bucket for i in val).most_common(1)[0]
        candidates = [i for i in val if count == 1 or shards.samples[i].bucket == bucket]
        windows = min(config.validation.windows, len(candidates))
        chosen = [candidates[i * len(candidates) // windows] for i in range(windows)]
        sizes = clips_per_batch(shards, "val", config.data.batch_size, config.data.tokens_per_batch)
        no_swap = None
        if len(set(recordings.values())) == 1:
            no_swap = f"all val windows are of one recording, {next(iter(recordings.values()))}"
        batches = []
        for numbers in _slices(chosen, shards, sizes):
            pairs = [shards.read_latents(i) for i in numbers]
            partners = [
                shards.read_latents(_partner(i, chosen, val, shards, recordings)) for i in numbers if not no_swap
            ]
            correct = collate(pairs)
            batches.append((correct, None if no_swap else replace(correct, references=_fitted(partners, correct))))
        names = {shards.samples[i].key: recordings[i] for i in chosen}
        return cls(tuple(batches), shards.empty_text(), names, no_swap)


def _slices(numbers: Sequence[int], shards: ShardSet, sizes: Mapping[str, int]) -> Iterator[list[int]]:
    """Sample numbers in batches of one bucket. sizes: clips per batch, by bucket."""
    for bucket in dict.fromkeys(shards.samples[i].bucket for i in numbers):
        same = [i for i in numbers if shards.samples[i].bucket == bucket]
        yield from (same[i : i + sizes[bucket]] for i in range(0, len(same), sizes[bucket]))


def _partner(
    number: int, chosen: Sequence[int], val: Sequence[int], shards: ShardSet, recordings: Mapping[int, str]
) -> int:
    """The sample of another recording whose reference replaces that of `number`: if possible one of `chosen`, half the
    list away, and of the same bucket."""
    order = [*(chosen[j] for j in half_a_list_away(chosen.index(number), len(chosen))), *val]
    others = [i for i in order if recordings[i] != recordings[number]]
    same_size = [i for i in others if shards.samples[i].bucket == shards.samples[number].bucket]
    return (same_size or others)[0]


def _fitted(partners: Sequence[LatentPair], batch: Batch) -> list[Tensor]:
    """The references of other clips, stacked, in the shapes of the references of `batch`."""
    return [
        torch.stack([fit_latent(pair.references[n], tuple(reference.shape[2:])) for pair in partners])
        for n, reference in enumerate(batch.references)
    ]


def fit_latent(latent: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A latent clip (C,f,h,w) cut or continued to (C, *shape): the middle of a larger picture, a smaller one mirrored
    at its borders; the first frames of a longer clip, a shorter one played to and fro. Its vectors stay as they are."""
    for axis, size in enumerate(shape, start=1):
        have = latent.shape[axis]
        start = 0 if axis == 1 else (have - size) // 2
        there_and_back = [*range(have), *range(have - 2, 0, -1)]
        index = [there_and_back[(start + i) % len(there_and_back)] for i in range(size)]
        latent = latent.index_select(axis, torch.tensor(index))
    return latent


def validation_columns(config: Config) -> list[str]:
    """Columns of `validation_losses` and of `ValidationClips`."""
    return [*loss_columns(config.validation.sigmas), *CLIP_COLUMNS]


@torch.no_grad()
def validation_losses(
    transformer: Transformer, batches: ValidationBatches, config: Config, geometry: Geometry
) -> dict[str, float]:
    """Velocity losses at each of validation.sigmas, and the metrics derived from them (`validation_metrics.loss_row`).

    The noise is fixed. The adapter gets the correct, a swapped (if there is one) and no reference; the base alone gets
    no reference.
    """
    device = next(transformer.parameters()).device
    mode = transformer.training
    transformer.eval()
    runner_of(transformer).free_training_memory()
    sigmas = config.validation.sigmas
    losses: dict[tuple[str, float], list[Tensor]] = defaultdict(list)
    first = 0
    for correct, swapped in batches.batches:
        no_references = replace(correct, references=[])
        count = len(correct.keys)
        noise = draw_noise(range(first, first + count), tuple(correct.target.shape[1:])).to(device)
        first += count
        for condition, batch in zip(CONDITIONS, (correct, swapped, no_references, no_references), strict=True):
            if batch is None:
                continue
            on_device = batch.to(device)
            with lora.adapter_off(transformer) if condition == "base" else nullcontext():
                for sigma in sigmas:
                    loss = _loss(transformer, on_device, noise, sigma, config.task, geometry)
                    losses[condition, sigma].append(loss.cpu())
    transformer.train(mode)
    return loss_row({key: torch.cat(parts) for key, parts in losses.items()}, sigmas)


def _loss(
    transformer: Transformer, batch: Batch, noise: Tensor, sigma: float, task: Task, geometry: Geometry
) -> Tensor:
    """Loss of each clip (B,) at one noise level, without a clean first frame and with full references."""
    no_clip = torch.zeros(len(noise), dtype=torch.bool)  # draws lie on the host, where reading them does not wait
    sigmas = torch.full((len(noise),), sigma)
    draws = RandomDraws(sigmas, noise, clean_first_frame=no_clip, use_references=~no_clip)
    return training_losses(transformer, batch, draws, task, geometry).flow


class ValidationClips(Callback):
    """Samples a few val clips every validation.clips_every steps and at the end, with the sampler of generation, and
    writes reference, output and target side by side. `callbacks.MetricsRecorder` calls `sample_clips`, so that the
    metrics of the clips are in the row of their step.
    """

    def __init__(self, config: Config, base: BaseModel, batches: ValidationBatches, folder: Path) -> None:
        self.config, self.base, self.folder = config, base, folder
        self.batch = batches.batches[0][0].first(CLIPS)
        self.partners = partners_of_others([batches.recordings[key] for key in self.batch.keys])
        self.vae, self.empty = base.vae(), batches.empty
        self.last_step = -1  # the step at which clips were last sampled

    def due(self, trainer: Trainer) -> bool:
        """Whether clips are sampled at this step."""
        every, step = self.config.validation.clips_every, trainer.global_step
        return step == trainer.max_steps or bool(every and step % every == 0)

    def on_train_end(self, trainer: Trainer, module: ICLoRA) -> None:  # type: ignore[override]
        if self.last_step != trainer.global_step:
            self.sample_clips(trainer, module)

    def sample_clips(self, trainer: Trainer, module: ICLoRA) -> dict[str, float]:
        """Write the clips as `step-<n>-<key>.mp4` and return their metrics (`validation_metrics.clip_row`)."""
        self.last_step = trainer.global_step
        return self.render(module, self.folder / f"step-{self.last_step:08d}") if trainer.is_global_zero else {}

    def render(self, module: ICLoRA, stem: Path) -> dict[str, float]:
        """Write reference, output and target side by side as `<stem>-<key>.mp4`; returns `clip_row` of the outputs."""
        batch = self.batch.to(module.device)
        self.vae.to(module.device)
        runner_of(module.transformer).free_training_memory()
        with module.averaged():
            latent = self._sample(module.transformer, batch)
        references = [self._pixels(reference) for reference in batch.references]
        output, target = self._pixels(latent), self._pixels(batch.target)
        for i, key in enumerate(batch.keys[:CLIPS]):
            video = _side_by_side([clips[i] for clips in (*references, output, target)])
            with write_atomic(stem.with_name(f"{stem.name}-{key}.mp4")) as file:
                file.write(encode_clip(video, float(batch.fps[i]), lossless=False))
        return clip_row(torch.from_numpy(output), torch.from_numpy(target), self.partners)

    def _sample(self, transformer: Transformer, batch: Batch) -> Tensor:
        task, settings = self.config.task, self.config.sample
        f, h, w = batch.target.shape[2:]
        negative = self.empty.to(batch.text)[None]
        factors = (task.reference_downscale, task.reference_temporal_scale)
        return sample(
            transformer,
            batch.text,
            (f, h, w),
            self.base.geometry,
            batch.fps,
            SamplerSettings.from_config(settings, self.config.flow, (f, h, w), transformer.config.num_layers, negative),
            seeds=[settings.seed + i for i in range(len(batch.text))],
            references=[Reference(reference, *factors) for reference in batch.references],
        )

    @torch.no_grad()
    def _pixels(self, latent: Tensor) -> np.ndarray:
        """Latents (B,C,f,h,w) as uint8 RGB (B,F,H,W,3)."""
        return to_uint8(self.vae.decode(latent.float())).cpu().numpy()


def _side_by_side(clips: list[np.ndarray]) -> np.ndarray:
    """Clips (F,H,W,3) in one row. Smaller and slower clips are enlarged to the size of the last one by repetition."""
    frames, height = clips[-1].shape[:2]
    timed = [clip[np.arange(frames) * len(clip) // frames] for clip in clips]
    factors = [height // clip.shape[1] for clip in timed]
    return np.concatenate([clip.repeat(n, 1).repeat(n, 2) for clip, n in zip(timed, factors, strict=True)], axis=2)
