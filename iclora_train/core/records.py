"""Read files that may be damaged or hostile: only regular files, of a limited size, and JSON only of a declared type.

Each problem is one line: the file, the place in it, the remedy. pydantic checks the types (a dataclass,
`dict[str, Count]`, ...). Fields that a dataclass does not name are ignored, so files of later versions can be read.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, Strict, TypeAdapter, ValidationError

from iclora_train.config import ConfigError
from iclora_train.core.regular_files import open_regular

MAX_JSON_BYTES = 2**30
_MAX_DEPTH = 64  # of nested lists and objects in JSON
_MAX_SHOWN = 160  # characters of a problem that a message shows

# Field types of JSON records. Without Strict, pydantic would read the text "5" as the number 5.
Count = Annotated[int, Strict(), Field(ge=0)]
PositiveCount = Annotated[int, Strict(), Field(ge=1)]
AnyNumber = Annotated[float, Strict()]  # also NaN and infinite
PositiveNumber = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Bucket = Annotated[str, Strict(), Field(pattern=r"^[0-9]{1,6}x[0-9]{1,6}x[0-9]{1,6}$")]  # width x height x frames
Bits256 = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{64}$")]  # as hex digits
Sha256 = Bits256

T = TypeVar("T")


class DamagedFileError(ConfigError):
    """A file is damaged or is not the file that its name promises. The message names the file and the remedy."""


def _require_file_name(name: str) -> str:
    """ValueError unless `name` is a file in the same folder: an index must not lead to files elsewhere."""
    if name != Path(name).name or "\0" in name:
        raise ValueError("is not the name of a file")
    return name


FileName = Annotated[str, Strict(), AfterValidator(_require_file_name)]


def read_limited(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file. OSError as in `open_regular`, and EFBIG for more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes, more than the {max_bytes} of such a file", str(path))
        return file.read(size)


def read_json(path: Path, kind: type[T], remedy: str, error: type[ConfigError] = DamagedFileError) -> T:
    """Read a JSON file of type `kind`. `error` names the file, the place in it and the remedy."""
    try:
        data = read_limited(path)
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror}): {remedy}") from cause
    return parse_json(data, kind, str(path), remedy, error)


def parse_json(
    data: bytes | bytearray | str, kind: type[T], name: str, remedy: str, error: type[ConfigError] = DamagedFileError
) -> T:
    """Parse JSON of type `kind`. `error` begins with `name`, the file or the part of it that `data` was read from."""
    try:
        return from_json(data, kind)
    except ValueError as cause:
        raise error(f"{name} is damaged ({cause}): {remedy}") from cause


def from_json(data: bytes | bytearray | str, kind: type[T]) -> T:
    """Parse JSON of type `kind`. ValueError, whose text is one short line, names the place of the first problem."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of thousands of digits
        raise ValueError(_shown(str(error))) from error
    _require_depth(value)
    return as_type(value, kind)


def as_type(value: object, kind: type[T]) -> T:
    """A parsed JSON value as `kind`. ValueError as in `from_json`."""
    try:
        converted: T = _adapter(kind).validate_python(value)  # type: ignore[arg-type]  # types are hashable
        return converted
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(_shown(f"{place}: {first['msg']}" if place else first["msg"])) from error


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _require_depth(value: object) -> None:
    """ValueError for values that functions which call themselves for each level could not follow."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        children = (_children(parent) for parent in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]
    if level:
        raise ValueError("it is nested too deeply")


def _children(value: object) -> Iterable[object]:
    """The direct members of a list or an object of JSON; none for other values."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _shown(problem: str) -> str:
    """A problem as one short line: keys of a damaged file may hold anything."""
    line = "".join(c if c.isprintable() else "?" for c in problem)
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}..."
