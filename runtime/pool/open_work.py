"""Open work: requests that no turn owns, and the models that have any, most urgent first.

A request's next deadline stands still while it is open, so what decisions need of a model's open
requests (earliest and latest deadline, oldest arrival, KV, prefill time) is kept per model and
the models stay sorted by their earliest deadline; ties go to the model that appeared first.
"""

from runtime.compiled import inner
from runtime.core import FOREVER_NS, NONE, Command, KvPlace, RequestPhase
from runtime.pool import lists
from runtime.pool.costs import prefill_s
from runtime.pool.memory import context_tokens, kv_bytes, release_kv
from runtime.pool.outbox import emit
from runtime.pool.state import State


@inner
def next_deadline_ns(state: State, r: int) -> int:
    """When the next token of r is due."""
    req = state.requests[r]
    model = state.models[req.model]
    return req.arrival_ns + model.ttft_ns + req.emitted_tokens * model.tbt_ns


@inner
def is_bound(state: State, r: int) -> bool:
    """Can only some instances take the open request r? Others see it as taken."""
    req, pool = state.requests[r], state.pool[0]
    if pool.is_push != 0 or req.kv == KvPlace.DEVICE:
        return True
    return bool(req.kv == KvPlace.HOST and pool.network_bytes_s <= 0.0)


@inner
def has_open_work(state: State, m: int) -> bool:
    return state.models[m].place >= 0


@inner
def open_count(state: State, m: int) -> int:
    waiting = lists.count(state, lists.waiting_list(state, m))
    return waiting + lists.count(state, lists.ready_list(state, m))


@inner
def open_request(state: State, r: int) -> None:
    """Put an unowned request where turns find it."""
    req = state.requests[r]
    if req.phase == RequestPhase.READY:
        lists.insert_by_arrival(state, lists.ready_list(state, req.model), r)
    else:
        lists.insert_by_arrival(state, lists.waiting_list(state, req.model), r)
    state.pool[0].claimable += 1
    if req.priority != 0:
        state.pool[0].ranked += 1
    if req.route >= 0:
        state.instances[req.route].routed += 1
    model = state.models[req.model]
    model.waiting_since_ns = min(model.waiting_since_ns, state.pool[0].now_ns)
    _count(state, r)
    _sort(state, req.model)


@inner
def end_request(state: State, r: int, phase: int) -> None:
    """A request in no list and without KV is over; the driver takes its record."""
    state.requests[r].phase = phase
    state.pool[0].cancelling -= state.requests[r].is_cancelled
    emit(state, Command.RETIRE, r)


@inner
def reopen(state: State, r: int, phase: int) -> None:
    """Offer r again: to turns, or to the router when a push pool has not placed it.

    A request that was cancelled while it was owned ends here.
    """
    req = state.requests[r]
    req.phase = phase
    if req.is_cancelled != 0:
        release_kv(state, r)
        end_request(state, r, RequestPhase.CANCELLED)
    elif state.pool[0].is_push != 0 and req.route == NONE:
        lists.insert_by_arrival(state, lists.routing_list(state), r)
    else:
        open_request(state, r)


@inner
def close_request(state: State, r: int) -> None:
    """Take an unowned request out of the lists where turns look; `recount` must follow."""
    _uncount(state, r)
    lists.remove(state, r)
    state.pool[0].claimable -= 1
    if state.requests[r].priority != 0:
        state.pool[0].ranked -= 1
    if state.requests[r].route >= 0:
        state.instances[state.requests[r].route].routed -= 1


@inner
def recount(state: State, m: int) -> None:
    """Put the sums over m's open requests right after some were closed; without any nothing
    waits."""
    model = state.models[m]
    if model.is_stale == 0:
        return
    model.is_stale, model.urgent_ns, model.oldest_ns = 0, FOREVER_NS, FOREVER_NS
    model.deadline_sum_ns, model.waiting_s, model.open_kv_bytes, model.bound = 0.0, 0.0, 0, 0
    for part in range(2):
        r = lists.first(state, lists.open_list(state, m, part))
        while r >= 0:
            _count(state, r)
            r = state.requests[r].next
    if model.urgent_ns == FOREVER_NS:
        model.waiting_since_ns = FOREVER_NS
    _sort(state, m)


@inner
def _count(state: State, r: int) -> None:
    """Add an open request to the sums of its model."""
    req, due_ns = state.requests[r], next_deadline_ns(state, r)
    model = state.models[req.model]
    model.urgent_ns = min(model.urgent_ns, due_ns)
    model.oldest_ns = min(model.oldest_ns, req.arrival_ns)
    model.deadline_sum_ns += float(due_ns)
    model.open_kv_bytes += kv_bytes(state, r)
    if req.phase == RequestPhase.WAITING:
        model.waiting_s += prefill_s(state.costs[0, req.model], context_tokens(state, r))
    if is_bound(state, r):
        model.bound += 1


@inner
def _uncount(state: State, r: int) -> None:
    """Take an open request out of the sums of its model; a minimum must be sought anew."""
    req, due_ns = state.requests[r], next_deadline_ns(state, r)
    model = state.models[req.model]
    if due_ns <= model.urgent_ns or req.arrival_ns <= model.oldest_ns:
        model.is_stale = 1
        return
    model.deadline_sum_ns -= float(due_ns)
    model.open_kv_bytes -= kv_bytes(state, r)
    if req.phase == RequestPhase.WAITING:
        model.waiting_s -= prefill_s(state.costs[0, req.model], context_tokens(state, r))
    if is_bound(state, r):
        model.bound -= 1


@inner
def _sort(state: State, m: int) -> None:
    """Move m to its place in the order of models; without open work out of it."""
    models, order, pool = state.models, state.open_models, state.pool[0]
    if models[m].place == NONE:
        if models[m].urgent_ns == FOREVER_NS:
            return
        models[m].place = pool.open_models
        order[pool.open_models] = m
        pool.open_models += 1
    i = models[m].place
    while i > 0 and _is_before(state, m, order[i - 1]):
        order[i] = order[i - 1]
        models[order[i]].place = i
        i -= 1
    while i < pool.open_models - 1 and _is_before(state, order[i + 1], m):
        order[i] = order[i + 1]
        models[order[i]].place = i
        i += 1
    order[i] = m
    models[m].place = i
    if models[m].urgent_ns == FOREVER_NS:
        models[m].place = NONE
        pool.open_models -= 1


@inner
def _is_before(state: State, m: int, other: int) -> bool:
    mine, others = state.models[m].urgent_ns, state.models[other].urgent_ns
    return bool(mine < others or (mine == others and m < other))


@inner
def first_on_time(state: State) -> int:
    """The place of the first open model none of whose requests is late; the number of open models
    when every one has a late request."""
    low, high = 0, state.pool[0].open_models
    now = state.pool[0].now_ns
    while low < high:
        middle = (low + high) // 2
        if state.models[state.open_models[middle]].urgent_ns < now:
            low = middle + 1
        else:
            high = middle
    return low
