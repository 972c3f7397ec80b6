"""Request logs of vLLM (text), as `vllm serve` prints them.

A request is read from the lines `Received request ID: ...` (its time), `Request ID details: ...`
or the former (prompt_token_ids) and `Generated response ID ...: ... output_token_ids: [...]`. They
appear with VLLM_LOGGING_LEVEL=DEBUG --enable-log-requests --enable-log-outputs. Not known: the
model (the file's name stands for it), times below a second, the year, and the lengths of lists that
--max-log-len cut.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path

import pyarrow as pa

from traces.errors import Origin, TraceError
from traces.formats.format import Format
from traces.mapping import ColumnMap, TimeUnit
from traces.table import CHUNK_ROWS, Role, Rows, open_text

STAMP = re.compile(rb"(?:(\d{4})-)?(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?")
EVENT = re.compile(  # the first on a line: what follows may be the user's own words
    rb"Received request (?P<received>\S+): |Request (?P<details>\S+) details: "
    rb"|Generated response (?P<generated>\S+?)(?: \(streaming \w+\))?: output: "
)
PROMPT_IDS = re.compile(rb".*prompt_token_ids: \[([\d, ]*)\]")  # the last: a prompt may say so too
OUTPUT_IDS = re.compile(rb".*output_token_ids: [\[(]([\d, ]*)[\])]")
FLAGS = "VLLM_LOGGING_LEVEL=DEBUG --enable-log-requests --enable-log-outputs"
NAMES = ("vllm_request", "time_s", "prompt_tokens", "output_tokens")

VLLM = Format(
    name="vllm",
    columns=ColumnMap(
        arrival_s="time_s",
        prompt_tokens="prompt_tokens",
        output_tokens="output_tokens",
        unit=TimeUnit.S,
        drop_empty=True,
    ),
    needs=NAMES,
)


@dataclass(slots=True)
class Request:
    """What the lines so far say of one request."""

    line: int  # 0-based, of its first
    was_received: bool = False
    time_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class VllmLog:
    """Memory holds a record a request, not the text."""

    is_text = False

    def __init__(self, path: Path) -> None:
        """Raises TraceError when no line is of a request, or lengths are not there."""
        self.path, self.names = path, list(NAMES)
        self.metadata: dict[str, str] = {}
        self.requests = _requests(path)
        if not self.requests:
            raise TraceError(
                f"{path}: no line says 'Received request': expected a log of vLLM with {FLAGS}"
            )
        if all(r.output_tokens is None for r in self.requests.values()):
            raise TraceError(
                f"{path}: no line says 'Generated response' with output_token_ids: expected a log"
                f" of vLLM with {FLAGS}"
            )

    def chunks(self, roles: dict[str, Role]) -> Iterator[Rows]:
        first, items = 0, iter(self.requests.items())
        while part := list(islice(items, CHUNK_ROWS)):
            columns = {
                "vllm_request": [name for name, _ in part],
                "time_s": [float(r.time_s or 0) for _, r in part],
                "prompt_tokens": [r.prompt_tokens for _, r in part],
                "output_tokens": [r.output_tokens for _, r in part],
            }
            table = pa.table(columns, schema=_schema())
            yield Rows(table.select(list(roles)), first)
            first += len(part)


def _schema() -> pa.Schema:
    kinds = (pa.string(), pa.float64(), pa.int64(), pa.int64())
    return pa.schema(list(zip(NAMES, kinds, strict=True)))


def _requests(path: Path) -> dict[str, Request]:
    """By id, in order of arrival. Raises TraceError at an answer to a prompt of unknown length."""
    requests: dict[str, Request] = {}
    calendar = Calendar()
    with open_text(path) as file:
        for number, line in enumerate(file):
            _note(requests, calendar, line, number)
    received = {name: r for name, r in requests.items() if r.was_received}
    origin = Origin(str(path))
    for name, request in received.items():
        if request.time_s is None:
            raise origin.error(request.line, "time", None, "a stamp like 08-19 12:00:00")
        if request.output_tokens and request.prompt_tokens is None:
            expected = f"a list of numbers for {name}; use {FLAGS}"
            raise origin.error(request.line, "prompt_token_ids", None, expected)
    return received


def _note(requests: dict[str, Request], calendar: "Calendar", line: bytes, number: int) -> None:
    """What this line adds."""
    found = EVENT.search(line)
    if found is None:
        return
    name = (found[1] or found[2] or found[3]).decode(errors="replace")
    if found["generated"] is not None:
        if name in requests and (ids := OUTPUT_IDS.match(line)):
            requests[name].output_tokens = (requests[name].output_tokens or 0) + _count(ids[1])
        return
    request = requests.setdefault(name, Request(number))
    if ids := PROMPT_IDS.match(line):
        request.prompt_tokens = _count(ids[1])
    if found["received"] is not None:
        request.was_received = True
        request.time_s = calendar.seconds(line[: found.start()])


def _count(ids: bytes) -> int:
    return ids.count(b",") + 1 if ids.strip() else 0


@dataclass(slots=True)
class Calendar:
    """Seconds since the log's first new year, of stamps that state month and day but no year."""

    days: int = 0  # of the years before
    year: int = 2001  # common until a 29th of February shows
    last: int = field(default=0)  # day of the year

    def seconds(self, before: bytes) -> float | None:
        """Of the last stamp in `before`; None without a valid one."""
        stamps = STAMP.findall(before)
        if not stamps:
            return None
        year, *numbers, fraction = stamps[-1]
        month, day, hour, minute, second = map(int, numbers)
        try:
            today = self._day(int(year) if year else None, month, day)
        except ValueError:
            return None
        part = int(fraction) / 10 ** len(fraction) if fraction else 0.0
        return today * 86400.0 + hour * 3600 + minute * 60 + second + part

    def _day(self, year: int | None, month: int, day: int) -> int:
        if year is not None:
            return (date(year, month, day) - date(1970, 1, 1)).days
        if (month, day) == (2, 29):
            self.year = 2000
        today = (date(self.year, month, day) - date(self.year, 1, 1)).days
        if today < self.last - 180:
            self.days += 366 if self.year == 2000 else 365
            self.year = 2001
        self.last = today
        return self.days + today
