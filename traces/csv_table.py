"""CSV files with a header row as Arrow tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as arrow_csv

from traces.errors import TraceError


def read_csv(path: Path) -> pa.Table:
    """Raises TraceError naming the line that does not parse."""
    options = arrow_csv.ConvertOptions(strings_can_be_null=False)
    try:
        return arrow_csv.read_csv(path, convert_options=options)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"{path}: not a readable CSV file: {reason}") from None
