"""The maker of tasks without references."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.makers.base import Maker, Params, SourceWindow, register
from iclora_train.config import ConfigError
from iclora_train.config.no_reference import NO_REFERENCE


@register(NO_REFERENCE)
@dataclass(frozen=True)
class NoReference(Maker):
    """No reference: a pair is the target and its caption. `pairs.make_pairs` never calls this maker."""

    def __call__(self, frames: np.ndarray, rng: np.random.Generator, source: SourceWindow) -> tuple[np.ndarray, Params]:
        raise ConfigError(f"the maker {NO_REFERENCE} makes no reference, so no other maker can use it")
