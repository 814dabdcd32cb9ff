"""The members of a shard's tar, read defensively: a damaged or hostile tar gives a ValueError, never another error.

tarfile ends without a word at a damaged header and at the end of a truncated file; here both are errors. Nothing is
extracted, and only regular members are accepted: links, devices and folders have no content of their own.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class TarMember:
    """A file in a tar: its name, and the byte offsets of its header, its content and the next member."""

    name: str
    start: int
    data: int
    size: int
    end: int


class BytesPart(io.RawIOBase):
    """A file over a memoryview, without the copy that BytesIO makes."""

    def __init__(self, data: memoryview) -> None:
        self.content, self.position, self.length = data, 0, len(data)

    def read(self, size: int = -1) -> bytes:
        end = self.length if size < 0 else min(self.length, self.position + size)
        chunk = self._read_range(self.position, end)
        self.position += len(chunk)
        return chunk

    def _read_range(self, begin: int, end: int) -> bytes:
        return bytes(self.content[begin:end])

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self.position = offset
        return offset

    def tell(self) -> int:
        return self.position


class FilePart(BytesPart):
    """`length` bytes of an open file from `offset` on. No read asks the file for more than it has."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        super().__init__(memoryview(b""))
        self.file, self.offset, self.length = file, offset, length

    def _read_range(self, begin: int, end: int) -> bytes:
        self.file.seek(self.offset + begin)
        return self.file.read(max(end - begin, 0))


def read_range(file: io.BufferedReader, offset: int, size: int) -> bytearray:
    """`size` bytes of a file from `offset` on; ValueError if it ends before. The sizes lie within the file's size."""
    data = bytearray(size)
    file.seek(offset)
    if file.readinto(data) != size:
        raise ValueError("it ends too early")
    return data


def read_members(part: BytesPart, whole: bool, folders: bool = False) -> Iterator[TarMember]:
    """The members of a tar, or of the part of a tar that holds one sample.

    whole: the tar must also have its end marker. folders: entries of folders are passed over. ValueError when the tar
    is damaged or has members other than files.
    """
    end = 0
    try:
        with tarfile.open(fileobj=part, mode="r:") as tar:
            for info in tar:
                if folders and info.isdir():
                    end = info.offset_data
                    continue
                member = _checked(info, end, part.length)
                yield member
                end = member.end
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, OSError) as error:
        raise ValueError(f"no readable tar: {error}") from error
    part.seek(end)
    marker = part.read(2 * _BLOCK)
    if marker != bytes(2 * _BLOCK if whole else 0):
        raise ValueError(f"no readable tar member at byte {end}")


def _checked(info: tarfile.TarInfo, before: int, length: int) -> TarMember:
    """The member, if it is a file that begins at `before` and ends within `length` bytes."""
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
        raise ValueError(f"member {info.name[:80]!r} is not a plain file")
    end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
    if info.offset != before or info.size < 0 or not before < info.offset_data <= end <= length:
        raise ValueError(f"member {info.name[:80]!r} does not lie within the file")
    return TarMember(info.name, info.offset, info.offset_data, info.size, end)
