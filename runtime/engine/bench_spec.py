"""What a bench of the engine measures."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import UserError

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpec:
    """What is measured."""

    device: str = "cpu"
    model: str = "135m"  # a shape of bench_models
    dtype: str = ""  # empty: float32 on CPU, bfloat16 on CUDA
    threads: int = 0  # of torch; 0: one per core
    prompt_tokens: int = 32
    tokens: int = 32  # decoded a request
    batches: tuple[int, ...] = (1, 8)
    runs: int = 3  # medians of so many
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "tokens", "runs"):
            if getattr(self, name) < (2 if name == "tokens" else 1):
                raise UserError(f"engine.{name}={getattr(self, name)}: expected more")
        for name in ("threads", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"engine.{name}={getattr(self, name)}: expected 0 or more")
        if not self.batches or min(self.batches) < 1:
            raise UserError(f"engine.batches={list(self.batches)}: expected sizes of at least 1")
        if self.dtype and self.dtype not in DTYPES:
            raise UserError(f"engine.dtype={self.dtype}: expected one of {', '.join(DTYPES)}")

    @property
    def dtype_name(self) -> str:
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")
