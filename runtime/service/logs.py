"""The service's logs in Parquet: requests (a trace), decisions, and the journal that replays both.

A file is written aside, then renamed, by a thread of its own. What cannot be written is lost and
counted: the service goes on, memory does not grow, nothing is left in halves.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runtime.core import NONE, EventKind, ModelSpec, PoolSpec, SloSpec
from runtime.errors import UserError
from runtime.plain import plain
from runtime.pool.state import EVENT, Record, Table
from runtime.service.spec import LogSpec
from runtime.timeline.decisions import ANSWERS, answer_columns
from traces.formats.service import SCHEMA

log = logging.getLogger("aegaeon_rl.logs")
RUN_SCHEMA = "aegaeon-rl/service-run/1"
MOST_PENDING = 12  # files not yet written: a disk that stands still costs rows, not memory
Make = Callable[[], pa.Table]


class RequestRow(NamedTuple):
    """One row of the request log: the columns of `traces.formats.service.SCHEMA`."""

    arrival_s: float
    model: str
    prompt_tokens: int
    output_tokens: int
    session: str | None
    client: str | None
    priority: int
    request_id: str
    status: str
    first_token_s: float | None
    last_token_s: float | None
    tokens_on_time: int
    instance: int | None
    turns: int
    policy: str


class Opening(NamedTuple):
    """The pool before its first event: the arguments of `new_state`, and what is preloaded."""

    pool: PoolSpec
    models: tuple[ModelSpec, ...]
    slos: tuple[SloSpec, ...]
    costs: Table
    placement: tuple[tuple[int, int], ...] = ()
    policy: str = ""


def opening_json(opening: Opening, start: str) -> str:
    costs = [
        [{name: cell[name].tolist() for name in opening.costs.dtype.names or ()} for cell in row]
        for row in opening.costs
    ]
    return json.dumps(
        {
            "schema": RUN_SCHEMA,
            "start": start,
            "policy": opening.policy,
            "pool": plain(opening.pool),
            "models": plain(opening.models),
            "slos": plain(opening.slos),
            "costs": costs,
            "placement": opening.placement,
        },
        indent=1,
    )


class Files:
    """Numbered files NAME-000001.parquet of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, dict[str, int]()
        self.lost_rows = self.errors = 0

    def write(self, name: str, make: Make, rows: int) -> None:
        """Write a table to the next file of `name`, or lose its rows."""
        number = self.numbers[name] = self.numbers.get(name, 0) + 1
        path = self.folder / f"{name}-{number:06d}.parquet"
        aside = path.with_name(f".{path.name}.part")
        try:
            pq.write_table(make(), aside)
            os.replace(aside, path)
        except (OSError, pa.ArrowException) as error:
            aside.unlink(missing_ok=True)
            self.numbers[name] = number - 1
            self.lost_rows += rows
            self.errors += 1
            if self.errors == 1:
                log.warning("logs: %s: %s; rows are lost, the service goes on", path, error)
            else:
                log.debug("logs: %s: %s", path, error)


class Logs:
    """Where the controller notes what happens. `moment`: the zero of the pool's clock."""

    def __init__(self, spec: LogSpec, opening: Opening, moment: datetime | None = None) -> None:
        assert spec.folder is not None
        moment = moment or datetime.now(UTC)
        self.start, self.names = moment.isoformat(), [model.name for model in opening.models]
        self.folder = fresh_folder(Path(spec.folder), moment)
        self.spec, self.files = spec, Files(self.folder)
        write_text(self.folder / "run.json", opening_json(opening, self.start))
        self.requests: list[RequestRow] = []
        self.events = np.zeros(min(4096, spec.rotate_rows), EVENT)
        self.notes: list[tuple[int, int, str]] = []  # of answers: journal row, model, source
        self.count = self.first = 0  # events held; journal row of the first
        self.due_s = time.monotonic() + spec.rotate_s
        self.writer = ThreadPoolExecutor(1, "logs")
        self.pending: list[Future[None]] = []

    @property
    def lost_rows(self) -> int:
        return self.files.lost_rows

    def request(self, row: RequestRow) -> None:
        self.requests.append(row)
        if len(self.requests) >= self.spec.rotate_rows:
            self._rotate_requests()

    def event(self, event: Record, source: str = "", model: int = NONE) -> None:
        """An applied event, in order; of an answer also who gave it. `model`: of a routed request,
        which the event does not name."""
        if self.count == len(self.events):
            self.events = np.concatenate([self.events, np.zeros_like(self.events)])
        self.events[self.count] = event
        if event["kind"] in ANSWERS:
            chosen = model if event["kind"] == EventKind.ROUTE else int(event["model"])
            self.notes.append((self.count, chosen, source))
        self.count += 1
        if self.count >= self.spec.rotate_rows:
            self._rotate_events()

    def tick(self) -> None:
        """To be called about once a second."""
        if time.monotonic() >= self.due_s:
            self.rotate()

    def rotate(self) -> None:
        self.due_s = time.monotonic() + self.spec.rotate_s
        self._rotate_requests()
        self._rotate_events()

    def close(self) -> None:
        """Write what is held; returns when all is on disk."""
        self.rotate()
        self.writer.shutdown()

    def _rotate_requests(self) -> None:
        rows, self.requests = self.requests, []
        if rows:
            self._send("requests", lambda: request_table(rows, self.start), len(rows))

    def _rotate_events(self) -> None:
        events, notes, first = self.events[: self.count], self.notes, self.first
        if not len(events):
            return
        self.events, self.notes = np.zeros(min(4096, self.spec.rotate_rows), EVENT), []
        self.first, self.count = first + len(events), 0
        self._send("journal", lambda: journal_table(events, first), len(events))
        if notes:
            make = lambda: decision_table(events, notes, first, self.names)  # noqa: E731
            self._send("decisions", make, len(notes))

    def _send(self, name: str, make: Make, rows: int) -> None:
        self.pending = [future for future in self.pending if not future.done()]
        if len(self.pending) >= MOST_PENDING:
            self.files.lost_rows += rows
        else:
            self.pending.append(self.writer.submit(self.files.write, name, make, rows))


def request_table(rows: Sequence[RequestRow], start: str) -> pa.Table:
    """In order of arrival, as a trace that states its start."""
    columns = list(zip(*sorted(rows, key=lambda row: row.arrival_s), strict=True))
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, SCHEMA.with_metadata({"start": start}))


def journal_table(events: Table, first: int) -> pa.Table:
    """EVENT rows by column; metadata `first`: the number of the first in the whole journal."""
    columns = {name: np.ascontiguousarray(events[name]) for name in events.dtype.names or ()}
    return pa.table(columns).replace_schema_metadata({"first": str(first)})


def decision_table(
    events: Table, notes: Sequence[tuple[int, int, str]], first: int, models: Sequence[str]
) -> pa.Table:
    """As `runtime.timeline.decisions`, without what came of each, with the source of the answer."""
    rows = np.array([note[0] for note in notes])
    chosen = np.array([note[1] for note in notes])
    columns = answer_columns(events[rows], first + rows, chosen, models)
    columns["source"] = pa.array([note[2] for note in notes]).dictionary_encode()
    return pa.table(columns)


def fresh_folder(base: Path, moment: datetime) -> Path:
    """BASE/START, numbered where two starts share a second. Raises UserError where it cannot be."""
    name, again = moment.strftime("%Y%m%d-%H%M%S"), 1
    while True:
        folder = base / (name if again == 1 else f"{name}-{again}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if base.exists() and not base.is_dir():
                raise UserError(f"logs.folder={base}: expected a folder") from None
            again += 1
        except OSError as error:
            raise UserError(f"logs.folder={base}: {error.strerror}") from None
        else:
            return folder


def write_text(path: Path, text: str) -> None:
    """Written aside, then renamed. Raises UserError."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror}") from None


def read_journal(folder: Path) -> Table:
    """The whole journal of a run, as EVENT rows. Raises UserError for a gap: rows were lost."""
    parts: list[Any] = []
    expected = 0
    for path in sorted(folder.glob("journal-*.parquet")):
        table = pq.read_table(path)
        first = int((table.schema.metadata or {}).get(b"first", b"0"))
        if first != expected:
            raise UserError(f"{path}: begins with event {first}: expected {expected}")
        part = np.zeros(len(table), EVENT)
        for name in table.column_names:
            part[name] = table[name].to_numpy()
        parts.append(part)
        expected += len(part)
    return np.concatenate(parts) if parts else np.zeros(0, EVENT)
