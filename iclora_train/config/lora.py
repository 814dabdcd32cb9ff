"""The settings of the adapter: which linears get LoRA, and rank, alpha and learning rate of each.

Every pattern stands for linears by their names in the official checkpoints: part of a name between two dots (`attn2`,
`attn1.to_q`, `transformer_blocks.3`), with `*`, `?` and `[0-9]` as in file names (`transformer_blocks.[0-9].ff`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cache
from typing import TypeVar

from iclora_train.config.errors import ConfigError, require

T = TypeVar("T")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGET_SETS = {  # short forms in model.lora.targets
    "self_attention": [f"attn1.{linear}" for linear in _ATTENTION],
    "text_attention": [f"attn2.{linear}" for linear in _ATTENTION],
    "feed_forward": ["ff.net.0.proj", "ff.net.2"],
}
TARGET_SETS["video"] = [target for targets in list(TARGET_SETS.values()) for target in targets]
TARGET_SETS["audio"] = [  # the audio stream, and the attention between the streams in both directions
    *(f"audio_{target}" for target in TARGET_SETS["video"]),
    *(f"{name}.{linear}" for name in ("audio_to_video_attn", "video_to_audio_attn") for linear in _ATTENTION),
]
TARGET_SETS["video_to_audio"] = [  # what makes sound for a video (configuration v2a of Lightricks' trainer)
    target for target in TARGET_SETS["audio"] if not target.startswith("audio_to_video_attn")
]


@dataclass
class Lora:
    """Rank of the adapter and the linears it is attached to. alpha=null means alpha = rank (scale 1)."""

    rank: int = 32
    alpha: float | None = None
    targets: list[str] = field(default_factory=lambda: list(TARGET_SETS["video"]))  # patterns, names of TARGET_SETS
    rank_pattern: dict[str, int] = field(default_factory=dict)  # pattern -> rank; the first that matches counts
    alpha_pattern: dict[str, float] = field(default_factory=dict)  # pattern -> alpha; likewise
    lr_pattern: dict[str, float] = field(default_factory=dict)  # pattern -> factor on the learning rate; likewise
    rslora: bool = False  # scale alpha / sqrt(rank) in place of alpha / rank

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"model.lora.rank={self.rank} must be at least 1 (official adapters: 32 to 128)")
        require(self.alpha is None or self.alpha > 0, f"model.lora.alpha={self.alpha} must be above 0 or null")
        require(len(self.targets) > 0, "model.lora.targets is empty: name at least one linear, e.g. attn1.to_q")
        self.targets = [linear for target in self.targets for linear in TARGET_SETS.get(target, [target])]
        for pattern, rank in self.rank_pattern.items():
            require(rank >= 1, f"model.lora.rank_pattern: {pattern}: {rank} must be at least 1")
        for key in ("alpha_pattern", "lr_pattern"):
            for pattern, value in getattr(self, key).items():
                valid = math.isfinite(value) and value > 0
                require(valid, f"model.lora.{key}: {pattern}: {value} must be a finite number above 0")
        require(
            not self.rslora or self.alpha is not None,
            "model.lora.rslora=true needs model.lora.alpha: with alpha = rank the scale would grow with the rank. "
            f"model.lora.alpha={math.sqrt(self.rank):.3g}, the root of the rank, is scale 1",
        )

    def is_target(self, linear: str) -> bool:
        """Whether a linear of the base gets LoRA."""
        return any(matches(target, linear) for target in self.targets)

    def rank_of(self, linear: str) -> int:
        """The rank of a linear's adapter."""
        return _first(self.rank_pattern, linear, self.rank)

    def alpha_of(self, linear: str) -> float:
        """The alpha of a linear's adapter."""
        rank = self.rank_of(linear)
        return _first(self.alpha_pattern, linear, rank if self.alpha is None else self.alpha)

    def lr_factor_of(self, linear: str) -> float:
        """The factor on the learning rate of a linear's adapter."""
        return _first(self.lr_pattern, linear, 1.0)

    def adapted(self, linears: Sequence[str]) -> list[str]:
        """Those of the base's linears that get LoRA. ConfigError for a target or a pattern without a linear."""
        ends = sorted({linear.split(".", 2)[-1] for linear in linears})
        for target in self.targets:
            if not any(matches(target, linear) for linear in linears):
                names = f"{', '.join(ends)}, and the sets {', '.join(TARGET_SETS)}"
                raise ConfigError(f"model.lora.targets: no linear {target!r} in the base; it has {names}")
        adapted = [linear for linear in linears if self.is_target(linear)]
        for key in ("rank_pattern", "alpha_pattern", "lr_pattern"):
            for pattern in getattr(self, key):
                if not any(matches(pattern, linear) for linear in adapted):
                    raise ConfigError(f"model.lora.{key}: {_without_linear(pattern, linears, adapted)}")
        return adapted


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(f"*.{pattern}.*"))


def matches(pattern: str, linear: str) -> bool:
    """Whether a pattern stands for a linear: it fits whole parts of the name, wherever they are."""
    return _expression(pattern).match(f".{linear}.") is not None


def _first(patterns: Mapping[str, T], linear: str, default: T) -> T:
    """The value of the first pattern that matches, as in peft."""
    return next((value for pattern, value in patterns.items() if matches(pattern, linear)), default)


def _without_linear(pattern: str, linears: Iterable[str], adapted: Iterable[str]) -> str:
    """The problem of a pattern that matches none of the adapted linears, with choices close to it."""
    if any(matches(pattern, linear) for linear in linears):
        return f"{pattern!r} matches only linears without LoRA: add them to model.lora.targets, or remove the pattern"
    ends = {linear.split(".", 2)[-1] for linear in adapted}
    choices = sorted(ends | {end.split(".")[0] for end in ends})
    close = difflib.get_close_matches(pattern, choices, cutoff=0.5) or choices
    return f"{pattern!r} matches no linear with LoRA; there are {', '.join(close)}"
