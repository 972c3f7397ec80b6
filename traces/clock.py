"""`Clock`: times as a file writes them, as seconds since its first row."""

import datetime as dt
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import Origin, TraceError
from traces.mapping import TimeUnit
from traces.rows import first_invalid, numbers, present, texts
from traces.trace import LATEST_S

Seconds = npt.NDArray[np.float64]
EPOCH_S = 1e8  # from here on a number of seconds counts from 1970 (this is 1973)
PER_S = {TimeUnit.S: 1.0, TimeUnit.MS: 1e3, TimeUnit.US: 1e6, TimeUnit.NS: 1e9}
NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
CLOCK = r"^(?P<h>\d{1,6}):(?P<m>[0-5]?\d):(?P<s>[0-5]?\d(?:\.\d*)?)$"


@dataclass(slots=True)
class Clock:
    """Reads one column, chunk by chunk; the first chunk settles the unit and the zero. Texts may
    be numbers too.

    What it does not know: leap seconds, and which of two equal hours a time without an offset is
    in when summer time ends (it takes the earlier).
    """

    unit: TimeUnit
    timezone: str
    zero: float | int | None = None  # in `unit`, or ns of a calendar; None: the first row's time
    since_1970: bool | None = None  # None: not a row yet

    def seconds(self, values: pa.ChunkedArray, column: str, origin: Origin) -> Seconds:
        """Seconds since `zero` [N]. Raises TraceError at the first that is no time."""
        values = present(values, column, origin)
        if self.unit is TimeUnit.AUTO:
            self.unit = guessed(values)
        if _is_calendar(values.type) or self.unit is TimeUnit.ISO:
            times = _calendar_ns(values, column, origin, self.timezone)
            self._check_era(times / 1e9, values, column, origin)
            return self._since(times, 1e9)
        if self.unit is TimeUnit.CLOCK:
            return self._since(_clock_s(values, column, origin), 1.0)
        read = numbers(values, column, origin, is_text_file=pa.types.is_string(values.type))
        self._check_range(read, column, origin)
        self._check_era(read / PER_S[self.unit], read, column, origin)
        return self._since(read, PER_S[self.unit])

    def _since(self, times: npt.NDArray[np.float64 | np.int64], per_s: float) -> Seconds:
        if self.zero is None:
            self.zero = times[0].item()
        return (times - self.zero) / per_s

    def _check_range(self, read: Seconds, column: str, origin: Origin) -> None:
        latest = LATEST_S * PER_S[self.unit]
        unit = "seconds" if self.unit is TimeUnit.S else self.unit.value
        for row in np.flatnonzero(~((read >= 0) & (read <= latest)))[:1]:
            expected = f"a number of {unit} from 0 to {latest:.0f}"
            raise origin.error(int(row), column, float(read[row]), expected)

    def _check_era(
        self, times: Seconds, read: Seconds | pa.ChunkedArray, column: str, origin: Origin
    ) -> None:
        """All are since 1970 or none is: a 0 among dates would span 50 years."""
        if self.since_1970 is None:
            self.since_1970 = bool(times[0] >= EPOCH_S)
        for row in np.flatnonzero((times >= EPOCH_S) != self.since_1970)[:1]:
            expected = "a time after 1973" if self.since_1970 else "a time since the start"
            is_number = isinstance(read, np.ndarray)
            value = float(read[row]) if is_number else str(read[int(row)])
            raise origin.error(int(row), column, value, f"{expected}, as in the first row")

    @property
    def is_since_first(self) -> bool:
        """Arrivals count from the first request: not where a trace states its own zero."""
        return self.zero != 0.0 or isinstance(self.zero, int) or bool(self.since_1970)

    def date(self, seconds: float) -> str | None:
        """The moment `seconds` after `zero` as a date, where the file's times are dates: some
        files count from 1970 what happened since their own start."""
        if not self.since_1970 or self.zero is None:
            return None
        per_s = 1e9 if isinstance(self.zero, int) else PER_S[self.unit]
        whole_us = round(self.zero / per_s * 1e6 + seconds * 1e6)
        return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=whole_us)).isoformat() + "Z"


def guessed(values: pa.ChunkedArray) -> TimeUnit:
    """From the first value's form and size."""
    first = values[0].as_py()
    if isinstance(first, str) and re.fullmatch(NUMBER, first):
        first = float(first)
    if isinstance(first, str):
        return TimeUnit.CLOCK if re.match(CLOCK, first) else TimeUnit.ISO
    if not isinstance(first, int | float):
        return TimeUnit.S
    sizes = ((1e17, TimeUnit.NS), (1e14, TimeUnit.US), (1e11, TimeUnit.MS))
    return next((unit for size, unit in sizes if first >= size), TimeUnit.S)


def _is_calendar(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_duration(kind)


def _calendar_ns(
    values: pa.ChunkedArray, column: str, origin: Origin, timezone: str
) -> npt.NDArray[np.int64]:
    """Nanoseconds since 1970 [N], of Arrow's own times or of texts in ISO 8601."""
    if pa.types.is_duration(values.type):
        values = pc.cast(values, pa.duration("ns"))
    else:
        if not _is_calendar(values.type):
            values = _parsed(texts(values, column, origin), column, origin)
        values = _in_ns(values, column, origin, timezone)
    return np.ascontiguousarray(pc.cast(values, pa.int64()))


def _in_ns(values: pa.ChunkedArray, column: str, origin: Origin, timezone: str) -> pa.ChunkedArray:
    zone = getattr(values.type, "tz", None)
    kind = pa.timestamp("ns", zone)
    try:
        values = pc.cast(values, kind)
    except pa.ArrowInvalid:
        row = first_invalid(values, kind)
        value = str(values[row].cast(pa.string()))
        raise origin.error(row, column, value, "a time from 1678 to 2261") from None
    if zone is not None or timezone == "UTC":
        return values
    try:
        return pc.assume_timezone(values, timezone, ambiguous="earliest", nonexistent="earliest")
    except pa.ArrowInvalid:
        raise TraceError(
            f"trace.map.timezone={timezone}: expected a name like Europe/Berlin"
        ) from None


def _parsed(values: pa.ChunkedArray, column: str, origin: Origin) -> pa.ChunkedArray:
    """Times of ISO 8601 texts; the first says whether all state an offset from UTC."""
    values = pc.utf8_trim_whitespace(values)
    kinds = (pa.timestamp("ns"), pa.timestamp("ns", "UTC"))
    for kind in kinds:
        try:
            pc.cast(values[0], kind)
        except pa.ArrowInvalid:
            continue
        try:
            return pc.cast(values, kind)
        except pa.ArrowInvalid:
            row = first_invalid(values, kind)
            expected = "a time in ISO 8601 with an offset" if kind.tz else "a time in ISO 8601"
            expected += ", as in the first row"
            raise origin.error(row, column, values[row].as_py(), expected) from None
    raise origin.error(
        0, column, values[0].as_py(), "a time in ISO 8601, as 2024-05-10T08:30:00.25+02:00"
    )


def _clock_s(values: pa.ChunkedArray, column: str, origin: Origin) -> Seconds:
    trimmed = pc.utf8_trim_whitespace(texts(values, column, origin))
    parts = pc.extract_regex(trimmed, CLOCK)
    for row in np.flatnonzero(parts.is_null())[:1]:
        raise origin.error(int(row), column, values[int(row)].as_py(), "hours:minutes:seconds")
    hours, minutes, seconds = (
        np.ascontiguousarray(pc.cast(pc.struct_field(parts, [i]), pa.float64())) for i in range(3)
    )
    return hours * 3600 + minutes * 60 + seconds
