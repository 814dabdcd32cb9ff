"""Damaged and hostile adapter files: every command succeeds or gives the product's error, and none hangs.

The files are drawn with a fixed seed, so a failure names a case that can be run again.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iclora_train.adapters.algebra import combine
from iclora_train.adapters.base_spec import BaseSpec
from iclora_train.adapters.card import write_card
from iclora_train.adapters.check import check, notes
from iclora_train.adapters.comfyui_settings import WorkflowSettings
from iclora_train.adapters.convert import import_adapter
from iclora_train.adapters.file import read
from iclora_train.config import ConfigError
from iclora_train.core.safetensors_header import LARGEST_HEADER
from iclora_train.ltx2.weights.safetensors_header import read_header
from tests.adapter_files import QUERY, write

DEEP = "[" * 100_000
ODD: list[Any] = ["x", None, True, [], {}, 1e308, 0]
PATTERNS: list[Any] = ["x", [1], {"(": 1}, {"(a+)+$": 1}, {"to_q": "x"}]
DIGITS = "9" * 5000
TEXTS = [
    *("", "x", "0", "-1", "1.5", "2.0", "nan", "inf", "1e400", DIGITS, "\u0664", "axbxc", "64x64", "64x64x9"),
    *(
        f"{DIGITS}x1x1",
        "[]",
        "{}",
        "null",
        "true",
        '"x"',
        DEEP,
        "\U0001f600",
        "\ud83d",
        "```\n# x",
        "`$(id)`",
        "a|b\nc",
        "x" * 9000,
    ),
    *(json.dumps({"transformer.lora_alpha": value}) for value in ODD),
    *('{"transformer.lora_alpha": NaN}', f'{{"transformer.lora_alpha": {DIGITS}}}'),
    *(json.dumps({"transformer.alpha_pattern": value}) for value in PATTERNS),
]
REFERENCE = {"name": "a", "downscale": 1, "temporal_scale": 1, "frame": None, "p": 1}
ENTRIES = [
    *(json.dumps([{**REFERENCE, key: value}]) for key in REFERENCE for value in [*ODD, 997, -1, 1.5, "```\n# x|y"]),
    *(f'[{{"name": "a", "{key}": {DIGITS}}}]' for key in ("downscale", "frame", "p")),
    json.dumps([{"name": f"a{i}", "downscale": 2 + i} for i in range(99)]),
    json.dumps([{"name": "a"}] * 100_000),
    json.dumps([{"kind": "prefix", "frames": [1, 1 << 70]}]),
    json.dumps([{"kind": ["mask"]}]),
]
KEYS = [
    *("reference_downscale_factor", "reference_temporal_scale_factor", "reference_spatial_scale_factor"),
    *(
        "ss_reference_downscale_factor",
        "ss_v2v_training",
        "base_model_family",
        "base_model_version",
        "base_fingerprint",
    ),
    *("size", "fps", "task", "trigger", "rank", "steps", "base_model", "adapter_kind", "combined"),
    *("lora_adapter_metadata", "modelspec.architecture", "ss_base_model_version", "prompt_template"),
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    1 << 40,
    1 << 70,
    "F32",
    "Q9",
    "",
    [],
    [2],
    [2, 4, -1],
    [0, 1 << 47],
    {},
    [[]],
]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand cards are written; none must survive a power failure."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def every_use(path: Path, spec: BaseSpec) -> None:
    """Everything that the commands do with the file of an adapter, up to reading a base."""
    uses: list[Callable[[], object]] = [
        lambda: check(path),
        lambda: check(path, spec),
        lambda: notes(path, read(path), spec),
        lambda: import_adapter(path),
        lambda: import_adapter(path, spec),
        lambda: combine([(read(path), 0.5), (read(path), 0.5)]),
        lambda: write_card(path),
        lambda: WorkflowSettings.from_metadata(path, read(path).metadata),
    ]
    for use in uses:
        message = ""
        try:
            use()
        except ConfigError as error:
            message = str(error)
        assert message == "" or message.isprintable(), ascii(message)  # one line, whatever the file says
        assert len(message) < 1000


def set_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Replace the metadata of a file. The library refuses half characters, a hostile file may escape them."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": metadata}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def changed(header: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The header with one value, anywhere in it, replaced, removed or added."""
    header = json.loads(json.dumps(header))
    node: Any = header
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
            node = node[key]
            continue
        if isinstance(node, dict) and draw.random() < 0.2:
            del node[key]
        elif isinstance(node, dict) and draw.random() < 0.2:
            node[draw.choice(TEXTS[:14])] = draw.choice(VALUES)
        else:
            node[key] = draw.choice(VALUES)
        return header


def test_a_damaged_header_is_refused(tmp_path: Path, spec: BaseSpec) -> None:
    draw, path = random.Random(0), write(tmp_path / "a.safetensors", {})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    for _ in range(300):
        text = json.dumps(changed(header, draw)).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        every_use(path, spec)
    for _ in range(150):  # bytes
        damaged = bytearray(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.5 else data)
        for _ in range(draw.randrange(1, 4)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        every_use(path, spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b"[]", "it is not a JSON object"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b'{"a":' + b"9" * 5000 + b"}", "a.safetensors is not a readable safetensors file"),
        (b'{"__metadata__": {"a": 1}}', "its metadata are not strings"),
        (b'{"__metadata__": {"a": "\\ud800"}}', "is not Unicode text"),
        (b'{"a\\u001b[31m": {}}', "the key 'a\\x1b[31m' is not the name of a tensor"),
        (b'{"' + b"a" * 600 + b'": {}}', "is not the name of a tensor"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "'a' has no valid dtype, shape and"),
        (b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', "'a' has no valid dtype, shape and"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "'a' has no valid dtype, shape and"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "the size of 'a' contradicts its shape"),
        (b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [4, 0]}}', "'a' ends before it begins"),
        (
            b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, '
            b'"b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}',
            "the bytes of 'b' overlap those of another tensor",
        ),
        (b'{"a": {"dtype": "U8", "shape": [99], "data_offsets": [0, 99]}}', "is truncated: it has"),
    ],
)
def test_a_header_that_breaks_the_format_is_refused_with_its_reason(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ConfigError, match=r"a\.safetensors") as caught:
        read_header(path)
    assert message in str(caught.value)


def test_a_header_length_is_capped_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER * 2)  # a sparse file
    with pytest.raises(ConfigError, match=f"a header of {LARGEST_HEADER + 1} bytes"):
        read_header(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(ConfigError, match="it is a pickle, which is never read"):
        read_header(path)
    for text, message in (
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
            "a Git LFS pointer and not the file: run `git lfs",
        ),
        ("<!DOCTYPE html><html>Log in</html>", "it is a web page: the download needs a login"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_header(path)


def test_a_pipe_or_a_folder_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", tmp_path):
        with pytest.raises(ConfigError, match="it is not a file"):
            read_header(path)


def test_hostile_metadata_are_refused_or_ignored(tmp_path: Path, spec: BaseSpec) -> None:
    draw, path = random.Random(1), write(tmp_path / "a.safetensors", {})
    valid = {"reference_downscale_factor": "2", "base_model_family": "ltx", "base_model_version": "2.3"}
    for text in TEXTS:
        for keys in (KEYS[:2], KEYS[2:5], KEYS[5:8], KEYS[8:10], KEYS[10:17], KEYS[17:], draw.sample(KEYS, 3)):
            set_metadata(path, {**valid, **dict.fromkeys(keys, text)})
            every_use(path, spec)


@pytest.mark.timeout(120)
def test_hostile_lists_are_refused_or_ignored(tmp_path: Path, spec: BaseSpec) -> None:
    path = write(tmp_path / "a.safetensors", {})
    valid = {"reference_downscale_factor": "2", "base_model_family": "ltx", "base_model_version": "2.3"}
    for text in ENTRIES:
        for key in ("reference_frame", "target_conditions", "more_references"):
            set_metadata(path, {**valid, "size": "960x576x49", key: text})
            every_use(path, spec)


@pytest.mark.timeout(30)  # such an expression runs for more than a minute
@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\w+\s?)*x", r"(.*)*(.*)*(.*)*!", "("])
def test_a_regular_expression_of_an_adapter_is_never_run(tmp_path: Path, spec: BaseSpec, pattern: str) -> None:
    path = tmp_path / "a.safetensors"
    config = json.dumps({"transformer.alpha_pattern": {pattern: 1}, "transformer.lora_alpha": 1})
    module = "transformer_blocks.0." + "a" * 40 + "!"
    keys = {
        f"transformer.{module}.lora_A.weight": torch.ones(2, 4),
        f"transformer.{module}.lora_B.weight": torch.ones(4, 2),
    }
    write(
        path,
        {f"{QUERY}.lora_A.weight": None, f"{QUERY}.lora_B.weight": None, **keys},
        {"lora_adapter_metadata": config},
    )
    with pytest.raises(ConfigError, match="which is not a module name; name every module"):
        import_adapter(path, spec)
