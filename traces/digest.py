"""The content hash of a workload, chunk by chunk: the same on every machine, in every format."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Digest:
    """Hashes each of the required columns on its own and names in order of first appearance, so
    that neither the numbers of models nor the cut into chunks matter."""

    def __init__(self, models: Sequence[str]) -> None:
        self.models = models
        self.number = np.full(len(models), -1, np.int32)
        self.seen: list[str] = []
        self.columns = [hashlib.sha256() for _ in range(4)]

    def add(
        self,
        arrival_s: npt.NDArray[np.float64],
        model: npt.NDArray[np.int32],
        prompt_tokens: npt.NDArray[np.int32],
        output_tokens: npt.NDArray[np.int32],
    ) -> None:
        self._meet(model)
        arrival, *rest = self.columns
        arrival.update((arrival_s + 0.0).astype("<f8").tobytes())  # no -0.0
        values = (self.number[model], prompt_tokens, output_tokens)
        for column, numbers in zip(rest, values, strict=True):
            column.update(numbers.astype("<i4").tobytes())

    def _meet(self, model: npt.NDArray[np.int32]) -> None:
        unknown = model[self.number[model] < 0]
        new, first = np.unique(unknown, return_index=True)
        for code in new[np.argsort(first)].tolist():
            self.number[code] = len(self.seen)
            self.seen.append(self.models[code])

    @property
    def hex(self) -> str:
        whole = hashlib.sha256("\n".join(self.seen).encode())
        for column in self.columns:
            whole.update(column.digest())
        return whole.hexdigest()
