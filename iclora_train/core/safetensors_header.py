"""Parse the header of a safetensors file and check it against the format, before anything is allocated for it.

Format: 8 bytes with the length of the header, the header (JSON: dtype, shape and byte range of each tensor, and
metadata of strings), then the bytes of the tensors (huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_LARGEST_SIZE = 1 << 48  # a side of a shape, or an offset in bytes
_LONGEST_KEY = 500
_MOST_SIDES = 16  # of a shape
_METADATA = "__metadata__"
_BYTES = {  # bytes per value; other dtypes (F4, F8_E8M0, ...) are accepted, and their size is not checked
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64"), 8),
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a header: dtype as safetensors names it, shape, and byte range after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_header(text: bytes) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Metadata and tensors of a header (without its length). ValueError with the reason if it breaks the format."""
    header = parse_object(text)
    metadata = header.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    for string in (*metadata, *metadata.values(), *header):
        if any(map(_is_surrogate, string)):  # JSON can escape half of a character, which no file name or card can hold
            raise ValueError(f"{shortened(string)} is not Unicode text")
    for key in header:
        if not key.isprintable() or len(key) > _LONGEST_KEY:  # keys are printed in messages
            raise ValueError(f"the key {shortened(key)} is not the name of a tensor")
    entries = {key: _entry(key, value) for key, value in header.items()}
    last = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start < last:
            raise ValueError(f"the bytes of {shortened(key)} overlap those of another tensor")
        last = entry.end
    return metadata, entries


def parse_object(text: bytes | str) -> dict[str, Any]:
    """A JSON object in UTF-8. ValueError with the reason for any other text, however deep it is nested."""
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def shortened(text: str, length: int = 120) -> str:
    """A key or a value for a message: escaped, and at most `length` characters of it."""
    return repr(text if len(text) <= length else text[:length] + "...")


def _entry(key: str, value: object) -> TensorEntry:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (fields.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"the entry of {shortened(key)} has no valid dtype, shape and data_offsets")
    start, end = offsets
    if end < start:
        raise ValueError(f"{shortened(key)} ends before it begins")
    size = math.prod(shape) * _BYTES.get(dtype, 0)
    if dtype in _BYTES and size != end - start:
        raise ValueError(f"the size of {shortened(key)} contradicts its shape")
    return TensorEntry(dtype, tuple(shape), start, end)


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    """Whether this is a short list of whole numbers from 0 on (JSON's true is not one)."""
    if not isinstance(values, list) or len(values) > _MOST_SIDES:
        return False
    return all(type(value) is int and 0 <= value < _LARGEST_SIZE for value in values)
