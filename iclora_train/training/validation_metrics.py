"""What tells while training whether the reference is used: pure functions of held-out losses and of clips made.

With L the mean velocity loss on val clips at a noise level, under the same noise in all conditions:

    control gain = (L_base - L_correct) / L_base     what adapter and reference take away of the base's own loss
    swap gap     = (L_swapped - L_correct) / L_base  what is lost when the reference is another clip's

L_base is the base alone, without reference. L_none, the adapter without reference, is no measure: nothing holds it in
place while an adapter is trained with references only, and a gain over it would grow by its decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

CONDITIONS = ("correct", "swapped", "none", "base")  # references of the adapter; the base alone, without reference
SAMPLED = ("sampled_psnr", "sampled_psnr_other")

Losses = Mapping[tuple[str, float], Tensor]  # (which of CONDITIONS, sigma) -> loss of each clip (n,)


def loss_columns(sigmas: Sequence[float]) -> list[str]:
    """Names of what `loss_row` gives, always the same and in this order."""
    losses = [f"heldout_{which}_{sigma:g}" for which in CONDITIONS for sigma in sigmas]
    at_levels = [f"{name}_{sigma:g}" for name in ("control_gain", "swap_gap") for sigma in sigmas]
    return [*losses, *at_levels, "control_gain", "swap_gap", "swap_won"]


def loss_row(losses: Losses, sigmas: Sequence[float]) -> dict[str, float]:
    """Mean losses; gain and gap at every noise level, and of the losses summed over them; and swap_won, the share of
    clips on which the correct reference gives less loss than the swapped one (chance: 0.5)."""
    row = {f"heldout_{which}_{s:g}": float(losses[which, s].mean()) for which in CONDITIONS for s in sigmas}
    summed = {which: torch.stack([losses[which, s] for s in sigmas]).sum(0) for which in CONDITIONS}  # (n,)
    for s in sigmas:
        correct, swapped, _, base = (losses[which, s] for which in CONDITIONS)
        row[f"control_gain_{s:g}"] = ratio_of_means(base - correct, base)
        row[f"swap_gap_{s:g}"] = ratio_of_means(swapped - correct, base)
    row["control_gain"] = ratio_of_means(summed["base"] - summed["correct"], summed["base"])
    row["swap_gap"] = ratio_of_means(summed["swapped"] - summed["correct"], summed["base"])
    row["swap_won"] = float((summed["correct"] < summed["swapped"]).float().mean())
    return {name: row[name] for name in loss_columns(sigmas)}


def ratio_of_means(part: Tensor, whole: Tensor) -> float:
    """Ratio of means (not mean of ratios, which clips of tiny loss would rule)."""
    return float(part.mean() / whole.mean())


def sampled_row(made: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR in dB of uint8 clips (B,F,H,W,3) to their targets and, where there are several, to another clip's target,
    which is what chance gives. Mean over frames, then over clips."""
    row = {"sampled_psnr": _psnr(made, target)}
    if len(target) > 1:
        row["sampled_psnr_other"] = _psnr(made, target.roll(len(target) // 2, dims=0))
    return row


def _psnr(made: Tensor, target: Tensor) -> float:
    frames = peak_signal_noise_ratio(
        made.double(), target.double(), data_range=255.0, reduction="none", dim=(2, 3, 4)
    )  # (B,F)
    return float(frames.mean())
