"""The HTTP process: from a listening socket and the link to the controller until either ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import socket
from collections.abc import Iterator, Mapping

import uvicorn
import uvloop

from runtime.errors import UserError
from runtime.service.children import settle_in
from runtime.service.http.app import make_app
from runtime.service.http.cards import Card, Offer
from runtime.service.http.connection import Connection
from runtime.service.http.front import Front
from runtime.service.http.keys import read_keys
from runtime.service.http.link import Link
from runtime.service.spec import ServerSpec
from runtime.service.structured import log_as_json

BACKLOG = 2048
CLOSING_S = 3  # for answers under way, once the controller is gone


def bind(server: ServerSpec) -> socket.socket:
    """The listening socket of a server; its port is the real one. Raises UserError.

    Addresses other than loopback are refused where there are no keys.
    """
    read_keys(server.keys_file)
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"server.host={server.host}: cannot be found: {error}") from None
    family, kind, protocol, _, address = found[0]
    if server.keys_file is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise UserError(
            f"server.host={server.host}: others could reach it: expected server.keys_file=FILE "
            "with API keys, or a loopback address (127.0.0.1)"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"server.port={server.port}: cannot be bound: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_http(
    link: socket.socket, listener: socket.socket, server: ServerSpec, offers: Mapping[str, Offer]
) -> None:
    """Serve the models of `offers`, by name, until the controller closes its end of `link`; then
    those who wait get a 503 and the process ends within 5 s. Signals are the controller's."""
    settle_in("http", dies_at_once=False)  # clients are told
    log_as_json()
    cards = {name: offer.card(name) for name, offer in offers.items()}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(link, listener, server, cards))


async def serve(
    link: socket.socket, listener: socket.socket, server: ServerSpec, cards: Mapping[str, Card]
) -> None:
    """As `run_http`, in a loop that runs."""
    link.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, controller = await loop.create_unix_connection(Link, sock=link)
    front = Front(
        link=controller,
        cards=dict(cards),
        keys=read_keys(server.keys_file),
        limits=server.limits,
    )
    config = uvicorn.Config(
        make_app(front),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=CLOSING_S,
    )
    http = Quiet(config)
    gc.collect()
    gc.freeze()
    ending = asyncio.create_task(end_with(controller, http))
    try:
        await http.serve(sockets=[listener])
    finally:
        ending.cancel()
        transport.close()
        front.threads.shutdown(wait=False, cancel_futures=True)


async def end_with(link: Link, http: uvicorn.Server) -> None:
    await link.closed.wait()
    http.should_exit = True


class Quiet(uvicorn.Server):
    """A server that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
