"""What training minimises: the flow loss, and, where it is asked for, what references change where they are not.

An attention mask is to change a clip where it hides the reference and nowhere else. But a model uses all it sees: from
edges on the left it guesses colours on the right. Training with masks teaches it to do without what is hidden, not to
leave it alone while it is there. So a clip that is trained with all of its references is, inside of a random region,
also drawn to what the same model predicts when it sees them inside of that region only; that pass has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iclora_train.config import Flow, Task
from iclora_train.core.types import Geometry
from iclora_train.data.batch import Batch
from iclora_train.diffusion.flow_matching import masked_loss
from iclora_train.diffusion.training_inputs import WHOLE_FRAME, RandomDraws, build_tokens, region_to_tokens, to_device
from iclora_train.ltx2.model.transformer import Transformer


@dataclass(frozen=True)
class ClipLosses:
    """Of each clip (B,): its noise level, on the host; its flow loss; and, where clips have a region of their own, the
    mean square of what references outside of it change in the velocity inside (for clips without one it is 0)."""

    sigma: Tensor
    flow: Tensor
    locality: Tensor | None

    def total(self, flow: Flow) -> Tensor:
        """What is minimised, ()."""
        return (self.flow if self.locality is None else self.flow + flow.locality * self.locality).mean()


def training_losses(
    transformer: Transformer, batch: Batch, draws: RandomDraws, task: Task, geometry: Geometry
) -> ClipLosses:
    """Losses of a batch; with `draws.locality_region` they take one more pass of the transformer, without gradients."""
    tokens, wanted = build_tokens(batch, draws, task, geometry)
    count = wanted.shape[1]
    learned = tokens.loss_mask[:, :count]
    aim = None
    if draws.locality_region is not None:
        narrowed, _ = build_tokens(batch, draws, task, geometry, within=draws.locality_region)
        with torch.no_grad():
            aim = transformer(narrowed, batch.text, num_outputs=count)
    predicted = transformer(tokens, batch.text, num_outputs=count)
    flow = masked_loss(predicted, wanted, learned)
    if aim is None or draws.locality_region is None:
        return ClipLosses(draws.sigma, flow, None)
    parted = (draws.locality_region != torch.tensor(WHOLE_FRAME)).any(1)  # (B,)
    inside = region_to_tokens(draws.locality_region, batch.target.shape[2:]) * parted[:, None]
    return ClipLosses(draws.sigma, flow, masked_loss(predicted, aim, learned * to_device(inside, learned.device)))
