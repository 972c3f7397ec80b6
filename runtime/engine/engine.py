"""Runs turns on one device: many models, switched between tokens.

The caller decides what runs (a `Plan`); the engine owns weights, KV, tokens and time. `run_turn`
is a generator: between its events the caller may `join` requests, `stop` the turn, `cancel` a
request or `prefetch` a model; all take effect at the next token boundary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.engine.arena import Arena
from runtime.engine.attention import AttentionBatch
from runtime.engine.blob_index import BlobIndex
from runtime.engine.checks import check_record, check_request
from runtime.engine.device import Device
from runtime.engine.door import Traits
from runtime.engine.graphs import GRAPH_BYTES, open_graphs
from runtime.engine.host_kv import HostKvFullError, HostRecord
from runtime.engine.kv import KvArena, KvSpec
from runtime.engine.live import Inputs, Live
from runtime.engine.loader import Load, Loader
from runtime.engine.model import Shell, shape_key
from runtime.engine.plan import Plan, Request, RequestId, TurnEvent
from runtime.engine.residents import Blobs, NoRoomError, Residents
from runtime.engine.text import Tokenizer
from runtime.engine.turn import Turn
from runtime.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Served:
    """A model the engine knows: what its bytes are, its shell, its KV."""

    index: BlobIndex
    layout: int  # equal for models whose bytes are laid out alike
    shell: Shell
    spec: KvSpec
    layers: tuple[Tensor, ...]  # views of the KV arena
    scratch_block: int  # belongs to no request
    tokenizer: Tokenizer | None


@dataclass(slots=True)
class Inbox:
    """What the caller wants at the next boundary; appended to from any thread."""

    incoming: deque[RequestId] = field(default_factory=deque)
    prefill: deque[RequestId] = field(default_factory=deque)
    batch: deque[RequestId] = field(default_factory=deque)
    cancelled: deque[RequestId] = field(default_factory=deque)
    stop: bool = False

    def forget(self, request: RequestId) -> None:
        """A later request of this name is another one."""
        while request in self.cancelled:
            self.cancelled.remove(request)

    def forget_joins(self) -> None:
        for queue in (self.incoming, self.prefill, self.batch):
            queue.clear()


class DeviceBytes(NamedTuple):
    """What an engine holds on its device for good; what a step works on comes and goes beside it.
    Graphs hold no more than the engine's `graph_bytes`."""

    arena: int  # weight slots and KV
    buffers: int  # of the model shells
    graphs: int


class Engine:
    """One device's models, requests and turns.

    Args:
        arena: its memory: slots of weights, and the bytes that `kv` manages.
        blobs: where weights come from.
        block: tokens of a KV block.
        graph_bytes: of device memory for captured steps, beside the arena.
    """

    traits = Traits(token_preempt=True, kv_survives_switch=True)

    def __init__(
        self,
        device: Device,
        arena: Arena,
        kv: KvArena,
        blobs: Blobs,
        *,
        loader: Loader | None = None,
        block: int = 16,
        graph_bytes: int = GRAPH_BYTES,
    ) -> None:
        self.device, self.kv, self.block = device, kv, block
        self.graphs = open_graphs(device, budget_bytes=graph_bytes)
        self.loader = loader or Loader(device)
        self.residents = Residents(device, arena, self.loader, blobs)
        self.inbox = Inbox()
        self.lives: dict[RequestId, Live] = {}
        self._models: dict[str, Served] = {}
        self._shells: dict[str, Shell] = {}
        self._layouts: dict[tuple[str, ...], int] = {}
        self._scratch: dict[KvSpec, str] = {}
        self._active: str | None = None
        self._last: AttentionBatch | None = None  # of the call before
        self.turn: Turn | None = None  # under way
        self._closed = False

    # What there is

    def add_model(self, name: str, index: BlobIndex, tokenizer: Tokenizer | None = None) -> None:
        """Make a model known; models of one shape share a shell."""
        self._require_open()
        if index.nbytes > (most := self.residents.arena.largest_slot_bytes):
            raise UserError(
                f"model {name} has {index.nbytes} bytes of weights: expected at most {most}, the "
                "largest slot"
            )
        key = shape_key(index.config, index.dtype)
        if key not in self._shells:
            with self.device.computing():
                self._shells[key] = Shell(index.config, index.dtype, self.device.torch)
        shell = self._shells[key]
        spec = KvSpec(*shell.geometry, index.dtype, self.block)
        self.kv.require(spec, name)
        view = self.kv.view(spec)
        layers = tuple(view[:, layer] for layer in range(spec.layers))
        places = (key, *(f"{at.offset} {tensor}" for tensor, at in index.tensors.items()))
        layout = self._layouts.setdefault(places, len(self._layouts))
        scratch = self._scratch_block(spec)
        self._models[name] = Served(index, layout, shell, spec, layers, scratch, tokenizer)

    def _scratch_block(self, spec: KvSpec) -> int:
        """Where the padded rows of a captured step write; nothing is captured on CPU."""
        if self.device.torch.type == "cpu":
            return 0
        if spec not in self._scratch:
            self._scratch[spec] = f"scratch of {spec}"
            self.kv.allocate(self._scratch[spec], 1, spec, stays=True)
        return self.kv.table(self._scratch[spec])[0]

    def served(self, model: str) -> Served:
        if model not in self._models:
            raise UserError(f"model {model!r} is not served; {nearest(model, self._models)}")
        return self._models[model]

    def submit(self, request: Request, kv: HostRecord | None = None) -> None:
        """Make a request known. `kv`: where the KV of its first tokens lies in the node's host
        memory; without it the request starts with a prefill."""
        self._require_open()
        served = self.served(request.model)
        room = self.kv.capacity_tokens(served.spec, beside=self._scratch)
        check_request(request, served, self.lives, room)
        shell = served.shell
        with self.device.computing():
            live = Live(
                request,
                vocab=shell.vocab,
                device=self.device.torch,
                stop_tokens=shell.stop_tokens,
                context=min(shell.context, room),
                tokenizer=served.tokenizer,
            )
        if kv is not None:
            check_record(request, kv, served.spec, self.kv.host)
            self.kv.adopt(request.id, kv, served.spec)
            live.cached, live.has_kv = min(kv.tokens, len(live.tokens) - 1), True
        self.lives[request.id] = live

    def release(self, request: RequestId) -> None:
        """Forget a request and its KV; nothing if it is not known. One of the turn under way is
        to be cancelled instead."""
        self._require_outside(request)
        live = self._forget(request) if request in self.lives else None
        if live is not None and live.has_kv:
            self.kv.free(request)

    def hand_over(self, request: RequestId) -> tuple[Request, HostRecord]:
        """Give up a request whose KV is in host memory, for `submit` on another instance."""
        live = self.live(request)
        self._require_outside(request)
        if not live.has_kv or self.kv.is_on_device(request):
            raise UserError(
                f"request {request!r}: its KV is not in host memory: expected `move_out` first"
            )
        record = self.kv.hand_over(request)
        return self._forget(request).resumed(), record._replace(tokens=live.cached)

    def live(self, request: RequestId) -> Live:
        if request not in self.lives:
            raise UserError(f"request {request!r} is not known: expected `submit` first")
        return self.lives[request]

    def _forget(self, request: RequestId) -> Live:
        self.inbox.forget(request)
        return self.lives.pop(request)

    def _require_outside(self, request: RequestId) -> None:
        if self.turn is not None and self.turn.has(request):
            raise UserError(f"request {request!r} is in the turn under way: expected `cancel`")

    def _require_open(self) -> None:
        if self._closed:
            raise UserError("the engine is closed: expected another one")

    def _require_of(self, names: Iterable[RequestId], model: str) -> None:
        for name in names:
            found = self.live(name).request.model
            if found != model:
                raise UserError(
                    f"request {name!r} is of model {found!r}: expected {model!r}, the turn's"
                )

    # What it does

    def run_turn(self, plan: Plan) -> Iterator[TurnEvent]:
        """Run one turn; the last event is TURN_ENDED, whose requests may go on in another."""
        self._require_open()
        if self.turn is not None:
            raise UserError(
                f"plan.model={plan.model}: a turn of {self.turn.plan.model} is under way: expected "
                "its end, or its iterator closed"
            )
        self.served(plan.model)
        self._require_of((*plan.incoming, *plan.prefill, *plan.batch), plan.model)
        self.inbox.stop = False
        turn = self.turn = Turn(self, plan)
        try:
            yield from turn.run()
        finally:
            if self.turn is turn:
                self.turn = None
                self.inbox.forget_joins()

    def join(
        self,
        *,
        incoming: Sequence[RequestId] = (),
        prefill: Sequence[RequestId] = (),
        batch: Sequence[RequestId] = (),
    ) -> None:
        """Requests of the turn's model join it at the next token boundary."""
        names = (*incoming, *prefill, *batch)
        if self.turn is None:
            raise UserError(f"join of {names!r:.80}: no turn is under way: expected `run_turn`")
        self._require_of(names, self.turn.plan.model)
        for name in names:
            if self.turn.has(name) or names.count(name) > 1:
                raise UserError(f"request {name!r} is in the turn already: expected others")
        self.inbox.incoming += incoming
        self.inbox.prefill += prefill
        self.inbox.batch += batch

    def stop(self) -> None:
        """End the turn at the next token boundary."""
        self.inbox.stop = True

    def cancel(self, request: RequestId) -> None:
        """End a request at the next token boundary, of this turn or the next one; nothing if it
        is not known, so that it may just have ended."""
        if request in self.lives:
            self.inbox.cancelled.append(request)

    def prefetch(self, model: str) -> None:
        """Begin to load a model beside the active one; another load under way may be dropped. It
        is a hint: nothing happens where there is no room beside the active one."""
        self._require_open()
        with suppress(NoRoomError):
            self.residents.require(model, self.served(model).index.nbytes, keep=self._active)

    def load(self, model: str, kept: Sequence[str] = ()) -> Load:
        """Begin to load a model beside those of `kept`; all others leave, a load of theirs under
        way is dropped. A model that is there already has a load that is done.

        Raises NoRoomError when `kept` leaves no slot for it."""
        self._require_open()
        nbytes = self.served(model).index.nbytes
        self.residents.keep_only({model, *kept})
        if self.residents.find(model) is None and self.residents.arena.fit(nbytes) is None:
            raise NoRoomError(f"model {model}: expected a slot beside those of {', '.join(kept)}")
        return self.residents.require(model, nbytes).load

    def activate(self, model: str) -> Served:
        """Weights in place and bound, models' steps ready to run. Waits for the load."""
        served = self.served(model)
        self._active = model
        resident = self.residents.require(model, served.index.nbytes)
        resident.load.wait()
        key = (resident.slot, served.layout)
        served.shell.bind(key, lambda: served.index.views(self.residents.arena.slot(resident.slot)))
        return served

    def move_out(self, requests: Sequence[RequestId]) -> tuple[RequestId, ...]:
        """Begin to copy these requests' KV to host memory; those that fit there, in order."""
        for at, request in enumerate(requests):
            try:
                self.kv.move_out(request)
            except HostKvFullError:
                return tuple(requests[:at])
        return tuple(requests)

    def drop_kv(self, request: RequestId) -> None:
        """Give a request's KV back; its tokens stay, and it waits for a prefill of them."""
        live = self.lives[request]
        self.kv.free(request)
        live.cached, live.has_kv = 0, False

    def recompute(self, request: RequestId) -> None:
        """Make the KV of all tokens of a request but the last, so that its next step is a decode
        step. Nothing is sampled.

        Raises:
            KvFullError: there is no room; nothing changes.
        """
        live = self.live(request)
        served = self.activate(live.request.model)
        if live.has_kv:
            self.kv.extend(request, len(live.tokens))
        else:
            self.kv.allocate(request, len(live.tokens), served.spec)
            live.has_kv = True
        if (count := live.missing - 1) > 0:
            self.logits(served, [live], [count])
            live.cached += count

    def logits(self, served: Served, lives: Sequence[Live], counts: Sequence[int]) -> Tensor:
        """One model call for the next `counts` tokens of each request: logits of the last ones."""
        self.kv.wait_for(live.request.id for live in lives)
        tables = [self.kv.table(live.request.id) for live in lives]
        shell, layers = served.shell, served.layers
        with self.device.computing(), torch.inference_mode():
            call = Inputs(lives, counts, tables, self.block, self.device.torch, self._last)
            self._last = call.batch
            if call.rows is not None:
                return shell.forward(call.tokens, call.positions, layers, call.batch, call.rows)
            return self.graphs.run(
                shell.bound,
                lambda tokens, positions, batch: shell.forward(tokens, positions, layers, batch),
                call.tokens,
                call.positions,
                call.batch,
                scratch_block=served.scratch_block,
            )

    def device_bytes(self) -> DeviceBytes:
        """What this engine holds, as it counts it; `device.memory_used` is the device's word."""
        buffers = sum(shell.buffer_bytes for shell in self._shells.values())
        return DeviceBytes(self.residents.arena.nbytes, buffers, self.graphs.used_bytes)

    def close(self) -> None:
        """Finish loads and moves under way; memory is the device's to give back."""
        if self._closed:
            return
        self._closed = True
        self.residents.close()
        self.loader.close()
        self.kv.settle()

    def check_integrity(self) -> None:
        self.kv.check_integrity()
        self.residents.check_integrity()
        for name, live in self.lives.items():
            assert 0 <= live.cached <= len(live.tokens)
            if live.has_kv:
                assert self.kv.tokens(name) >= live.cached
