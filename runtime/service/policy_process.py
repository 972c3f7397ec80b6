"""The process a policy runs in: questions on a snapshot come, answers go.

It shares nothing with the controller but one block of memory, so whatever a policy does there
(raise, stall, hold the GIL, die) costs one late answer. One packet a message (SOCK_SEQPACKET). End
of file on the socket, or the controller's death, ends it.
"""

import socket
import sys
import traceback

import msgspec
import numpy as np

from runtime.core import DecisionKind
from runtime.pool.candidates import pose
from runtime.pool.state import EVENT, State
from runtime.protocol import Policy
from runtime.service.children import hurry, settle_in
from runtime.service.snapshot import Block, Shapes
from runtime.service.sources import make

PACKET_BYTES = 1 << 16


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Make the policy, and its memory from the block: the pool before its first event."""

    factory: str
    name: str
    shapes: Shapes


class Question(msgspec.Struct, frozen=True, tag=True):
    """`event`: the EVENT that `pose` prepared."""

    serial: int
    kind: int
    index: int
    shapes: Shapes
    event: bytes


class Answer(msgspec.Struct, frozen=True, tag=True):
    """To Begin (serial 0) or a question. `error`: what the policy raised; `where`: in full."""

    serial: int
    event: bytes = b""
    error: str = ""
    where: str = ""


Received = Begin | Question
encode = msgspec.msgpack.Encoder().encode
received = msgspec.msgpack.Decoder(Received).decode


class Seat:
    """A policy on its snapshots."""

    def __init__(self, policy: Policy, block: Block, opening: State) -> None:
        self.policy, self.block = policy, block
        self.memory = policy.memory(opening)

    def warm(self, state: State) -> None:
        """Load the machine code of its answers."""
        memory, event = self.policy.memory(state), np.zeros(1, EVENT)
        for kind in (DecisionKind.TURN, DecisionKind.PREFETCH):
            pose(state, kind.value, 0, event[0])
            self.policy.decide(state, kind.value, 0, event[0], memory)

    def answer(self, question: Question) -> bytes:
        event = np.frombuffer(bytearray(question.event), EVENT)
        state = self.block.fit(question.shapes)
        self.policy.decide(state, question.kind, question.index, event[0], self.memory)
        return event.tobytes()


def begin(message: Begin, block: Block) -> Seat:
    opening = block.fit(message.shapes).copy()
    seat = Seat(make(message.factory, message.name), block, opening)
    seat.warm(opening.copy())
    return seat


def serve(connection: socket.socket, block: Block) -> None:
    """Until end of file, or until the policy raises: then its memory may be in halves."""
    seat: Seat | None = None
    while packet := connection.recv(PACKET_BYTES):
        message = received(packet)
        serial = message.serial if isinstance(message, Question) else 0
        try:
            if isinstance(message, Begin):
                seat, event = begin(message, block), b""
            else:
                assert seat is not None
                event = seat.answer(message)
        except Exception as error:  # the process boundary: told to the controller
            line = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            where = traceback.format_exc()[-8000:]
            connection.send(encode(Answer(serial, error=line, where=where)))
            return
        connection.send(encode(Answer(serial, event)))


def main(socket_fd: int, block_fd: int) -> None:
    settle_in("policy")
    hurry()
    with socket.socket(fileno=socket_fd) as connection:
        try:
            serve(connection, Block(block_fd))
        except (ConnectionError, BrokenPipeError):
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
