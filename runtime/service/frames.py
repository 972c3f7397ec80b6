"""Messages on a stream socket: msgpack, each after its length in 4 bytes, little endian."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

HEAD_BYTES = 4
MOST_BYTES = 256 << 20  # a longer frame is an error of ours

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """The other side does not speak as agreed: the connection is of no more use."""


def frame(message: msgspec.Struct) -> bytes:
    """A message as it goes over the wire."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "little") + body


class Frames(Generic[T]):
    """Bytes to messages of the type `kind` (a union of tagged Structs), however they are cut."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """The messages that these bytes complete, in order. Raises FrameError."""
        self._bytes += data
        at, held = 0, len(self._bytes)
        try:
            while held - at >= HEAD_BYTES:
                end = at + HEAD_BYTES + int.from_bytes(self._bytes[at : at + HEAD_BYTES], "little")
                if end - at > MOST_BYTES:
                    raise FrameError(f"a frame of {end - at} bytes: expected {MOST_BYTES} at most")
                if end > held:
                    break
                message = self._decode(bytes(self._bytes[at + HEAD_BYTES : end]))
                at = end
                yield message
        finally:
            del self._bytes[:at]

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise FrameError(f"a frame that is no message: {error}") from None
