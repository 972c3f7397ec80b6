"""What is resident before the first event: the static part of a policy."""

from collections.abc import Iterable

from runtime.core import NONE, SlotState
from runtime.pool.state import State


def preload(state: State, placement: Iterable[tuple[int, int]]) -> None:
    """Put the weights of each (instance, model) pair in a slot, ready at time 0.

    An instance starts on the first model it is given. Raises ValueError for an instance that has
    no slot left, no room in its weight budget, or has the model already.
    """
    sizes, budget = state.models["weight_bytes"], state.pool["weight_budget_bytes"][0]
    for g, m in placement:
        slots, inst = state.slots[g], state.instances[g]
        empty = (slots["model"] == NONE).nonzero()[0]
        held = sizes[slots["model"][slots["model"] != NONE]].sum()
        if not len(empty) or m in slots["model"] or held + sizes[m] > budget:
            raise ValueError(f"instance {g} cannot take model {m} beside {slots['model'].tolist()}")
        slots["model"][empty[0]], slots["state"][empty[0]] = m, SlotState.READY
        if inst["model"] == NONE:
            inst["model"], inst["active_slot"] = m, empty[0]
