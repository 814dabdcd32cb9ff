"""Validation losses during training, on val clips: with the correct, a wrong and no reference.

Validation does not draw from the random state of training, and uses the adapter that would be exported. Its batches are
spread over the ranks; batches and noise do not depend on the number of ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iclora_train.adapters import lora
from iclora_train.config import Config, Task, require
from iclora_train.core.ranks import global_rank, world_size
from iclora_train.core.types import AudioGeometry, Geometry, LatentPair
from iclora_train.data.batch import Batch, collate
from iclora_train.data.batch_sampler import clips_per_batch
from iclora_train.data.recordings import half_a_list_away, recording_of_clips
from iclora_train.data.shards import EMPTY_AUDIO_TEXT_FILE, ShardSet
from iclora_train.diffusion.audio_inputs import require_audio_reference, require_sound
from iclora_train.diffusion.loss import loss_at, losses_at
from iclora_train.diffusion.sampler import draw_noises
from iclora_train.ltx2.model.transformer import Transformer
from iclora_train.ltx2.runtime.block_runner import runner_of
from iclora_train.training.preemption import gather_work
from iclora_train.training.validation_metrics import (
    CLIP_COLUMNS,
    audio_columns,
    audio_row,
    loss_columns,
    loss_row,
)

AUDIO = "audio_"  # before a condition: the losses of the sound
Losses = dict[tuple[str, float], Tensor]  # (one of CONDITIONS, sigma) -> loss of each clip of a batch (B,)


@dataclass(frozen=True)
class ValidationBatches:
    """Val clips in batches, and each batch again with references of other recordings.

    no_swap: the reason if swapped references are missing, else None. recordings: the recording of each clip, by key.
    """

    batches: tuple[tuple[Batch, Batch | None], ...]  # (correct, swapped)
    empty: Tensor  # (T,D), text features of the empty caption
    recordings: dict[str, str]
    no_swap: str | None = None
    empty_audio: Tensor | None = None  # (T,D'), those of the audio stream, with model.audio=on

    def clips(self, count: int) -> list[Batch]:
        """The first `count` clips of the size of the first clip, as batches of one clip."""
        targets = [correct for correct, _ in self.batches]
        same_size = [batch for batch in targets if batch.target.shape[1:] == targets[0].target.shape[1:]]
        return [batch.clip(i) for batch in same_size for i in range(len(batch.keys))][:count]

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
        if not config.task.in_context:
            no_swap = "the task has no reference"
        elif len(set(recordings.values())) == 1:
            no_swap = f"all val windows are of one recording, {next(iter(recordings.values()))}"
        batches = []
        for numbers in _slices(chosen, shards, sizes):
            pairs = [shards.read_latents(i) for i in numbers]
            partners = [
                shards.read_latents(_partner(i, chosen, val, shards, recordings)) for i in numbers if not no_swap
            ]
            correct = collate(pairs)
            require_audio_reference(correct, config.task)
            batches.append((correct, None if no_swap else _swapped(partners, correct, config.task)))
        names = {shards.samples[i].key: recordings[i] for i in chosen}
        both = config.model.audio == "on"
        audio = shards.empty_text(EMPTY_AUDIO_TEXT_FILE) if both else None
        return cls(tuple(batches), shards.empty_text(), names, no_swap, audio)


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


def _swapped(partners: Sequence[LatentPair], batch: Batch, task: Task) -> Batch:
    """The batch with the references of other clips, in the shapes of its own; with their videos, if the task gives
    these."""

    def fitted(latents: Iterable[Tensor | None], own: Tensor) -> Tensor:
        return torch.stack([fit_latent(latent, tuple(own.shape[2:])) for latent in latents if latent is not None])

    references = [fitted((pair.references[n] for pair in partners), own) for n, own in enumerate(batch.references)]
    batch, sound = replace(batch, references=references), batch.audio_reference
    if sound is not None:
        batch = replace(batch, audio_reference=fitted((pair.audio_reference for pair in partners), sound))
    return replace(batch, target=fitted((p.target for p in partners), batch.target)) if task.video_given else batch


def fit_latent(latent: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A latent clip (C,f,h,w), or a sound (C,l,m), cut or continued to (C, *shape): the middle of a larger picture, a
    smaller one mirrored at its borders; the first frames of a longer clip, a shorter one played to and fro. Its vectors
    stay as they are."""
    for axis, size in enumerate(shape, start=1):
        have = latent.shape[axis]
        start = 0 if axis == 1 else (have - size) // 2
        there_and_back = [*range(have), *range(have - 2, 0, -1)]
        index = [there_and_back[(start + i) % len(there_and_back)] for i in range(size)]
        latent = latent.index_select(axis, torch.tensor(index))
    return latent


def validation_columns(config: Config) -> list[str]:
    """Columns of `validation_losses` and of `validation_clips.ValidationClips`."""
    sigmas, in_context = config.validation.sigmas, config.task.in_context
    of_audio = audio_columns(sigmas, in_context) if config.model.audio == "on" else []
    return [*loss_columns(sigmas, in_context), *of_audio, *CLIP_COLUMNS]


def validation_losses(
    transformer: Transformer,
    batches: ValidationBatches,
    config: Config,
    geometry: Geometry,
    audio: AudioGeometry | None = None,
) -> dict[str, float]:
    """Velocity losses at each of validation.sigmas, and the metrics derived from them (`validation_metrics.loss_row`).

    The noise is fixed. The adapter gets the correct, a swapped (if there is one) and no reference, in a task without
    references only the last; the base alone gets no reference. All ranks call this together, and get the row that a
    single process computes. StopRequestedError as in `preemption.gather_work`.
    audio: of a transformer of both streams, whose sound is then judged too (`validation_metrics.audio_row`).
    """
    shares = gather_work(lambda: losses_of_rank(transformer, batches, config, geometry, audio))
    return row_of_losses(shares, config.validation.sigmas)


def row_of_losses(shares: Sequence[Mapping[int, Losses]], sigmas: Sequence[float]) -> dict[str, float]:
    """The row of all batches, from the losses of each rank (`losses_of_rank`)."""
    by_batch = {number: losses for share in shares for number, losses in share.items()}
    ordered = [by_batch[number] for number in range(len(by_batch))]
    joined = {key: torch.cat([losses[key] for losses in ordered]) for key in ordered[0]}
    of_audio = {(c.removeprefix(AUDIO), s): loss for (c, s), loss in joined.items() if c.startswith(AUDIO)}
    of_video = {key: loss for key, loss in joined.items() if not key[0].startswith(AUDIO)}
    return {**loss_row(of_video, sigmas), **audio_row(of_audio, sigmas)}


@torch.no_grad()
def losses_of_rank(
    transformer: Transformer,
    batches: ValidationBatches,
    config: Config,
    geometry: Geometry,
    audio: AudioGeometry | None = None,
) -> dict[int, Losses]:
    """Number of a batch -> its losses, for this rank's share of the batches. Waits for no other rank."""
    runner_of(transformer).free_training_memory()
    sizes = [len(correct.keys) for correct, _ in batches.batches]
    numbers = range(global_rank(), len(sizes), world_size())
    with _eval_mode(transformer):
        return {
            number: _batch_losses(transformer, batches.batches[number], sum(sizes[:number]), config, geometry, audio)
            for number in numbers
        }


@contextmanager
def _eval_mode(transformer: Transformer) -> Iterator[None]:
    mode = transformer.training
    transformer.eval()
    try:
        yield
    finally:
        transformer.train(mode)


def _conditions(correct: Batch, swapped: Batch | None, task: Task) -> dict[str, Batch]:
    """The clips of each condition: one of CONDITIONS, or of PLAIN_CONDITIONS where the clips have captions alone.

    Where the task gives the video, all have one; "none" then leaves out the audio reference, and is left out itself
    where there is none.
    """
    alone = replace(correct, references=[], audio_reference=None)
    conditions = {"correct": correct, "swapped": swapped, "none": alone, "base": alone}
    if not task.in_context:
        del conditions["correct"]
    elif task.video_given and task.reference_sound is None:
        del conditions["none"]
    return {condition: clips for condition, clips in conditions.items() if clips is not None}


def _batch_losses(
    transformer: Transformer,
    batch: tuple[Batch, Batch | None],
    first: int,
    config: Config,
    geometry: Geometry,
    audio: AudioGeometry | None,
) -> Losses:
    """Losses of a batch, on the host. first: number of its first clip, the seed of that clip's noise."""
    correct, swapped = batch
    device = next(transformer.parameters()).device
    shapes = [correct.target.shape[1:], *([] if audio is None else [require_sound(correct)[0].shape[1:]])]
    noise, *of_sound = (n.to(device) for n in draw_noises(range(first, first + len(correct.keys)), shapes))
    losses: Losses = {}
    for condition, clips in _conditions(correct, swapped, config.task).items():
        on_device = clips.to(device)
        with lora.adapter_off(transformer) if condition == "base" else nullcontext():
            for sigma in config.validation.sigmas:
                if audio is None:
                    loss = loss_at(transformer, on_device, noise, sigma, config.task, geometry, first)
                else:
                    both = (noise, of_sound[0])
                    loss, heard = losses_at(transformer, on_device, both, sigma, config.task, geometry, audio, first)
                    losses[AUDIO + condition, sigma] = heard.cpu()
                losses[condition, sigma] = loss.cpu()
    return losses
