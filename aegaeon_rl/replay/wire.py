"""HTTP/1.1 as a client of many streams needs it: one protocol object a connection, no tasks.

Events of a `text/event-stream` go to the asker as they arrive; other bodies come whole. Connections
that the server keeps are used again.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

import httptools

OnEvent = Callable[[bytes], None]  # the text behind `data:`
MOST_BODY_BYTES = 1 << 20  # kept of an answer that is no stream


class GoneError(Exception):
    """The connection ended before its answer. `had_answer`: some of it had come."""

    def __init__(self, reason: str, had_answer: bool) -> None:
        super().__init__(reason)
        self.had_answer = had_answer


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes  # empty for a stream


class Connection(asyncio.Protocol):
    """One request at a time; `ask` again once its future is done and `is_open`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.asked = 0  # requests so far
        self.done: asyncio.Future[Response] | None = None

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def ask(self, request: bytes, on_event: OnEvent) -> asyncio.Future[Response]:
        """Write it now. The future raises GoneError where the connection ends first."""
        assert self.transport is not None
        assert self.done is None
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.body, self.line = bytearray(), b""
        self.is_stream, self.has_begun = False, False
        self.on_event = on_event
        self.asked += 1
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not declared one

    def data_received(self, data: bytes) -> None:
        if self.done is None:  # nobody asked: not HTTP as we speak it
            self.close()
            return
        self.has_begun = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and self.has_begun and not self._is_framed():
            self.on_message_complete()  # its end is the connection's end
        self._fail(str(error) if error else "the server closed the connection")

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        kind = self.headers.get("content-type", "")
        self.is_stream = kind.startswith("text/event-stream")

    def on_body(self, data: bytes) -> None:
        if not self.is_stream:
            self.body += data[: MOST_BODY_BYTES - len(self.body)]
            return
        lines = (self.line + data).split(b"\n")
        self.line = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self.on_event(line[5:].strip())

    def on_message_complete(self) -> None:
        done, self.done = self.done, None
        if done is None:
            return
        if not self.parser.should_keep_alive():
            self.close()
        if not done.done():
            status = self.parser.get_status_code()
            done.set_result(Response(status, self.headers, bytes(self.body)))

    def _is_framed(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers

    def _fail(self, reason: str) -> None:
        done, self.done = self.done, None
        if done is not None and not done.done():
            done.set_exception(GoneError(reason, self.has_begun))
        self.close()


class Door:
    """Connections to one server: kept ones first, new ones where there is none."""

    def __init__(self, url: str, key: str | None) -> None:
        self.parts: SplitResult = urlsplit(url)
        self.base = self.parts.path.rstrip("/").removesuffix("/v1")
        self.kept: list[Connection] = []
        self.dialled = 0
        secured = self.parts.scheme == "https"
        self.tls = ssl.create_default_context() if secured else None
        key_line = f"Authorization: Bearer {key}\r\n" if key else ""
        self.head = f"Host: {self.parts.netloc.rpartition('@')[2]}\r\n{key_line}"

    def request(self, path: str, body: bytes | None = None) -> bytes:
        """A GET, or with a body a POST of JSON."""
        if body is None:
            return f"GET {self.base}{path} HTTP/1.1\r\n{self.head}\r\n".encode()
        head = (
            f"POST {self.base}{path} HTTP/1.1\r\n{self.head}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def take(self, *, fresh: bool = False) -> Connection:
        """Raises OSError where the server does not answer."""
        while self.kept and not fresh:
            connection = self.kept.pop()
            if connection.is_open:
                return connection
        port = self.parts.port or (443 if self.tls else 80)
        loop = asyncio.get_running_loop()
        host = self.parts.hostname or ""
        dial = loop.create_connection(Connection, host, port, ssl=self.tls)
        _, connection = await asyncio.wait_for(dial, 10.0)
        self.dialled += 1
        return connection

    def give(self, connection: Connection) -> None:
        """Keep it for another request, where that can be."""
        if connection.is_open and connection.done is None:
            self.kept.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        for connection in self.kept:
            connection.close()
        self.kept.clear()
