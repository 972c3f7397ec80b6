"""JSON Lines files, one object a line, as Arrow tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.json as arrow_json

from traces.errors import TraceError


def read_jsonl(path: Path) -> pa.Table:
    """Raises TraceError naming the row that does not parse."""
    try:
        return arrow_json.read_json(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"{path}: not a readable JSONL file: {reason}") from None
