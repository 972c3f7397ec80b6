"""The known formats, and which of them a file is."""

from traces.errors import TraceError, nearest
from traces.formats.aegaeon import AEGAEON
from traces.formats.azure import AZURE
from traces.formats.burstgpt import BURSTGPT
from traces.formats.chutes import CHUTES
from traces.formats.format import Format
from traces.formats.gateway import LITELLM, OPENAI_CHAT, OPENAI_RESPONSES
from traces.formats.mooncake import MOONCAKE
from traces.formats.own import OWN_FORMAT
from traces.formats.qwen_bailian import QWEN_BAILIAN
from traces.formats.servegen import refuse_client_tables
from traces.formats.service import SERVICE
from traces.formats.vllm import VLLM

# The first that fits is taken: what has more columns stands before what has fewer.
FORMATS = {
    form.name: form
    for form in (
        *(SERVICE, OWN_FORMAT, VLLM, AZURE, BURSTGPT, QWEN_BAILIAN, MOONCAKE, AEGAEON),
        *(CHUTES, LITELLM, OPENAI_CHAT, OPENAI_RESPONSES),
    )
}


def detected(names: list[str], path: str, asked: str | None) -> Format | None:
    """The format of a file with these columns, or the one that is asked for; None if unknown."""
    if asked is not None and asked not in FORMATS:
        raise TraceError(f"trace.format={asked}: {nearest(asked, FORMATS)}")
    if asked is not None:
        return FORMATS[asked]
    refuse_client_tables(names, path)
    return next((form for form in FORMATS.values() if form.fits(names)), None)
