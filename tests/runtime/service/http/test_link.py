"""An inbox holds what came in order, within bounds; nobody waits for ever on the link."""

from __future__ import annotations

import asyncio
import socket

import pytest

from runtime.service.frames import frame
from runtime.service.http import link as linking
from runtime.service.http.errors import ApiError
from runtime.service.http.link import Inbox, Item, Link
from runtime.service.messages import Ask, Tokens


async def linked() -> tuple[Link, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, link = await asyncio.get_running_loop().create_unix_connection(Link, sock=ours)
    return link, theirs


def ask(link: Link, prompt: int = 1) -> Ask:
    return Ask(id=link.next_id(), request_id="r", model="m", prompt=(1,) * prompt, max_tokens=1)


def test_numbers_of_requests_rise_over_a_restart_of_the_process() -> None:
    async def check() -> None:
        before = Link().next_id()
        await asyncio.sleep(0.005)
        assert Link().next_id() > before

    asyncio.run(check())


def test_an_inbox_gives_all_that_came_since_in_order() -> None:
    async def check() -> None:
        inbox = Inbox()
        waiting = asyncio.create_task(inbox.take())
        await asyncio.sleep(0)
        for token in range(3):
            inbox.put(Item(0, token))
        assert [item.token for item in await waiting] == [0, 1, 2]
        inbox.put(Item(0, 3))
        assert [item.token for item in await inbox.take()] == [3]

    asyncio.run(check())


def test_an_inbox_that_nobody_empties_gives_up() -> None:
    async def check() -> None:
        inbox = Inbox()
        for token in range(linking.MOST_BEHIND + 1):
            inbox.put(Item(0, token))
        with pytest.raises(ApiError, match="reads too slowly"):
            await inbox.take()

    asyncio.run(check())


def test_a_controller_that_reads_nothing_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        monkeypatch.setattr(linking, "WRITE_S", 0.1)
        link, theirs = await linked()
        with theirs:
            await link.ask([ask(link, prompt=1_000_000)], Inbox())
            with pytest.raises(ApiError, match="takes no requests") as caught:
                await link.ask([ask(link)], Inbox())
        assert caught.value.status == 503

    asyncio.run(check())


def test_nonsense_from_the_controller_ends_all_that_waits() -> None:
    async def check() -> None:
        link, theirs = await linked()
        inbox = Inbox()
        request = ask(link)
        await link.ask([request], inbox)
        theirs.sendall(frame(Tokens(ids=(request.id, 99), tokens=(7, 8))))
        assert await inbox.take() == [Item(0, 7)]
        theirs.sendall((3).to_bytes(4, "little") + b"abc")
        with pytest.raises(ApiError, match="controller is gone"):
            await inbox.take()
        with pytest.raises(ApiError, match="controller is gone"):
            await link.call("health")
        assert link.in_flight == 0
        theirs.close()

    asyncio.run(check())
