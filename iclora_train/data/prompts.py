"""Build captions from a template and a trigger: the same rule in training, evaluation and generation."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from iclora_train.config import ConfigError, require

PROMPT_SETTING = "data.prompt"
TEMPLATE_KEY = "prompt_template"  # metadata key of an adapter


def template_fields(template: str) -> tuple[str, ...]:
    """The field names of a template, in order. ConfigError when its braces do not match."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"{PROMPT_SETTING}={template!r}: {error}; write {{name}} for a column, {{{{ and }}}} for braces"
        ) from error
    names = [name for _, name, _, _ in parts if name is not None]
    are_names = all(name.isidentifier() and not spec and not conversion for _, name, spec, conversion in parts if name)
    require(
        are_names and "" not in names,
        f"{PROMPT_SETTING}={template!r}: write the name of a column between braces, e.g. {{caption}}",
    )
    return tuple(names)


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Fill a template. Double spaces around an empty trigger are removed.

    ValueError names the missing values; only the trigger may be empty.
    """
    names = template_fields(template)
    missing = sorted({name for name in names if name != "trigger" and not values.get(name)})
    if missing:
        raise ValueError(f"its row has no `{'`, `'.join(missing)}`, which {PROMPT_SETTING} needs")
    return " ".join(template.format_map({name: values.get(name, "") for name in names}).split())


def extra_fields(template: str) -> set[str]:
    """The fields of a template other than trigger and caption."""
    return set(template_fields(template)) - {"trigger", "caption"}


def with_trigger(trigger: str, caption: str) -> str:
    """The caption with an adapter's trigger before it, separated by a space.

    A caption that already begins with the trigger (as a whole word, in the same case) is returned unchanged.
    """
    if re.match(re.escape(trigger) + r"(?!\w)", caption):
        return caption
    return " ".join(part for part in (trigger, caption) if part)


def example_prompt(metadata: Mapping[str, str], caption: str) -> str:
    """A prompt in the form that an adapter was trained on, from its metadata.

    `caption` stands for the caption, `(name)` for every other field of a template. A damaged template counts as none.
    """
    trigger, template = metadata.get("trigger", ""), metadata.get(TEMPLATE_KEY, "")
    try:
        names = template_fields(template)
    except ConfigError:
        names = ()
    if not names:
        return with_trigger(trigger, caption)
    return fill_template(template, {name: f"({name})" for name in names} | {"caption": caption, "trigger": trigger})
