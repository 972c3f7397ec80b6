"""The process as the controller starts it: by spawn, with sockets and plain facts."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
from fake_controller import FakeController

from runtime.service.http.cards import Offer
from runtime.service.http.process import bind, run_http, url_of
from runtime.service.spec import ServerSpec


def test_the_process_serves_ignores_signals_and_ends_with_the_controller() -> None:
    spec, controller = ServerSpec(port=0), FakeController()
    listener, link = bind(spec), controller.start()
    offers = {"m": Offer(path="tiny:llama:0", context_tokens=64, vocab=512)}
    process = multiprocessing.get_context("spawn").Process(
        target=run_http, args=(link, listener, spec, offers)
    )
    process.start()
    url = url_of(listener)
    link.close()
    listener.close()
    try:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["message"]["content"] == "hi"
        assert process.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["max_model_len"] == 64
        controller.stop()
        process.join(5)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()


PARENT = """
import time
from runtime.service import http_process
from runtime.service.http.cards import Offer
from runtime.service.http.process import bind
from runtime.service.spec import ServerSpec
server = ServerSpec(port=0)
listener = bind(server)
offers = {"m": Offer(path="tiny:llama:0", context_tokens=64, vocab=262)}
child, link = http_process.start(listener, server, offers)
print(listener.getsockname()[1], child.pid, flush=True)
while True:
    link.recv(1 << 16)
    print("heard", flush=True)
"""


def test_clients_are_told_when_the_controller_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, socket.socket() as client:
        port, pid = map(int, parent.stdout.readline().split())
        client.connect(("127.0.0.1", port))
        body = json.dumps({"model": "m", "prompt": "x"}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
        client.sendall(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        assert parent.stdout.readline() == "heard\n"
        parent.kill()
        client.settimeout(5)
        assert client.recv(1 << 16).split()[1] == b"503"
        assert ended_within(pid, 5)


def ended_within(pid: int, limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
