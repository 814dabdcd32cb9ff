"""The console that every command prints on, without rich's markup.

Messages contain paths, clip names, captions and settings. With markup rich would drop `[flash]` from
`pip install 'iclora_train[flash]'`, and with emoji codes it would replace `:key:` in a path.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

from iclora_train.core.ranks import global_rank


def make_console(**options: Any) -> Console:
    """A rich console that prints text, table cells and titles as they are; of several ranks, only rank 0 prints.
    options: as of `rich.console.Console`."""
    return Console(markup=False, emoji=False, quiet=global_rank() > 0, **options)


def printable(text: str) -> str:
    """The text with escapes for characters that a terminal would obey or could not encode, e.g. of a Latin-1 name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
