"""The controller's end of the link, in a thread: says each prompt's tokens again, one a step.

What a prompt's text begins with decides how it ends: `!shed`, `!timeout`, `!failed`, `!draining`,
`!refused`, `!cancelled` end at once, `!broken` after two tokens; `!mute` says nothing ever.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from runtime.service.frames import Frames, frame
from runtime.service.messages import (
    Ask,
    Call,
    Drop,
    End,
    Ended,
    FromHttp,
    Logprob,
    Reply,
    ToHttp,
    Tokens,
)

ENDS = {f"!{end}".encode(): end for end in End}
EOS = 257


@dataclass
class Running:
    ask: Ask
    made: int = 0

    @property
    def next_token(self) -> int:
        return self.ask.prompt[self.made % len(self.ask.prompt)]


@dataclass
class FakeController:
    """`asks`, `drops`, `calls`: all that came, in order. `answers`: of calls, by name."""

    step_s: float = 0.001
    is_silent: bool = False  # to calls
    answers: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    asks: list[Ask] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    running: dict[int, Running] = field(default_factory=dict)

    def start(self) -> socket.socket:
        """Begin; the socket returned is the HTTP side's end."""
        ours, theirs = socket.socketpair()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(ours,), daemon=True)
        self._thread.start()
        return theirs

    def stop(self) -> None:
        """Go away: the HTTP side sees the end of the stream."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(10)

    def _run(self, ours: socket.socket) -> None:
        self._task = self._loop.create_task(self._serve(ours))
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.close()

    async def _serve(self, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        steps = asyncio.create_task(self._step(writer))
        frames: Frames[FromHttp] = Frames(FromHttp)
        try:
            while data := await reader.read(1 << 16):
                for message in frames.feed(data):
                    for said in self._hear(message):
                        writer.write(frame(said))
        finally:
            steps.cancel()
            writer.close()

    def _hear(self, message: FromHttp) -> Iterator[ToHttp]:
        if isinstance(message, Ask):
            self.asks.append(message)
            end = ENDS.get(bytes(t for t in message.prompt if t < 256).partition(b" ")[0])
            if end is not None:
                yield Ended(id=message.id, end=end, reason=f"{end} it is", retry_after_s=7.2)
            else:
                self.running[message.id] = Running(message)
        elif isinstance(message, Drop):
            self.drops.append(message.id)
            self.running.pop(message.id, None)
        else:
            self.calls.append(message)
            if not self.is_silent:
                yield self._reply(message)

    def _reply(self, call: Call) -> Reply:
        answer = self.answers.get(call.name)
        if answer is None:
            return Reply(call=call.call, error=f"{call.name}: no such operation")
        try:
            return Reply(call=call.call, value=answer(call.arguments))
        except ValueError as error:
            return Reply(call=call.call, error=str(error))

    async def _step(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            speaking = [
                r for r in self.running.values() if not bytes_of(r.ask).startswith(b"!mute")
            ]
            if not speaking:
                continue
            writer.write(frame(self._tokens(speaking)))
            for running in speaking:
                ended = self._end_of(running)
                if ended is not None:
                    del self.running[running.ask.id]
                    writer.write(frame(ended))
            await writer.drain()

    def _tokens(self, speaking: list[Running]) -> Tokens:
        tokens, logprobs = [], []
        for running in speaking:
            token = running.next_token
            tokens.append(token)
            wanted = running.ask.sampling.logprobs
            top = tuple((token + i, -0.5 - i) for i in range(wanted or 0))
            logprobs.append(None if wanted is None else Logprob(-0.5, top))
            running.made += 1
        ids = tuple(running.ask.id for running in speaking)
        return Tokens(ids=ids, tokens=tuple(tokens), logprobs=tuple(logprobs))

    def _end_of(self, running: Running) -> Ended | None:
        ask = running.ask
        said = bytes_of(ask) * (running.made // len(ask.prompt) + 1)
        if bytes_of(ask).startswith(b"!broken") and running.made == 2:
            return Ended(id=ask.id, end=End.FAILED, reason="it broke")
        if any(stop.encode() in said[: running.made] for stop in ask.stop_strings):
            return Ended(id=ask.id, end=End.STOP)
        if running.made >= ask.max_tokens:
            return Ended(id=ask.id, end=End.LENGTH)
        return None


def bytes_of(ask: Ask) -> bytes:
    return bytes(token if token < 256 else 0 for token in ask.prompt)
