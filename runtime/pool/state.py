"""The tables of a pool: struct-of-arrays, no clock and no behaviour.

Letters: N request slots, M models, G instances, S weight slots, D nodes, L root ports, T GPU types.
Each dtype field states its unit in its name.
"""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.core import NONE
from runtime.tables import Field, Tables

Table = npt.NDArray[Any]
Record = Any  # one row of a Table; kernels read and write its fields as attributes

REQUEST = np.dtype(
    [  # what is read most often comes first, in one line of the cache
        ("id", "i8"),
        ("arrival_ns", "i8"),
        ("model", "i8"),
        ("phase", "i8"),
        ("emitted_tokens", "i8"),
        ("on_time_tokens", "i8"),
        ("next", "i8"),
        ("list", "i8"),  # the one list it is in
        ("prev", "i8"),
        ("kv", "i8"),
        ("instance", "i8"),  # its owner, or where its KV is
        ("is_cancelled", "i8"),  # asked for while a turn owned it
        ("priority", "i8"),
        ("tag", "i8"),  # a policy's label: prefill group or decode batch
        ("prompt_tokens", "i8"),
        ("prefilled_tokens", "i8"),  # of a prefill that chunks left unfinished
        ("route", "i8"),  # where a push policy sent it
        ("node", "i8"),  # host memory that holds its KV
        ("first_token_ns", "i8"),  # NONE before the first token
        ("last_token_ns", "i8"),
        ("stall_ns", "i8"),  # longest gap between two of its tokens
        ("qos_ns", "i8"),  # covered time of closed windows (slo.py)
        ("qos_start_ns", "i8"),  # start of the open window
        ("qos_covered_ns", "i8"),  # target reached within the open window
        ("qos_target_ns", "i8"),
        ("generation", "i8"),  # times this slot was used
    ],
    align=True,
)
MODEL = np.dtype(
    [
        ("weight_bytes", "i8"),
        ("load_ns", "i8"),  # over an idle host link, from the host cache
        ("block_bytes", "i8"),  # KV of one block
        ("kv_token_bytes", "i8"),
        ("ttft_ns", "i8"),
        ("tbt_ns", "i8"),
        ("asks_ns", "i8"),  # an arrival of it then may pose an INTERRUPT (interrupts.py); or NONE
        ("waiting_since_ns", "i8"),  # when its oldest unserved work became available, or FOREVER
        ("rate_rps", "f8"),  # decaying count of arrivals (tau = RATE_TAU_S)
        ("rate_at_ns", "i8"),
        ("running_on", "i8"),  # instances whose turn is of this model
        ("prefetched_on", "i8"),  # instances that hold or load it ahead of need
        ("running_head", "i8"),  # the instances whose turn is of it: a list through `next_running`
        ("place", "i8"),  # in `open_models`; NONE without open work (open_work.py, also below)
        ("urgent_ns", "i8"),  # earliest next deadline of its open requests, or FOREVER
        ("oldest_ns", "i8"),  # earliest arrival
        ("open_kv_bytes", "i8"),
        ("is_stale", "i8"),  # a request that a minimum came from was closed
        ("bound", "i8"),  # open requests that only some instances can take
        ("deadline_sum_ns", "f8"),
        ("waiting_s", "f8"),  # predicted prefill time of what waits, on the pool's first GPU type
    ],
    align=True,
)
INSTANCE = np.dtype(
    [
        ("epoch", "i8"),  # grows when it fails
        ("kv_used_bytes", "i8"),  # held on the device, moves in flight included
        ("kv_promised_bytes", "i8"),  # of a BLOCKED turn: claimed once the outgoing moves end
        ("quota_ns", "i8"),
        ("decoded_ns", "i8"),  # decode time of the present turn
        ("turn_start_ns", "i8"),
        ("stage_ns", "i8"),  # when the present run of steps, or other stage, began
        ("served_ns", "i8"),  # end of its last turn
        ("compute_ns", "i8"),  # prefill and decode time since its last switch
        ("batch_context_tokens", "i8"),
        ("load_left_ns", "i8"),  # predicted, alone on its port; of the load under way
        ("load_since_ns", "i8"),  # when the load last had the link, or NONE while it waits
        ("load_share", "f8"),  # of the port's bandwidth that it could use alone
        ("turn_tag", "i8"),
        ("seen_wake", "i8"),  # value of pool.wakes when it went idle
        ("seen_arrivals", "i8"),  # value of pool.arrivals when it declined a prefetch
        ("outgoing_bytes", "i8"),  # of kv_used_bytes: on its way to the host
        ("queued_bytes", "i8"),  # of kv_used_bytes: must leave once the host has room
        ("routed", "i8"),  # claimable requests that were routed here
        ("busy_ns", "i8"),  # prefill and decode time, total
        ("switch_ns", "i8"),  # time from order to SWITCHED on turns that changed the model
        ("switches", "i8"),
        ("prefetched_switches", "i8"),
        ("moving_in", "i8"),  # requests of the incoming group under way
        ("node", "i8"),
        ("port", "i8"),
        ("gpu_type", "i8"),
        ("model", "i8"),  # of the present or the last turn
        ("active_slot", "i8"),
        ("loading_slot", "i8"),  # NONE: no load under way
        ("role", "i8"),
        ("stage", "i8"),
        ("turn_phases", "i8"),
        ("joins", "i8"),  # do arrivals join the present turn
        ("is_switching", "i8"),  # the present turn changed the model
        ("owes_step", "i8"),  # its batch decodes one step before the next prefill chunk
        ("next_running", "i8"),
        ("prev_running", "i8"),
    ],
    align=True,
)
SLOT = np.dtype(
    [
        ("ready_ns", "i8"),  # when its weights were there
        ("used_ns", "i8"),  # when they were there, or last served a turn
        ("model", "i8"),
        ("state", "i8"),
        ("is_ahead", "i8"),  # prefetched and not used since
    ],
    align=True,
)
NODE = np.dtype(
    [
        ("host_kv_bytes", "i8"),
        ("host_kv_used_bytes", "i8"),
        ("host_weight_bytes", "i8"),
        ("host_weight_used_bytes", "i8"),
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("first", "i8"),  # its instances: first .. end - 1
        ("end", "i8"),
        ("in_flows", "i8"),  # transfers under way, at most one an instance and direction
        ("out_flows", "i8"),
    ],
    align=True,
)
HOSTED = np.dtype([("used_ns", "i8"), ("is_cached", "i8")], align=True)
KNOTS = 12  # batch sizes that a decode table may state
COST = np.dtype(
    [
        ("prefill_s", "f8"),  # per prefill call
        ("prefill_token_s", "f8"),
        ("prefill_token2_s", "f8"),  # per squared prompt token
        ("decode_s", "f8"),  # per step
        ("decode_context_s", "f8"),  # per summed context token
        ("decode_batch_s", "f8"),  # per request of the batch
        ("knots", "i8"),  # of the decode table that replaces decode_batch_s; 0: none
        ("knot_batch", "f8", (KNOTS,)),  # ascending from 1
        ("knot_s", "f8", (KNOTS,)),  # per step at that batch, linear in between
    ],
    align=True,
)
LIST = np.dtype([("head", "i8"), ("tail", "i8"), ("count", "i8")], align=True)
COMMAND = np.dtype([("kind", "i8"), ("instance", "i8")], align=True)
POOL = np.dtype(
    [
        ("now_ns", "i8"),
        ("wakes", "i8"),  # events an idle instance waits for
        ("arrivals", "i8"),
        ("rate_rps", "f8"),  # the sum of its models', as of the last arrival
        ("rate_at_ns", "i8"),
        ("max_wait_ns", "i8"),
        ("interrupt_slack_ns", "i8"),  # 0: no INTERRUPT decisions
        ("asks_ns", "i8"),  # the latest `asks_ns` of a model, or NONE
        ("command_ns", "i8"),
        ("turn_overhead_ns", "i8"),
        ("kv_fraction", "f8"),
        ("vram_bytes", "i8"),
        ("reserved_bytes", "i8"),  # weight memory carved out at start; 0: the loaded model only
        ("weight_budget_bytes", "i8"),  # of the models resident on one instance
        ("load_chunk_bytes", "i8"),
        ("h2d_bytes_s", "f8"),
        ("d2h_bytes_s", "f8"),
        ("disk_bytes_s", "f8"),
        ("network_bytes_s", "f8"),
        ("kv_move_token_bytes", "i8"),
        ("step_quantum_s", "f8"),
        ("free_head", "i8"),
        ("in_flight", "i8"),
        ("claimable", "i8"),  # requests that no turn owns
        ("ranked", "i8"),  # of these: with a priority other than 0
        ("open_models", "i8"),  # models that have such requests
        ("occupied", "i8"),  # instances in a turn
        ("cancelling", "i8"),  # cancelled requests that a turn or a move still holds
        ("commands", "i8"),
        ("block_tokens", "i8"),
        ("lookahead_tokens", "i8"),
        ("prefill_budget_tokens", "i8"),
        ("prefill_chunk_tokens", "i8"),
        ("max_queue", "i8"),
        ("is_push", "i8"),
        ("prefetches", "i8"),
        ("credits_compute", "i8"),
        ("kv_out_free", "i8"),
        ("kv_in_overlaps", "i8"),
        ("kv_reload_every_turn", "i8"),
        ("kv_stays", "i8"),
        ("host_kv_waits", "i8"),  # KV without host room stays while no turn needs its room
        ("queued", "i8"),  # requests whose KV must leave once a host has room
        ("host_freed", "i8"),  # host KV memory was given back since the queues were looked at
        ("priorities", "i8"),
        ("token_preempt", "i8"),
        ("kv_survives_switch", "i8"),
        ("network_bytes", "i8"),  # KV that came from the host of another node
        ("recomputed", "i8"),  # KV dropped: no host memory, or lost in a switch
    ],
    align=True,
)

EVENT = np.dtype(
    [
        ("time_ns", "i8"),
        ("id", "i8"),
        ("n", "i8"),
        ("tag", "i8"),
        ("quota_ns", "i8"),
        ("x", "f8"),
        ("y", "f8"),
        ("instance", "i8"),
        ("model", "i8"),
        ("request", "i8"),  # slot
        ("kind", "i8"),
        ("phases", "i8"),
        ("joins", "i8"),
        ("is_fallback", "i8"),  # the answer came from the fallback, not from the policy
        ("goes_on", "i8"),  # STEPS: the next step has begun, what changed meanwhile waits
    ],
    align=True,
)

GAP_BINS = 1024  # token gaps, GAP_PARTS bins an octave from GAP_FLOOR_S (slo.py)


class State(Tables):
    """One pool: [N], [M], [G], [G, S], [D], [L], [D, M], [T, M], [2M + 4G + 1], outbox, [1], bins,
    [M] open models; instances outside a turn and those due a prefetch are sets of bits."""

    layout: ClassVar = {
        "requests": Field(REQUEST),
        "models": Field(MODEL),
        "instances": Field(INSTANCE),
        "slots": Field(SLOT, 2),
        "nodes": Field(NODE),
        "links": Field(LINK),
        "hosted": Field(HOSTED, 2),
        "costs": Field(COST, 2),
        "lists": Field(LIST),
        "outbox": Field(COMMAND),
        "pool": Field(POOL),
        "gaps": Field(np.int64),
        "open_models": Field(np.int64),
        "vacant": Field(np.int64),
        "prefetch_due": Field(np.int64),
    }
    requests: Table
    models: Table
    instances: Table
    slots: Table
    nodes: Table
    links: Table
    hosted: Table
    costs: Table
    lists: Table
    outbox: Table
    pool: Table
    gaps: npt.NDArray[np.int64]
    open_models: npt.NDArray[np.int64]
    vacant: npt.NDArray[np.int64]
    prefetch_due: npt.NDArray[np.int64]


# Lists: every live request is in exactly one.
# [0, M) waiting; [M, 2M) ready; then for each instance prefill, batch, incoming, outgoing;
# the last holds requests that wait for a ROUTE.
LISTS_PER_INSTANCE = 4


def chain_free_slots(requests: Table, first: int) -> None:
    """Link the unused slots `first`.. into the free chain, lowest first."""
    requests["next"][first:] = np.arange(first + 1, len(requests) + 1)
    requests["next"][-1] = NONE
    requests["list"][first:] = NONE


def grow_requests(state: State) -> None:
    """Double the request slots in place; existing slots keep their numbers."""
    old = len(state.requests)
    requests = np.zeros(2 * old, REQUEST)
    requests[:old] = state.requests
    chain_free_slots(requests, old)
    requests["next"][-1] = state.pool["free_head"][0]
    state.pool["free_head"][0] = old
    state.put("requests", requests)
    state.put("outbox", np.zeros(len(state.outbox) + 5 * old, COMMAND))
