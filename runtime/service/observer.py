"""Who hears of what happens in a pool: logs, metrics, the page. None of it changes the pool."""

from runtime.pool.state import Record
from runtime.service.book import Entry
from runtime.service.messages import End


class Observer:
    """Overwrite what is of interest. Times are ns of the pool's clock, `event` an EVENT row that is
    only valid during the call."""

    def on_event(self, event: Record, source: str) -> None:
        """Applied, in order: the journal. `source`: who answered, of decisions."""

    def on_arrival(self, entry: Entry, time_ns: int) -> None: ...

    def on_token(self, entry: Entry, time_ns: int) -> None:
        """One more; it is the last of `entry.output`."""

    def on_end(self, entry: Entry, request: Record, end: End, time_ns: int) -> None:
        """`request`: its row in the core's table, just before it is released."""

    def on_refusal(self, request_id: str, model: str, end: End, time_ns: int) -> None:
        """It never came into the pool."""

    def on_instance(self, instance: int, epoch: int, what: str, reason: str) -> None:
        """`what`: "up" or "down"."""
