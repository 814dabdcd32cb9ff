"""Damage to files, the same in every run, and the rule that each reader must follow."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch

from iclora_train.config import ConfigError

# What a field of a JSON record is replaced with; REMOVED takes the field out.
REMOVED = object()
VALUES = (REMOVED, None, True, -1, 0, 10**12, 10**18, 1.5, float("nan"), "", "x", "5", [], [1], {}, {"x": 1})
TEXTS = (b"[" * 100_000, b'{"a":' * 50_000, b"1" * 6000, b"null", b"[]", b"{}", b'"\xff"', b"\xef\xbb\xbf{}", b"{}{}")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def damaged_bytes(data: bytes, seed: int = 0, flips: int = 12) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of a file after common accidents: cut off, overwritten, single bits flipped."""
    rng = random.Random(seed)
    yield "empty", b""
    for cut in (1, len(data) // 3, len(data) // 2, len(data) - 1):
        yield f"cut at {cut}", data[:cut]
    yield "zeros", bytes(len(data))
    yield "zeros at the end", data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    yield "garbage", rng.randbytes(len(data))
    yield "a pointer of Git LFS", LFS_POINTER
    yield "twice", data + data
    for _ in range(flips):
        position, bit = rng.randrange(len(data)), rng.randrange(8)
        flipped = bytearray(data)
        flipped[position] ^= 1 << bit
        yield f"bit {bit} of byte {position}", bytes(flipped)


def damaged_json(value: Any, items: int = 2, whole: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of a JSON record with every field in turn replaced by VALUES; of lists, the first `items` items.

    whole: names of fields that are replaced, but whose own fields are not.
    """
    for text in TEXTS:
        yield f"the text {text[:10]!r}", text
    for path in _paths(value, items, whole):
        for number, replacement in enumerate(VALUES):
            changed = copy.deepcopy(value)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if replacement is REMOVED:
                del parent[path[-1]]
            else:
                parent[path[-1]] = replacement
            yield f"{'.'.join(map(str, path))} = value {number}", json.dumps(changed).encode()


def _paths(value: Any, items: int, whole: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """The paths of all fields, containers included."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), items)) if isinstance(value, list) else ()
    for key in keys:
        yield (key,)
        if key not in whole:
            yield from ((key, *rest) for rest in _paths(value[key], items, whole))


def outcome(read: Callable[[], Any], *names: Path | str) -> Any:
    """The result of a reader, or its ConfigError, which must be one line that names one of `names` and a remedy.

    Every other exception is the fault that the tests look for.
    """
    try:
        return read()
    except ConfigError as error:
        message = str(error)
        assert "\n" not in message, message
        assert len(message) < 1000, message[:1000]
        assert any(str(name) in message for name in names), message
        assert any(word in message for word in ("delete", "run", "restore")), message
        return error


def check_reader(path: Path, read: Callable[[], Any], variants: Iterator[tuple[str, bytes]], detects: bool) -> int:
    """Read `path` in all variants; restores it. Returns how many gave an error.

    detects: whether every variant with other bytes than the original must give the original result or an error.
    """
    original = path.read_bytes()
    expected = repr(read())
    errors = 0
    for name, data in variants:
        path.write_bytes(data)
        try:
            result = outcome(read, path, path.name, path.parent)
        except Exception as error:
            raise AssertionError(f"{path.name}, {name}: {type(error).__name__}: {error}") from error
        errors += isinstance(result, ConfigError)
        if detects and not isinstance(result, ConfigError):
            assert repr(result) == expected, f"{path.name}, {name}: the damage was not noticed"
    path.write_bytes(original)
    return errors


def drop_tensors(folder: Path, partial: Path, *parts: str) -> Path:
    """Copy a network's folder to `partial`, without the tensors whose name contains one of `parts`."""
    shutil.copytree(folder, partial)
    file = partial / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    kept = {name: tensor for name, tensor in whole.items() if not any(part in name for part in parts)}
    assert all(any(part in name for name in whole) for part in parts), "every part is a part of a name"
    safetensors.torch.save_file(kept, file, {"format": "pt"})
    return partial
