"""The training loss: the flow loss, and with `flow.locality` a term that makes attention masks local.

An attention mask should change the video where it hides the reference, and nowhere else. But the model uses the whole
visible reference: from edges on the left it infers colours on the right. Training with masks (`flow.region_mask_p`)
teaches the model to cope without a masked reference, not to ignore it locally. The locality term pulls the prediction
inside a random region towards the prediction of the same model with the references masked outside that region. It
applies to clips that are trained with all of their references. The masked pass has no gradient.

With `flow.preserve_base` a clip that is trained without references has another target: the velocity that the base
predicts for the same noisy clip. The adapter then learns to change nothing where nothing guides it, as in the
prior-preserving losses of DreamBooth (arXiv 2208.12242) and of Learning without Forgetting (arXiv 1606.09282).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iclora_train.config import Flow, Task
from iclora_train.core.device import to_device
from iclora_train.core.types import AudioGeometry, Geometry
from iclora_train.data.batch import Batch
from iclora_train.diffusion.audio_inputs import build_sound, velocities
from iclora_train.diffusion.clean_cells import CleanCells
from iclora_train.diffusion.flow_matching import masked_loss
from iclora_train.diffusion.random_draws import WHOLE_FRAME, RandomDraws, usual_uses
from iclora_train.diffusion.training_inputs import build_tokens, region_to_tokens
from iclora_train.ltx2.model.transformer import Transformer


@dataclass(frozen=True)
class ClipLosses:
    """Losses of each clip of a batch, (B,) each.

    sigma     noise level, on the host
    flow      flow loss
    locality  mean square of the change that references outside the clip's region cause in the velocity inside it; 0 for
              clips without a region, None when no clip has one
    audio     flow loss of the sound, 0 for clips without a sound of their own; None where it is not trained
    heard     whether a clip has a sound of its own, on the host
    """

    sigma: Tensor
    flow: Tensor
    locality: Tensor | None
    audio: Tensor | None = None
    heard: Tensor | None = None

    def total(self, flow: Flow) -> Tensor:
        """The loss that training minimises, a scalar."""
        total = self.flow if self.locality is None else self.flow + flow.locality * self.locality
        if self.audio is not None:
            total = total + flow.audio_weight * self.audio
        return total.mean()

    def audio_of_heard(self) -> Tensor:
        """The loss of the sound (B,), NaN for clips without a sound of their own."""
        if self.audio is None or self.heard is None:
            return torch.full_like(self.flow, torch.nan)
        return self.audio.where(to_device(self.heard, self.audio.device), torch.nan)


def loss_at(
    transformer: Transformer,
    batch: Batch,
    noise: Tensor,
    sigma: float,
    task: Task,
    geometry: Geometry,
    seed: int = 0,
) -> Tensor:
    """Loss of each clip (B,) at one noise level, with the usual references (`ReferenceUse.usual`) and the usual
    conditions (`CleanCells.usual`).

    noise: (B,C,f,h,w). seed: of the noise of references whose usual strength is below 1.
    """
    draws = _usual_draws(batch, noise, sigma, task, geometry, seed)
    return training_losses(transformer, batch, draws, task, geometry).flow


def losses_at(
    transformer: Transformer,
    batch: Batch,
    noises: tuple[Tensor, Tensor],
    sigma: float,
    task: Task,
    geometry: Geometry,
    audio: AudioGeometry,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """As `loss_at`, of both streams together: (B,) each, of the video (NaN where the task gives it) and of the sound
    (NaN where none is heard).

    noises: of the video and of the sound (B,C,l,m)."""
    draws = replace(_usual_draws(batch, noises[0], sigma, task, geometry, seed), audio_noise=noises[1])
    losses = joint_losses(transformer, batch, draws, task, geometry, audio)
    video = torch.full_like(losses.flow, torch.nan) if task.video_given else losses.flow
    return video, losses.audio_of_heard()


def _usual_draws(batch: Batch, noise: Tensor, sigma: float, task: Task, geometry: Geometry, seed: int) -> RandomDraws:
    """The values with which losses are compared, in place of random ones."""
    count = len(noise)
    no_clip = torch.zeros(count, dtype=torch.bool)  # draws lie on the host, where reading them does not wait
    f, h, w = batch.target.shape[2:]
    return RandomDraws(
        torch.full((count,), sigma),
        noise,
        clean_first_frame=no_clip,
        use_references=~no_clip,
        clean=CleanCells(task.conditions, geometry.temporal).usual(count, (f, h, w), batch.mask),
        noise_seed=seed,
        of_references=usual_uses(count, task.reference_uses),
    )


def joint_losses(
    transformer: Transformer, batch: Batch, draws: RandomDraws, task: Task, geometry: Geometry, audio: AudioGeometry
) -> ClipLosses:
    """Losses of a batch of both streams together. ConfigError if a clip of the batch has no sound.

    The video's loss is 0 where the task gives the video (`task.video_given`)."""
    tokens, target = build_tokens(batch, draws, task, geometry)
    sound = build_sound(batch, draws, task, audio)
    video, heard = velocities(transformer, tokens, batch.text, target.shape[1], sound.input, draws.use_audio)
    flow = masked_loss(video, target, tokens.loss_mask[:, : target.shape[1]])
    of_sound = masked_loss(heard, sound.velocity, sound.loss_mask)
    return ClipLosses(draws.sigma, flow, None, of_sound, batch.heard)


def training_losses(
    transformer: Transformer,
    batch: Batch,
    draws: RandomDraws,
    task: Task,
    geometry: Geometry,
    base_alone: Callable[[], AbstractContextManager[None]] | None = None,
) -> ClipLosses:
    """Losses of a batch. With `draws.locality_region`, one more pass of the transformer runs without gradients.

    base_alone: a context in which the transformer is the base without its adapter. Clips without references then learn
    the base's prediction, which one more pass without gradients computes.
    """
    tokens, target = build_tokens(batch, draws, task, geometry)
    num_target = target.shape[1]
    if base_alone is not None and not draws.use_references.all():
        with torch.no_grad(), base_alone():
            of_base = transformer(tokens, batch.text, num_outputs=num_target)
        guided = to_device(draws.use_references, target.device)[:, None, None]
        target = torch.where(guided, target, of_base.to(target))
    loss_mask = tokens.loss_mask[:, :num_target]
    local = None
    if draws.locality_region is not None:
        masked, _ = build_tokens(batch, draws, task, geometry, mask_region=draws.locality_region)
        with torch.no_grad():
            local = transformer(masked, batch.text, num_outputs=num_target)
    predicted = transformer(tokens, batch.text, num_outputs=num_target)
    flow = masked_loss(predicted, target, loss_mask)
    if local is None or draws.locality_region is None:
        return ClipLosses(draws.sigma, flow, None)
    has_region = (draws.locality_region != torch.tensor(WHOLE_FRAME)).any(1)  # (B,)
    f, h, w = batch.target.shape[2:]
    inside = region_to_tokens(draws.locality_region, (f, h, w)) * has_region[:, None]
    return ClipLosses(draws.sigma, flow, masked_loss(predicted, local, loss_mask * to_device(inside, loss_mask.device)))
