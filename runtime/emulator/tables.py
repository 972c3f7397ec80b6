"""What the emulator holds beside the pool: the trace, the pending timers, the results, the journal.

Letters: R requests of the trace, G instances, N request slots, J journal rows.
"""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from runtime.core import FOREVER_NS, NONE, NS, RequestPhase
from runtime.emulator.agenda import NOTHING_DUE, new_agenda
from runtime.pool.state import EVENT, Record, State, Table, grow_requests
from runtime.tables import Field, Tables
from traces import Trace
from traces.stream import Chunk

TIMER = np.dtype(
    [
        ("compute_ns", "i8"),  # when the stage under way ends, or FOREVER
        ("began_ns", "i8"),
        ("in_ns", "i8"),  # when what comes over the host link, KV or weights, is there
        ("out_ns", "i8"),  # when the group of outgoing requests is in host memory
        ("in_left_ns", "i8"),  # of a KV group, alone on its port, when last settled
        ("in_since_ns", "i8"),  # when that was; NONE: no KV comes in
        ("out_left_ns", "i8"),
        ("out_since_ns", "i8"),
        ("in_share", "f8"),  # of the port's bandwidth that the KV group could use alone
        ("in_slow", "f8"),  # slowness since then
        ("out_slow", "f8"),
        ("n", "i8"),  # requests or steps of the stage
        ("end_n", "i8"),  # steps until the first request of the batch ends
        ("x", "f8"),
        ("y", "f8"),
        ("out_n", "i8"),
        ("in_kind", "i8"),  # EventKind of the way in: WEIGHTS_READY or KV_IN_DONE
        ("kind", "i8"),  # EventKind of the compute timer
        ("due_ns", "i8"),  # the earliest of the three timers, and its kind
        ("due_kind", "i8"),
        ("stages", "i8"),  # prefill and decode stages planned so far
    ],
    align=True,
)
RESULT = np.dtype(
    [
        ("arrival_ns", "i8"),
        ("first_token_ns", "i8"),  # NONE: it never got one
        ("last_token_ns", "i8"),
        ("stall_ns", "i8"),  # longest gap between two of its tokens
        ("qos", "f8"),
        ("model", "i8"),
        ("prompt_tokens", "i8"),
        ("due_tokens", "i8"),
        ("emitted_tokens", "i8"),
        ("on_time_tokens", "i8"),
        ("phase", "i8"),  # RequestPhase; FREE: never admitted
    ],
    align=True,
)
CONTROL = np.dtype(
    [
        ("base", "i8"),  # id of the first arrival in the tables; 0 but in a stream
        ("cursor", "i8"),  # next arrival
        ("has_more", "i8"),  # more arrivals will follow those in the tables
        ("scripted", "i8"),  # next event of the script
        ("expired", "i8"),  # arrivals whose time limit was looked at
        ("horizon_ns", "i8"),
        ("ttft_timeout_ns", "i8"),
        ("journal_rows", "i8"),
        ("decisions", "i8"),
        ("events", "i8"),
        ("refused", "i8"),
        ("missed_tokens", "i8"),  # of ended requests
        ("decision_kind", "i8"),
        ("decision_index", "i8"),
        ("is_journaling", "i8"),
        ("noise", "f8"),
        ("seed", "i8"),
    ],
    align=True,
)


class Arrivals(Tables):
    """The trace as columns [R]; the emulator alone knows the output lengths."""

    layout: ClassVar = {
        "time_ns": Field(np.int64),
        "model": Field(np.int32),
        "prompt_tokens": Field(np.int32),
        "output_tokens": Field(np.int32),
        "priority": Field(np.int8),
    }
    time_ns: npt.NDArray[np.int64]
    model: npt.NDArray[np.int32]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    priority: npt.NDArray[np.int8]


class Sim(Tables):
    """One emulated pool. `script` [E] are events from outside, `slot` [R] is where a request lives,
    `touched` [N] is scratch."""

    layout: ClassVar = {
        "state": State,
        "timers": Field(TIMER),
        "agenda": Field(np.int64),
        "arrivals": Arrivals,
        "script": Field(EVENT),
        "slot": Field(np.int64),
        "results": Field(RESULT),
        "journal": Field(EVENT),
        "event": Field(EVENT),
        "control": Field(CONTROL),
        "touched": Field(np.int64),
    }
    state: State
    timers: Table
    agenda: npt.NDArray[np.int64]
    arrivals: Arrivals
    script: Table
    slot: npt.NDArray[np.int64]
    results: Table
    journal: Table
    event: Record
    control: Table
    touched: npt.NDArray[np.int64]


def arrivals_of(trace: Trace | Chunk) -> Arrivals:
    priority = trace.priority
    return Arrivals(
        time_ns=np.rint(np.asarray(trace.arrival_s) * NS).astype(np.int64),
        model=np.ascontiguousarray(trace.model, np.int32),
        prompt_tokens=np.ascontiguousarray(trace.prompt_tokens, np.int32),
        output_tokens=np.ascontiguousarray(trace.output_tokens, np.int32),
        priority=np.zeros(trace.requests, np.int8)
        if priority is None
        else priority.astype(np.int8),
    )


def first_live(sim: Sim) -> int:
    """Arrivals in the tables before the oldest request that is not over."""
    control, requests = sim.control[0], sim.state.requests
    live = requests["id"][requests["phase"] != RequestPhase.FREE]
    return (
        int(min(control["cursor"], *(live - control["base"])))
        if len(live)
        else int(control["cursor"])
    )


def feed(sim: Sim, chunk: Arrivals) -> Table:
    """Let `chunk` follow the arrivals in the tables; returns the results of those now let go of:
    the ones before the oldest request that is not over."""
    gone, control = first_live(sim), sim.control[0]
    results = sim.results[:gone]
    for name in Arrivals.layout:
        column = np.concatenate([getattr(sim.arrivals, name)[gone:], getattr(chunk, name)])
        sim.arrivals.put(name, column)
    sim.put("results", np.concatenate([sim.results[gone:], results_of(chunk)]))
    more = np.full(len(chunk.time_ns), NONE, np.int64)
    sim.put("slot", np.concatenate([sim.slot[gone:], more]))
    control["base"] += gone
    control["cursor"] -= gone
    control["expired"] = max(0, control["expired"] - gone)
    return results


def results_of(arrivals: Arrivals) -> Table:
    """Results of requests that have not been admitted."""
    results = np.zeros(len(arrivals.time_ns), RESULT)
    results["arrival_ns"] = arrivals.time_ns
    results["model"] = arrivals.model
    results["prompt_tokens"] = arrivals.prompt_tokens
    results["due_tokens"] = arrivals.output_tokens
    results["first_token_ns"] = NONE
    return results


def new_sim(
    state: State,
    arrivals: Arrivals,
    *,
    ttft_timeout_s: float = 0.0,
    horizon_s: float | None = None,
    journal_rows: int = 0,
    noise: float = 0.0,
    seed: int = 0,
    script: Table | None = None,
) -> Sim:
    """An emulated pool at time 0. `journal_rows` > 0 keeps the journal, starting at that size.

    `script` are the events from outside (runtime.emulator.script), in order.
    """
    n_requests = len(arrivals.time_ns)
    timers = np.zeros(len(state.instances), TIMER)
    timers["compute_ns"] = timers["in_ns"] = timers["out_ns"] = FOREVER_NS
    timers["in_since_ns"] = NONE
    timers["due_ns"], timers["due_kind"] = FOREVER_NS, NOTHING_DUE
    control = np.zeros(1, CONTROL)
    control["horizon_ns"] = FOREVER_NS if horizon_s is None else round(horizon_s * NS)
    control["ttft_timeout_ns"] = round(ttft_timeout_s * NS)
    control["is_journaling"] = journal_rows > 0
    control["noise"], control["seed"] = noise, seed
    return Sim(
        state=state,
        timers=timers,
        agenda=new_agenda(len(timers)),
        arrivals=arrivals,
        script=np.zeros(0, EVENT) if script is None else script,
        slot=np.full(n_requests, NONE, np.int64),
        results=results_of(arrivals),
        journal=np.zeros(journal_rows, EVENT),
        event=np.zeros(1, EVENT),
        control=control,
        touched=np.zeros(len(state.requests), np.int64),
    )


def grow_slots(sim: Sim) -> None:
    grow_requests(sim.state)
    sim.put("touched", np.zeros(len(sim.state.requests), np.int64))


def grow_journal(sim: Sim) -> None:
    sim.put("journal", np.concatenate([sim.journal, np.zeros_like(sim.journal)]))
