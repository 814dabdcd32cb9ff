"""Messages between our own processes whose arrays are shared, not sent.

A pair of 960x544x89 has 280 MB of pixels. Through a pipe, two processes would copy them in pieces, each waiting for the
other. Here the sender writes the message once into anonymous memory (memfd) and sends its file descriptor. The
receiver's arrays lie in that memory, which the system frees with the last of them, however a process ends. Containers
limit /dev/shm, not this memory. multiprocessing unpickles the message, as it does in `Connection.recv`.
"""

from __future__ import annotations

import mmap
import os
import pickle
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

LARGE = 2**20  # bytes from which on a message is shared
ALIGNMENT = 64  # bytes; arrays begin at multiples of it
CAN_SHARE = hasattr(os, "memfd_create")


def send(connection: Connection[Any, Any], message: object) -> None:
    """Send a message that `receive` returns. Contiguous arrays in it are written to shared memory once."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(text), *(buffer.raw() for buffer in buffers)]
    if not CAN_SHARE or sum(part.nbytes for part in parts) < LARGE:
        connection.send([bytes(part) for part in parts])
        return
    handle = os.memfd_create("message", os.MFD_CLOEXEC)
    with open(handle, "wb", buffering=0) as memory:
        end = 0
        places = []
        for part in parts:
            places.append((end, part.nbytes))
            _write(handle, part, end)
            end += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        memory.truncate(end)
        connection.send(places)
        reduction.send_handle(connection, handle, None)  # Unix needs no process id


def _write(handle: int, part: memoryview, offset: int) -> None:
    """Write all bytes: one call writes at most 2 GiB."""
    written = 0
    while written < part.nbytes:
        written += os.pwrite(handle, part[written:], offset + written)


def receive(connection: Connection[Any, Any]) -> tuple[Any, int]:
    """The next message of `send`, and its size in bytes. EOFError or OSError if the sender has died."""
    parts = connection.recv()
    if isinstance(parts[0], bytes):
        message = reduction.ForkingPickler.loads(parts[0], buffers=[bytearray(part) for part in parts[1:]])
        return message, sum(map(len, parts))
    handle = reduction.recv_handle(connection)
    try:
        end = max(offset + size for offset, size in parts)
        memory = memoryview(mmap.mmap(handle, max(end, 1)))
    finally:
        os.close(handle)
    text, *buffers = (memory[offset : offset + size] for offset, size in parts)
    return reduction.ForkingPickler.loads(text, buffers=buffers), end
