"""The velocity loss on held-out windows: how well the model predicts clips that it was not trained on.

It is the loss that training minimises, with the noise of the window and the seed, mean over `validation.sigmas`. It is
computed with the transformer (`clips.sampled.SampledClips.velocity_losses`), not from an output, so the group itself
measures nothing.
"""

from __future__ import annotations

from eval.metrics.base import Measurement, Metric, MetricGroup

VELOCITY_LOSS = Metric("velocity_loss", "velocity loss", "", "low", "picture")
LOSS = MetricGroup((VELOCITY_LOSS,), lambda output, truth: Measurement())
