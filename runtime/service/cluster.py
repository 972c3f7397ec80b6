"""Where workers run: processes of this machine, or what else can start and kill one."""

from __future__ import annotations

import multiprocessing
import socket
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext
from typing import Any, Protocol

from runtime.service.agent import NodeAgent
from runtime.service.wire import send_descriptors
from runtime.service.worker import ModelHandle, WorkerSpec, main

REAP_S = 10.0  # a killed process is gone within this


class WorkerHandle(Protocol):
    """A worker as the controller holds it. `connection` speaks frames of messages; `sentinel` is
    a descriptor that can be read once the process is gone."""

    instance: int
    epoch: int
    connection: socket.socket

    @property
    def pid(self) -> int: ...

    @property
    def sentinel(self) -> int: ...

    def is_alive(self) -> bool: ...

    def kill(self) -> None:
        """SIGKILL; nothing if it is gone."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is gone and reaped: it reads and writes nothing any more."""

    def close(self) -> None:
        """Kill, reap, give the connection back."""


class Cluster(Protocol):
    def start(self, instance: int, epoch: int, *, measures: bool = False) -> WorkerHandle:
        """A fresh worker; it says Hello once it can take orders."""

    def close(self) -> None:
        """No worker is left."""


class LocalWorker:
    def __init__(self, instance: int, epoch: int, process: Any, connection: socket.socket) -> None:
        self.instance, self.epoch, self.connection = instance, epoch, connection
        self._process = process
        self._closing, self.is_closed = threading.Lock(), False

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def sentinel(self) -> int:
        return int(self._process.sentinel)

    def is_alive(self) -> bool:
        return bool(self._process.is_alive())

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout_s: float | None = None) -> bool:
        self._process.join(timeout_s)
        return not self.is_alive()

    def close(self) -> None:
        with self._closing:  # by who replaces it and who ends all, in threads of their own
            if self.is_closed:
                return
            self.kill()
            gone = self.wait(REAP_S)
            assert gone, f"worker {self.instance}: process {self.pid} outlives SIGKILL"
            self._process.close()
            self.connection.close()
            self.is_closed = True


class LocalCluster:
    """Processes forked from one server that has torch and the engine in memory, CUDA untouched."""

    def __init__(self, agent: NodeAgent) -> None:
        self._agent = agent
        self._workers: list[LocalWorker] = []
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["runtime.service.worker"])

    def start(self, instance: int, epoch: int, *, measures: bool = False) -> LocalWorker:
        spec = self._spec(instance, epoch, measures=measures)
        ours, theirs = socket.socketpair()
        with theirs, without_main():
            process = self._context.Process(target=main, args=(spec, theirs), daemon=True)
            try:
                process.start()
            except BaseException:
                ours.close()
                raise
        blobs = [self._agent.blobs[model.name] for model in spec.models]
        worker = LocalWorker(instance, epoch, process, ours)
        self._workers = [w for w in self._workers if not w.is_closed]
        self._workers.append(worker)
        with suppress(OSError):  # it is gone already, as its handle says
            send_descriptors(ours, [self._agent.host_kv.fd, *(blob.memory.fd for blob in blobs)])
        return worker

    def close(self) -> None:
        for worker in self._workers:
            if not worker.is_closed:
                worker.close()
        self._workers.clear()

    def _spec(self, instance: int, epoch: int, *, measures: bool) -> WorkerSpec:
        spec, agent = self._agent.spec, self._agent
        return WorkerSpec(
            instance=instance,
            epoch=epoch,
            device=spec.device if spec.device == "cpu" else f"{spec.device}:{instance}",
            weight_slots=spec.weight_slots,
            kv_bytes=spec.kv_bytes,
            block_tokens=spec.block_tokens,
            threads=spec.threads,
            measures=measures,
            models=tuple(
                ModelHandle(
                    name=name, index=blob.index.text().encode(), path=agent.sources[name].path
                )
                for name, blob in agent.blobs.items()
            ),
        )


@contextmanager
def without_main() -> Iterator[None]:
    """A process started within does not import this one's main module again: it needs none of a
    command line's imports."""
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module
