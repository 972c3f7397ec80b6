"""The HTTP server in its own process, started with LINK LISTENER JSON: two descriptors, a text."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping

from runtime.plain import from_plain, plain
from runtime.service import children
from runtime.service.http.cards import Offer
from runtime.service.http.process import run_http
from runtime.service.spec import ServerSpec


def start(
    listener: socket.socket, server: ServerSpec, offers: Mapping[str, Offer]
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process and the controller's end of the link to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        text = json.dumps({"server": plain(server), "offers": plain(dict(offers))})
        try:
            child = children.spawn(__name__, (theirs.fileno(), listener.fileno()), text)
        except OSError:
            ours.close()
            raise
    return child, ours


def main(link_fd: int, listener_fd: int, text: str) -> None:
    data = json.loads(text)
    offers = {name: from_plain(Offer, offer) for name, offer in data["offers"].items()}
    server = from_plain(ServerSpec, data["server"], "server")
    run_http(socket.socket(fileno=link_fd), socket.socket(fileno=listener_fd), server, offers)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
