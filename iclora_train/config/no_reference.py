"""Settings of a task without references: a plain LoRA, for a style or an effect that captions call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iclora_train.config.diffusion import Flow
from iclora_train.config.errors import ConfigError, require
from iclora_train.config.sources import DataSource

NO_REFERENCE = "none"  # task.maker of a task without references
FAMILY = "style"  # its task.family
# settings of `flow` that change what a clip sees of its references, and the values that leave them alone
REFERENCE_FLOW = {
    "reference_p": 1.0,
    "attention_strength_p": 0.0,
    "region_mask_p": 0.0,
    "locality": 0.0,
    "reference_noise": 0.0,
}
_REMEDY = f"task.maker={NO_REFERENCE} has no reference; leave it out"


def check_task(maker: str, family: str, of_reference: Mapping[str, object]) -> None:
    """ConfigError unless the maker `none` and the family `style` go together, without settings of a reference.

    of_reference: the keys of `task` that describe references, and their values.
    """
    without = maker == NO_REFERENCE
    require(
        without == (family == FAMILY),
        f"task.maker={maker} with task.family={family}: maker {NO_REFERENCE} (no reference) and family {FAMILY} "
        "(judged without one) go together: set both or neither",
    )
    for key, value in of_reference.items():
        if without and value not in (1, None, {}):
            raise ConfigError(f"task.{key}={value}: {_REMEDY}")


def check_sections(flow: Flow, references: str | None, sources: Sequence[DataSource] | None) -> None:
    """ConfigError where a setting of references is set in `flow`, as data.references or in data.sources."""
    for key, neutral in REFERENCE_FLOW.items():
        value = getattr(flow, key)
        require(value == neutral, f"flow.{key}={value}: {_REMEDY}")
    require(references is None, f"data.references={references}: {_REMEDY}")
    for source in sources or []:
        require(source.references is None, f"data.sources: references={source.references}: {_REMEDY}")
