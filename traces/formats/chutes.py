"""The Chutes year (Parquet), github.com/HarvardMadSys/chutes_workload: one row a call.

Models are chute ids. Users get new ids every three months, so a client is a user and the round.
Calls without tokens (images, audio) are left out.
"""

import pyarrow as pa
import pyarrow.compute as pc

from traces.formats.format import Derive, Format
from traces.mapping import ColumnMap


def clients() -> Derive:
    """Adds `:client`: user_id/rehash_round."""

    def derive(table: pa.Table) -> pa.Table:
        joined = pc.binary_join_element_wise(table["user_id"], table["rehash_round"], "/")
        return table.append_column(":client", joined)

    return derive


CHUTES = Format(
    name="chutes",
    columns=ColumnMap(
        arrival_s="started_at",
        model="chute_id",
        prompt_tokens="it",
        output_tokens="ot",
        client=":client",
        drop_empty=True,
    ),
    derive=clients,
    derived={":client": ("user_id", "rehash_round")},
)
