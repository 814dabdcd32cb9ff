"""The console that every command prints on, without rich's markup.

Messages contain paths, clip names, captions and settings. With markup rich would drop `[flash]` from
`pip install 'iclora_train[flash]'`, and with emoji codes it would replace `:key:` in a path.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console


def make_console(**options: Any) -> Console:
    """A rich console that prints text, table cells and titles as they are. options: as of `rich.console.Console`."""
    return Console(markup=False, emoji=False, **options)
