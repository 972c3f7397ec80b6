"""What a service is started with: models, memory, policy, limits. conf/serve.yaml has values."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.core import SloSpec, check_within
from runtime.errors import UserError

MOST_S = 1e9  # of any time limit: ns of it fit in 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """`path`: a folder of a blob, of a transformers checkpoint (safetensors), a GGUF file, or
    `tiny:ARCHITECTURE:SEED`, a small random model made on the spot, with a byte tokenizer."""

    path: str
    dtype: str | None = None  # None: float32 on CPU, bfloat16 on CUDA
    is_pinned: bool = False  # its host memory is never given up
    max_tokens: int | None = None  # context; None: the model's own


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """Who makes policies by name: `factory` is "module:function", so that runtime imports none."""

    name: str = "index"
    fallback: str = "index"
    factory: str = "aegaeon_rl.policies.registry:make_policy"
    budget_s: float = 0.002  # then the fallback answers

    def __post_init__(self) -> None:
        check_within("policy.budget_s", self.budget_s, 1e-6, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may ask of the service; beyond: 413, 400, 429 with Retry-After, 504."""

    body_bytes: int = 4 << 20
    prompt_tokens: int = 1 << 20  # the model's context binds as well
    choices: int = 16  # n
    queue: int = 4096  # requests in flight
    first_token_s: float = 300.0
    request_s: float = 3600.0
    body_s: float = 30.0  # to send the body

    def __post_init__(self) -> None:
        for name in ("body_bytes", "prompt_tokens", "choices", "queue"):
            check_within(f"server.limits.{name}", getattr(self, name), 1, 1 << 40)
        for name in ("first_token_s", "request_s", "body_s"):
            check_within(f"server.limits.{name}", getattr(self, name), 0, MOST_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Of one key, over a sliding minute; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and output
    is_admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    host: str = "127.0.0.1"  # other addresses need keys
    port: int = 8000  # 0: any free one, printed
    keys_file: str | None = None  # YAML: {NAME: {key: sk-..., requests_per_minute: 60, ...}}
    drain_s: float = 30.0  # at SIGTERM: how long requests in flight may go on
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_within("server.port", self.port, 0, 65535)
        check_within("server.drain_s", self.drain_s, 0, 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSpec:
    """Parquet files under `folder`; a file is written aside, then renamed."""

    folder: str | None = None  # None: no logs
    rotate_s: float = 300.0
    rotate_rows: int = 100_000

    def __post_init__(self) -> None:
        check_within("logs.rotate_s", self.rotate_s, 0, MOST_S)
        check_within("logs.rotate_rows", self.rotate_rows, 1, 1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """Memory is of one instance, host memory of the node."""

    models: dict[str, ModelSource]
    instances: int = 2
    device: str = "cpu"  # or cuda: instance i is GPU i
    cluster: str = "local"
    weight_slots: int = 2
    kv_bytes: int = 256 << 20
    host_kv_bytes: int = 256 << 20
    block_tokens: int = 16
    prefill_budget_tokens: int = 512
    prefill_chunk_tokens: int = 0
    threads: int = 1  # of torch, in each worker on CPU
    max_wait_s: float = 0.0
    seed: int = 0
    hang_s: float = 20.0  # a worker that owes a report this long is killed
    slo: SloSpec = field(default_factory=SloSpec)
    policy: PolicySource = field(default_factory=PolicySource)
    server: ServerSpec = field(default_factory=ServerSpec)
    logs: LogSpec = field(default_factory=LogSpec)

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("models: none given: expected at least one, NAME: {path: FOLDER}")
        if self.cluster not in ("local", "ray"):
            raise UserError(f"cluster={self.cluster}: expected local or ray")
        for name, (low, high) in SERVICE_BOUNDS.items():
            check_within(name, getattr(self, name), low, high)
        self.slo.check_models(self.models)


SERVICE_BOUNDS: dict[str, tuple[float, float]] = {
    "instances": (1, 1024),
    "weight_slots": (1, 64),
    "kv_bytes": (1, 1e15),
    "host_kv_bytes": (1, 1e15),
    "block_tokens": (1, 4096),
    "prefill_budget_tokens": (0, 1e9),
    "prefill_chunk_tokens": (0, 1e9),
    "threads": (1, 1024),
    "max_wait_s": (0, 1e9),
    "hang_s": (0.1, 1e6),
    "seed": (0, 2**62),
}
