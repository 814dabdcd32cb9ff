"""Metrics that show during training whether the reference is used, from validation losses and sampled clips.

With L the mean velocity loss on val clips at a noise level, under the same noise in all conditions:

    control gain = (L_base - L_correct) / L_base     share of the base's loss that adapter and reference remove
    swap gap     = (L_swapped - L_correct) / L_base  loss added when the reference belongs to another clip

L_base is the loss of the base alone, without reference. L_none, the adapter without reference, is not a measure of
control: an adapter that is trained with references gets worse without them, and a gain over L_none grows with that.

A task without references has two conditions, the adapter and the base, and one metric:

    adapter gain = (L_base - L_none) / L_base        share of the base's loss that the adapter removes

Where both streams are trained (model.audio=on), the losses of the sound have these two metrics too, as audio_gain
(control gain, or adapter gain) and audio_swap_gap. Where the task gives the video (`task.video_given`), the conditions
`swapped` and `base` are the video of another clip, and the base alone with the clip's own video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

CONDITIONS = ("correct", "swapped", "none", "base")  # references of the adapter; the base alone, without reference
PLAIN_CONDITIONS = ("none", "base")  # of a task without references
CLIP_COLUMNS = ("sampled_psnr", "sampled_psnr_other")
FORMER_PREFIXES = {"heldout_": "val_"}  # of columns in logs of earlier versions

LossesByCondition = Mapping[tuple[str, float], Tensor]  # (one of CONDITIONS, sigma) -> loss of each clip (n,)


def current_column(name: str) -> str:
    """The current name of a column of metrics.csv: `heldout_correct_0.3` of earlier versions is `val_correct_0.3`."""
    for former, current in FORMER_PREFIXES.items():
        if name.startswith(former):
            return current + name.removeprefix(former)
    return name


def loss_columns(sigmas: Sequence[float], has_reference: bool = True) -> list[str]:
    """Names of the values of `loss_row`, in their fixed order."""
    if not has_reference:
        plain = [f"val_{condition}_{sigma:g}" for condition in PLAIN_CONDITIONS for sigma in sigmas]
        return [*plain, *(f"adapter_gain_{sigma:g}" for sigma in sigmas), "adapter_gain"]
    losses = [f"val_{condition}_{sigma:g}" for condition in CONDITIONS for sigma in sigmas]
    per_sigma = [f"{name}_{sigma:g}" for name in ("control_gain", "swap_gap") for sigma in sigmas]
    return [*losses, *per_sigma, "control_gain", "swap_gap", "swap_won"]


def audio_columns(sigmas: Sequence[float], has_reference: bool = True) -> list[str]:
    """Names of the values of `audio_row`."""
    conditions = CONDITIONS if has_reference else PLAIN_CONDITIONS
    losses = [f"val_audio_{condition}_{sigma:g}" for condition in conditions for sigma in sigmas]
    return [*losses, "audio_gain", *(["audio_swap_gap"] if has_reference else [])]


def audio_row(losses: LossesByCondition, sigmas: Sequence[float]) -> dict[str, float]:
    """Mean losses of the sound (model.audio=on) over the clips that have one, and the metrics derived from them; empty
    where the sound is not trained."""
    row = {f"val_audio_{condition}_{s:g}": float(loss.nanmean()) for (condition, s), loss in losses.items()}
    conditions = {condition for condition, _ in losses}
    summed = {c: torch.stack([losses[c, s] for s in sigmas]).sum(0) for c in conditions}
    summed = {c: loss[~loss.isnan()] for c, loss in summed.items()}
    if "base" in summed:
        adapter, base = summed.get("correct", summed.get("none")), summed["base"]
        assert adapter is not None
        row["audio_gain"] = ratio_of_means(base - adapter, base)
        if "swapped" in summed:
            row["audio_swap_gap"] = ratio_of_means(summed["swapped"] - adapter, base)
    return row


def loss_row(losses: LossesByCondition, sigmas: Sequence[float]) -> dict[str, float]:
    """Mean losses; control gain and swap gap, per noise level and of losses summed over the levels; and swap_won, the
    share of clips whose loss is lower with the correct reference than with the swapped one (chance: 0.5).

    NaN in place of values of the condition "swapped" if it was not measured. Losses of PLAIN_CONDITIONS only give the
    row of a task without references.
    """
    if {condition for condition, _ in losses} == set(PLAIN_CONDITIONS):
        return _plain_row(losses, sigmas)
    complete = {
        (c, s): losses.get((c, s), torch.full_like(losses["correct", s], torch.nan)) for c in CONDITIONS for s in sigmas
    }
    row = {f"val_{condition}_{s:g}": float(loss.mean()) for (condition, s), loss in complete.items()}
    summed = {
        condition: torch.stack([complete[condition, s] for s in sigmas]).sum(0) for condition in CONDITIONS
    }  # (n,)
    for s in sigmas:
        correct, swapped, _, base = (complete[condition, s] for condition in CONDITIONS)
        row[f"control_gain_{s:g}"] = ratio_of_means(base - correct, base)
        row[f"swap_gap_{s:g}"] = ratio_of_means(swapped - correct, base)
    row["control_gain"] = ratio_of_means(summed["base"] - summed["correct"], summed["base"])
    row["swap_gap"] = ratio_of_means(summed["swapped"] - summed["correct"], summed["base"])
    won = (summed["correct"] < summed["swapped"]).float().where(~summed["swapped"].isnan(), torch.nan)
    row["swap_won"] = float(won.mean())
    return {name: row[name] for name in loss_columns(sigmas)}


def _plain_row(losses: LossesByCondition, sigmas: Sequence[float]) -> dict[str, float]:
    """Mean losses, and the adapter gain per noise level and of losses summed over the levels."""
    row = {
        f"val_{condition}_{s:g}": float(losses[condition, s].mean()) for condition in PLAIN_CONDITIONS for s in sigmas
    }
    for s in sigmas:
        row[f"adapter_gain_{s:g}"] = ratio_of_means(losses["base", s] - losses["none", s], losses["base", s])
    adapter, base = (torch.stack([losses[name, s] for s in sigmas]).sum(0) for name in PLAIN_CONDITIONS)
    return row | {"adapter_gain": ratio_of_means(base - adapter, base)}


def ratio_of_means(part: Tensor, whole: Tensor) -> float:
    """Ratio of means. A mean of ratios would be dominated by clips with a tiny loss."""
    return float(part.mean() / whole.mean())


@dataclass(frozen=True)
class ClipPsnr:
    """PSNR in dB of a sampled clip to its target, and to the target of a clip of another recording if there is one."""

    target: float
    other: float | None


def clip_row(clips: Sequence[ClipPsnr]) -> dict[str, float]:
    """Mean PSNR of sampled clips to their targets and, if there are clips of another recording, to those clips'
    targets, which is the PSNR of chance."""
    row = {"sampled_psnr": fmean(clip.target for clip in clips)}
    others = [clip.other for clip in clips if clip.other is not None]
    return {**row, "sampled_psnr_other": fmean(others)} if others else row


def psnr(sampled: np.ndarray, target: np.ndarray) -> float:
    """PSNR in dB of a uint8 clip (F,H,W,3) to another one, mean over frames."""
    first, second = (torch.from_numpy(clip).double() for clip in (sampled, target))
    return float(peak_signal_noise_ratio(first, second, data_range=255.0, reduction="none", dim=(1, 2, 3)).mean())
