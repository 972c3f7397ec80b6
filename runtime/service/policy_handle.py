"""A policy's process as the controller holds it: start, question, answer, end."""

import select
import socket
import time

import msgspec

from runtime.pool.state import Record, State
from runtime.service import children, policy_process
from runtime.service.policy_process import PACKET_BYTES, Answer, Begin, Question, encode
from runtime.service.snapshot import Block
from runtime.service.spec import PolicySource

MODULE = policy_process.__name__
decoded = msgspec.msgpack.Decoder(Answer).decode


class Owed(msgspec.Struct):
    """The question a process has, 0 its start."""

    serial: int
    since_s: float


class Process:
    """A policy's process, from start to end. `owed` None: it is idle and may be asked."""

    def __init__(self, source: PolicySource, name: str, opening: State) -> None:
        self.name, self.block = name, Block.made()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        ours.setblocking(False)
        self.poll = select.poll()
        self.poll.register(ours, select.POLLIN)
        try:
            shapes = self.block.write(opening)
            self.child = children.spawn(MODULE, (theirs.fileno(), self.block.fd))
        except OSError:
            self.block.close()
            ours.close()
            raise
        finally:
            theirs.close()
        ours.send(encode(Begin(source.factory, name, shapes)))
        self.is_ready = False
        self.owed: Owed | None = Owed(0, time.monotonic())

    def ask(self, serial: int, state: State, kind: int, index: int, event: Record) -> None:
        shapes = self.block.write(state)
        self.socket.send(encode(Question(serial, kind, index, shapes, event.tobytes())))
        self.owed = Owed(serial, time.monotonic())

    def take(self, wait_s: float) -> Answer | None:
        """The next answer, or None within `wait_s`. Raises EOFError when the process has ended."""
        if not self.poll.poll(max(0.0, wait_s * 1e3)):
            return None
        try:
            packet = self.socket.recv(PACKET_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            packet = b""
        if not packet:
            raise EOFError
        answer = decoded(packet)
        if self.owed is not None and answer.serial == self.owed.serial:
            self.owed, self.is_ready = None, True
        return answer

    def end(self) -> None:
        """Kill and reap; nothing of it is left."""
        children.end(self.child)
        self.socket.close()
        self.block.close()
