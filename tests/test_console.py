"""Commands print text unchanged: brackets are not markup, `:name:` is not an emoji."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.table import Table

from iclora_train.core.console import make_console
from iclora_train.core.progress import progress_bar
from iclora_train.ltx2.kernels import flash_attention as flash
from iclora_train.ltx2.kernels.attention_backends import attention_note

ROOT = Path(__file__).parents[1]
TEXT = "[flash] [red] [/] :key: \\[bold]"
FILES = [
    path
    for folder in ("iclora_train", "data_prep", "eval", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_text_and_tables_are_printed_unchanged() -> None:
    screen = io.StringIO()
    console = make_console(file=screen, width=200)
    table = Table("header " + TEXT, title="title " + TEXT)
    table.add_row("cell " + TEXT)
    console.print("line " + TEXT)
    console.print(table)
    for prefix in ("line", "header", "title", "cell"):
        assert f"{prefix} {TEXT}" in screen.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_bars_show_names_unchanged(terminal: bool) -> None:
    screen = io.StringIO()
    console = make_console(file=screen, width=200, force_terminal=terminal, color_system=None)
    with progress_bar("clip " + TEXT, 1, "clip", console=console) as bar:
        bar.update(completed=1, note="note " + TEXT)
    assert f"clip {TEXT}" in screen.getvalue()
    assert f"note {TEXT}" in screen.getvalue()


def test_the_attention_note_keeps_the_name_of_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_is_hopper", lambda _: True)
    monkeypatch.setattr(flash, "INSTALLED_VERSION", "")
    screen = io.StringIO()
    note = attention_note(torch.device("cuda", 0), torch.bfloat16, flash.HEAD_DIM)
    make_console(file=screen, soft_wrap=True).print(note)
    assert "pip install 'iclora_train[flash]'" in screen.getvalue()


def _markup_readers(path: Path) -> Iterator[str]:
    """Places where a file opens a console or a text column that reads markup."""
    for node in ast.walk(ast.parse(path.read_text())):
        location = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.progress"):
            if {alias.name for alias in node.names} & {"print", "track"}:
                yield f"{location} opens rich's own console: use core.console.make_console"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name == "Console" and path.name != "console.py":
                yield f"{location}: use core.console.make_console"
            if name == "TextColumn" and not any(word.arg == "markup" for word in node.keywords):
                yield f"{location}: pass markup=False to TextColumn"


def test_nothing_else_opens_a_console() -> None:
    assert [location for path in FILES for location in _markup_readers(path)] == []
