"""Settings of how one reference is used in training: strength, attention strength, attention mask, noise.

Of the first reference they are the keys `task.reference_<key>`, of a further one the keys of its entry in
`task.more_references`. A key that is not set leaves the reference to `flow`, whose draws all references share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from iclora_train.config.errors import ConfigError

OF_TASK = "reference_"  # before a key: the setting of `task` for the first reference


class Drawn(NamedTuple):
    """A value that is uniform in [low, high] with probability p, else the one that changes nothing."""

    low: float
    high: float
    p: float = 1.0


@dataclass(frozen=True)
class ReferenceUse:
    """How training uses a reference; null: as `flow` says.

    strength              1 - its share of the noise level: a number, or [low, high], drawn for each clip
    attention_strength    weight of the attention between target and reference: a number, or [low, high]
    attention_strength_p  share of the clips with such a weight, the others have 1; alone it is that of [0, 1]
    region_mask_p         share of the clips that see it only inside a random region
    noise                 share of noise in its latents, of which the model is not told: the largest, or [least, most]
    noise_p               share of the clips with noise
    """

    strength: Any = None
    attention_strength: Any = None
    attention_strength_p: float | None = None
    region_mask_p: float | None = None
    noise: Any = None
    noise_p: float | None = None

    @classmethod
    def of(cls, settings: object, prefix: str = "") -> ReferenceUse:
        """The keys of an object with these settings; prefix: of their names there."""
        return cls(**{key: getattr(settings, prefix + key) for key in KEYS})

    def as_dict(self) -> dict[str, Any]:
        """The keys that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def problems(self) -> Iterator[tuple[str, str]]:
        """A key that is wrong, and what is wrong with it."""
        for key in ("strength", "attention_strength", "noise"):
            value = getattr(self, key)
            pair = [value, value] if _is_share(value) else value
            valid = isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_share, pair))
            if value is not None and not (valid and pair[0] <= pair[1]):
                yield key, f"{value!r} must be a number in [0, 1], or [low, high] within it"
            elif value is not None and key != "noise" and pair[1] == 0:
                yield key, f"{value} switches the reference off in every clip: leave the reference out"
        for key in ("attention_strength_p", "region_mask_p", "noise_p"):
            value = getattr(self, key)
            if value is not None and not _is_share(value):
                yield key, f"{value!r} must lie in [0, 1], or be null"
        if self.noise_p is not None and self.noise is None:
            yield "noise_p", f"{self.noise_p} is the probability of noise that is not set: set noise too, e.g. 0.1"

    def check(self, prefix: str) -> None:
        """ConfigError names the key, after `prefix`, and what is wrong with it."""
        for key, problem in self.problems():
            raise ConfigError(f"{prefix}{key}={problem}")

    @property
    def drawn_strength(self) -> Drawn | None:
        """The strengths of the clips; None: 1 in all of them."""
        low, high = _pair(self.strength, 1.0)
        return None if low == 1 else Drawn(low, high)

    @property
    def drawn_attention(self) -> Drawn | None:
        """The attention strengths of the clips; None: those of `flow`."""
        if self.attention_strength is None and self.attention_strength_p is None:
            return None
        bounds = (0.0, 1.0) if self.attention_strength is None else _pair(self.attention_strength, 1.0)
        return Drawn(*bounds, 1.0 if self.attention_strength_p is None else self.attention_strength_p)

    @property
    def drawn_noise(self) -> Drawn | None:
        """The shares of noise of the clips; None: those of `flow`."""
        if self.noise is None:
            return None
        bounds = (0.0, float(self.noise)) if _is_share(self.noise) else _pair(self.noise, 0.0)
        return Drawn(*bounds, 1.0 if self.noise_p is None else self.noise_p)

    @property
    def usual_strength(self) -> float:
        """The strength in validation, in eval and, unless set, in `generate`: the largest of training."""
        return _pair(self.strength, 1.0)[1]

    @property
    def usual_attention(self) -> float:
        """The attention strength there, likewise: 1 unless every clip has a smaller one."""
        drawn = self.drawn_attention
        return 1.0 if drawn is None or drawn.p < 1 else drawn.high

    @property
    def usual(self) -> tuple[float, float]:
        """Strength and attention strength in validation and eval."""
        return self.usual_strength, self.usual_attention

    @property
    def in_words(self) -> str:
        """E.g. `strength 0.5 to 1, attention strength 0 to 1 (20% of the clips)`; empty if no key is set."""
        drawn = (
            ("strength", self.drawn_strength),
            ("attention strength", self.drawn_attention),
            ("noise in its latents", self.drawn_noise),
        )
        parts = [f"{name} {_in_words(values)}" for name, values in drawn if values is not None]
        if self.region_mask_p is not None:
            parts.append(f"seen only inside a random region (in {self.region_mask_p:.0%} of the clips)")
        return ", ".join(parts)


KEYS = tuple(ReferenceUse.__dataclass_fields__)
TASK_KEYS = tuple(OF_TASK + key for key in KEYS)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _pair(value: Any, default: float) -> tuple[float, float]:
    """[low, high] of a checked value: of a number twice that number."""
    low, high = (value, value) if _is_share(value) else (default, default) if value is None else value
    return float(low), float(high)


def _in_words(values: Drawn) -> str:
    bounds = f"{values.low:g}" if values.low == values.high else f"{values.low:g} to {values.high:g}"
    return bounds if values.p == 1 else f"{bounds} (in {values.p:.0%} of the clips)"
