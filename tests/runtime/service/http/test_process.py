"""The process as the controller starts it: by spawn, with sockets and plain facts."""

from __future__ import annotations

import multiprocessing
import os
import signal

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
