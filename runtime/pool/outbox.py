"""What a driver must do after a transition: commands, in order, drained after every event."""

from runtime.compiled import inner
from runtime.pool.state import State


@inner
def emit(state: State, command: int, index: int) -> None:
    """Queue a command for the driver."""
    n = state.pool[0].commands
    state.outbox[n].kind = command
    state.outbox[n].instance = index
    state.pool[0].commands = n + 1
