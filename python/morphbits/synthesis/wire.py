"""How trainers and the synthesis process talk: packets of JSON, and pairs in shared memory.

A trainer connects to a local socket and hands over a piece of anonymous shared memory (`Slots`),
which it owns and which the kernel frees with the last process that has it. Then

    trainer → {"slot": 1, "epoch": 0, "step": 7, "rank": 0, "wanted": false}
    trainer ← {"slot": 1}                       the pair lies in slot 1
    trainer ← {"error": "…"}                    what to tell the user; nothing follows

The names of the sockets are those of Linux that no file stands for, so none is left behind; both
sides see to it that the other is a process of the same user.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKET = 1 << 16  # bytes; a packet is a line of JSON


@dataclass(frozen=True)
class Layout:
    """A batch of pairs as it lies in a slot.

    shape: (X, Y, Z) of an image. labels: how many, the channels of a pair. batch: pairs.
    """

    shape: tuple[int, int, int]
    labels: int
    batch: int

    @property
    def target_type(self) -> np.dtype[Any]:
        """Of a voxel's label: 0, or 1 … `labels`."""
        return np.min_scalar_type(self.labels)

    @property
    def size(self) -> int:
        """Bytes of a slot: two images and two target maps."""
        voxels = int(np.prod(self.shape)) * self.batch
        return 2 * voxels * (4 + self.target_type.itemsize)


class Slots:
    """`count` batches in a piece of shared memory."""

    def __init__(self, file: int, layout: Layout, count: int) -> None:
        """`file`: descriptor of the memory, which is mapped here and stays the caller's."""
        self.layout, self._count = layout, count
        self._memory = mmap.mmap(file, layout.size * count)

    def __len__(self) -> int:
        return self._count

    def images(self, slot: int) -> NDArray[np.float32]:
        """Moving and fixed images of a slot, (2, B, X, Y, Z)."""
        layout = self.layout
        return np.ndarray(
            (2, layout.batch, *layout.shape), np.float32, self._memory, slot * layout.size
        )

    def targets(self, slot: int) -> NDArray[Any]:
        """Moving and fixed target maps of a slot, (2, B, X, Y, Z)."""
        layout = self.layout
        offset = slot * layout.size + 2 * layout.batch * int(np.prod(layout.shape)) * 4
        return np.ndarray(
            (2, layout.batch, *layout.shape), layout.target_type, self._memory, offset
        )


def shared_memory(layout: Layout, count: int) -> int:
    """Descriptor of new anonymous memory for `count` slots."""
    file = os.memfd_create("pairs", os.MFD_CLOEXEC)
    os.ftruncate(file, layout.size * count)
    return file


def listen(name: str) -> socket.socket:
    """A socket that trainers connect to by its name."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    listener.listen(1024)
    return listener


def connect(name: str) -> socket.socket:
    """A connection to who listens under that name; ConnectionError where there is nobody (yet)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"\0{name}")
        if not same_user(connection):
            raise PermissionError("another user's process listens where the synthesis should")
    except OSError:
        connection.close()
        raise
    return connection


def same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is one of this user."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.getuid())


def send(connection: socket.socket, message: dict[str, Any], file: int | None = None) -> None:
    """One packet, and with it the descriptor `file`."""
    packet = json.dumps(message).encode()
    if file is None:
        connection.sendall(packet)
    else:
        socket.send_fds(connection, [packet], [file])


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next packet; None when the other end has closed or died."""
    message, _ = receive_with_file(connection)
    return message


def receive_with_file(connection: socket.socket) -> tuple[dict[str, Any] | None, int | None]:
    """The next packet and the descriptor that came with it."""
    try:
        packet, files, _, _ = socket.recv_fds(connection, PACKET, 1)
    except ConnectionError:
        return None, None
    return (json.loads(packet) if packet else None), (files[0] if files else None)
