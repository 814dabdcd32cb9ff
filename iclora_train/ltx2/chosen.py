"""The base that the settings name."""

from __future__ import annotations

from iclora_train.config import Model, require
from iclora_train.ltx2.base import Base


def base_of(model: Model) -> Base:
    """Open the base of `model.*`; headers only. ConfigError for a wrong path, file or version."""
    base = Base.open(model.checkpoint, model.vae, model.connectors, model.text_encoder)
    require(
        model.version in (None, base.version),
        f"model.checkpoint={model.checkpoint} is of version {base.version}, and model={model.name} wants "
        f"{model.version}: choose the model=... that fits",
    )
    return base
