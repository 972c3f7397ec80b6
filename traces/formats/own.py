"""The trace's own columns."""

from traces.formats.format import Format
from traces.mapping import OWN

OWN_FORMAT = Format(name="trace", columns=OWN, keeps_zero=True)
