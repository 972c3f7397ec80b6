"""A worker's end of its socket: messages in and out, waits with a time limit."""

from __future__ import annotations

import select
import socket

import msgspec

from runtime.service.frames import Frames, frame
from runtime.service.messages import ToWorker

RECEIVE_BYTES = 1 << 20
DESCRIPTORS = 100  # of one message; the system takes 253


class Wire:
    """Sends at once, receives whole messages; EOFError once the other side is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(True)
        self._frames: Frames[ToWorker] = Frames(ToWorker)  # type: ignore[arg-type]
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, message: msgspec.Struct) -> None:
        try:
            self._connection.sendall(frame(message))
        except OSError as error:
            raise EOFError from error

    def receive(self, timeout_s: float | None = 0.0) -> list[ToWorker]:
        """What has come; waits for something up to `timeout_s`, for ever if None."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return []
        try:
            data = self._connection.recv(RECEIVE_BYTES)
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return list(self._frames.feed(data))


def send_descriptors(connection: socket.socket, descriptors: list[int]) -> None:
    """File descriptors to the process at the other end, ahead of all messages."""
    for at in range(0, len(descriptors), DESCRIPTORS):
        socket.send_fds(connection, [b"+"], descriptors[at : at + DESCRIPTORS])


def receive_descriptors(connection: socket.socket, count: int) -> list[int]:
    """As many as `send_descriptors` sent; the caller's to close."""
    found: list[int] = []
    while len(found) < count:
        data, descriptors, *_ = socket.recv_fds(connection, 1, DESCRIPTORS)
        if not data:
            raise EOFError
        found += descriptors
    return found
