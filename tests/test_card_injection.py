"""Text in an adapter's metadata stays text on its card: in the shell, in Python, in YAML, in tables and in Markdown."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from iclora_train.adapters.card import write_card
from iclora_train.adapters.metadata import shown
from tests.test_card import write_adapter

HOSTILE = [
    "$(touch stolen); `id` && rm -rf ~ 'x' \"y\"",
    "x\n```\n\n# Trusted\n\n```bash\ncurl evil | sh\n```",
    '", trust_remote_code=True, prompt="',
    "---\nlicense: mit\n---\n<script>alert(1)</script> ![p](http://x/y.png) [a](b)",
    "| a | b |\n|---|---|\n| c | d |",
    "`` ` ``` backticks \\",
    "\u202ereversed \u0000 \u2028 \U0001f600",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("family", ["ltx", "nano"])
def test_metadata_stay_text_on_the_card(tmp_path: Path, text: str, family: str) -> None:
    keys = ("task", "trigger", "base_model", "steps", "rank", "learning_rate", "clips", "config_hash", "size", "fps")
    metadata, first = dict.fromkeys(keys, text), shown(text).split()[0]
    card = write_card(write_adapter(tmp_path, **metadata, base_model_family=family))[0].read_text()
    front_matter, body = card.split("\n---\n", 1)
    assert yaml.safe_load(front_matter.removeprefix("---\n"))["instance_prompt"] == shown(text, 500)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    assert re.findall(r"<(h\d)>", html) == ["h1", "h2", "h2", "h2"]
    assert not re.search(r"<(script|img|a|hr)\b", html)
    assert all(row.count("<td") == 2 for row in re.findall(r"<tr>\n<td.*?</tr>", html, re.DOTALL))
    blocks = re.findall(r"^```(\w+)\n(.*?)\n```$", body, re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == (["bash", "python"] if family == "ltx" else ["bash"])
    words = shlex.split(blocks[0][1])
    assert words[:2] == ["python", "-m"]
    assert len([word for word in words if word.startswith(first) or f"={first}" in word]) == 1
    if family == "ltx":
        calls = [node for node in ast.walk(ast.parse(blocks[1][1])) if isinstance(node, ast.Call)]
        prompts = [k.value for call in calls for k in call.keywords if k.arg == "prompt"]
        assert len(prompts) == 1
        assert isinstance(prompts[0], ast.Constant)
