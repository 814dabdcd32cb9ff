"""How a caption is put together from what is known of a clip: one rule for training, judging and generating."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from iclora_train.config import ConfigError, require

PROMPT_SETTING = "data.prompt"
TEMPLATE_KEY = "prompt_template"  # its name in an adapter's metadata


def template_fields(template: str) -> tuple[str, ...]:
    """The names in braces of a template, in their order. ConfigError when its braces do not match."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"{PROMPT_SETTING}={template!r}: {error}; write {{name}} for a column, {{{{ and }}}} for braces"
        ) from error
    named = [name for _, name, _, _ in parts if name is not None]
    plain = all(name.isidentifier() and not spec and not conversion for _, name, spec, conversion in parts if name)
    require(
        plain and "" not in named,
        f"{PROMPT_SETTING}={template!r}: write the name of a column between braces, e.g. {{caption}}",
    )
    return tuple(named)


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """The template with its names replaced; spaces that an empty trigger leaves are closed. ValueError names what is
    missing; only the trigger may be empty.
    """
    names = template_fields(template)
    missing = sorted({name for name in names if name != "trigger" and not values.get(name)})
    if missing:
        raise ValueError(f"its row has no `{'`, `'.join(missing)}`, which {PROMPT_SETTING} needs")
    return " ".join(template.format_map({name: values.get(name, "") for name in names}).split())


def extra_fields(template: str) -> set[str]:
    """The columns that a template wants beside trigger and caption."""
    return set(template_fields(template)) - {"trigger", "caption"}


def with_trigger(trigger: str, caption: str) -> str:
    """The caption that an adapter is trained and used with: its trigger, a space, the caption. A caption that begins
    with the trigger (as a whole word, in the same case) stays as it is.
    """
    if re.match(re.escape(trigger) + r"(?!\w)", caption):
        return caption
    return " ".join(part for part in (trigger, caption) if part)
