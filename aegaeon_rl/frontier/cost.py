"""What GPUs cost, from a table of prices that the user states."""

from dataclasses import dataclass, field

from runtime.errors import UserError, nearest

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars an hour of one GPU; an assumption, with its source and date."""

    source: str = "not stated"
    date: str = "not stated"
    usd_gpu_hour: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, price in self.usd_gpu_hour.items():
            if not 0 < price < 1e6:
                raise UserError(f"prices.usd_gpu_hour.{name}={price}: expected more than 0")

    def of(self, gpu: str) -> float:
        """Raises UserError for a GPU without a price."""
        if gpu not in self.usd_gpu_hour:
            raise UserError(f"prices.usd_gpu_hour: no {gpu!r}; {nearest(gpu, self.usd_gpu_hour)}")
        return self.usd_gpu_hour[gpu]

    def usd_million_tokens(self, gpu: str, gpus: int, goodput_tokens_s: float) -> float:
        """Per million tokens on time; infinite where there are none."""
        if goodput_tokens_s <= 0:
            return float("inf")
        return gpus * self.of(gpu) / HOUR_S / goodput_tokens_s * 1e6
