"""Public sets of request logs: where they are, under which licence, and whom to cite."""

from dataclasses import dataclass

from traces.errors import TraceError, nearest
from traces.trace import TraceKind

CC_BY = "CC BY 4.0"
APACHE = "Apache-2.0"
SPLITWISE = (
    "P. Patel et al., Splitwise: Efficient generative LLM inference using phase splitting, ISCA'24"
)
DYNAMO = (
    "J. Stojkovic et al., DynamoLLM: Designing LLM Inference Clusters for Performance and Energy"
    " Efficiency, arXiv:2408.00741"
)
BURSTGPT = (
    "Y. Wang et al., BurstGPT: A Real-world Workload Dataset to Optimize LLM Serving Systems,"
    " arXiv:2401.17644"
)
MOONCAKE = (
    "R. Qin et al., Mooncake: Trading More Storage for Less Computation - A KVCache-centric"
    " Architecture for Serving LLM Chatbot, FAST 2025"
)
KVCACHE = (
    "J. Wang et al., KVCache Cache in the Wild: Characterizing and Optimizing KVCache Cache at a"
    " Large Cloud Provider, USENIX ATC 2025"
)
RAW = "https://raw.githubusercontent.com"
AZURE_2023 = f"{RAW}/Azure/AzurePublicDataset/b469a113cedca53ddc3bdea71a143dc4b7d8700c/data"
AZURE_2024 = "https://github.com/Azure/AzurePublicDataset/releases/download/dataset-llm-2024"
BURST = "https://github.com/HPMLL/BurstGPT/releases/download/v2.0"
MOON = f"{RAW}/kvcache-ai/Mooncake/3b5a594133958449a1feaf1c9e0fc1b553e34a28/FAST25-release/traces"
QWEN = "alibaba-edu/qwen-bailian-usagetraces-anon/5f7439c51ec248a0c585f7d90a41a6f57773b912"
QWEN_LFS = f"https://media.githubusercontent.com/media/{QWEN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSet:
    """One file. `sha256` is stated by the publisher (the pointer of its large-file storage); None
    where none is known to us: the first download is then trusted, and its hash recorded."""

    url: str
    licence: str
    citation: str
    kind: TraceKind = TraceKind.LOG
    sha256: str | None = None

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


PUBLIC = {
    "azure_2023_code": PublicSet(
        url=f"{AZURE_2023}/AzureLLMInferenceTrace_code.csv", licence=CC_BY, citation=SPLITWISE
    ),
    "azure_2023_conv": PublicSet(
        url=f"{AZURE_2023}/AzureLLMInferenceTrace_conv.csv", licence=CC_BY, citation=SPLITWISE
    ),
    "azure_2024_code": PublicSet(
        url=f"{AZURE_2024}/AzureLLMInferenceTrace_code_1week.csv", licence=CC_BY, citation=DYNAMO
    ),
    "azure_2024_conv": PublicSet(
        url=f"{AZURE_2024}/AzureLLMInferenceTrace_conv_1week.csv", licence=CC_BY, citation=DYNAMO
    ),
    "burstgpt_1": PublicSet(
        url=f"{BURST}/BurstGPT_1.csv",
        licence=CC_BY,
        citation=BURSTGPT,
        sha256="4bb3783693d0a435686fbfc885615d2349bd067239079fa4b749f2e679e12122",
    ),
    "burstgpt_2": PublicSet(
        url=f"{BURST}/BurstGPT_2.csv",
        licence=CC_BY,
        citation=BURSTGPT,
        sha256="44bf5942b03fca42c01a226a545ad3a750ec62688faecd67b6831c56a8928bf7",
    ),
    "burstgpt_3": PublicSet(url=f"{BURST}/BurstGPT_3.csv", licence=CC_BY, citation=BURSTGPT),
    "mooncake_conversation": PublicSet(
        url=f"{MOON}/conversation_trace.jsonl", licence=APACHE, citation=MOONCAKE
    ),
    "mooncake_toolagent": PublicSet(
        url=f"{MOON}/toolagent_trace.jsonl", licence=APACHE, citation=MOONCAKE
    ),
    "mooncake_synthetic": PublicSet(
        url=f"{MOON}/synthetic_trace.jsonl",
        licence=APACHE,
        citation=MOONCAKE,
        kind=TraceKind.SYNTHETIC,
    ),
    "qwen_bailian_a": PublicSet(
        url=f"{RAW}/{QWEN}/qwen_traceA_blksz_16.jsonl", licence=APACHE, citation=KVCACHE
    ),
    "qwen_bailian_b": PublicSet(
        url=f"{RAW}/{QWEN}/qwen_traceB_blksz_16.jsonl", licence=APACHE, citation=KVCACHE
    ),
    "qwen_bailian_coder": PublicSet(
        url=f"{QWEN_LFS}/qwen_coder_blksz_16.jsonl",
        licence=APACHE,
        citation=KVCACHE,
        sha256="3d74974cebb7bccb69b1ca6ea210a44d9a3033443c0271ed015327284dea1aff",
    ),
    "qwen_bailian_thinking": PublicSet(
        url=f"{QWEN_LFS}/qwen_thinking_blksz_16.jsonl",
        licence=APACHE,
        citation=KVCACHE,
        sha256="41ac36d9d1b54d084eeb6b05e9d142ba9d02f8bf79cfc9fff418d8ab7cdee906",
    ),
}


def public_set(name: str) -> PublicSet:
    """Raises TraceError for an unknown name."""
    if name not in PUBLIC:
        raise TraceError(f"trace.name={name}: no public set; {nearest(name, PUBLIC)}")
    return PUBLIC[name]
