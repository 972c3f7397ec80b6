"""Small blobs and devices."""

import pytest
import torch

from runtime.engine.blob import blob_from
from runtime.engine.device import open_device


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def device():
    opened = open_device("cpu")
    yield opened
    opened.close()


@pytest.fixture
def weights():
    """A few tensors of odd sizes, one of them under two names."""
    draw = torch.Generator().manual_seed(0)
    found = {
        "a.weight": torch.randn(33, 7, generator=draw),
        "b.bias": torch.randn(5, generator=draw).bfloat16(),
        "ids": torch.arange(3),
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 4),
    }
    return found | {"tied.weight": found["a.weight"]}


@pytest.fixture
def blob(weights):
    made = blob_from({"model_type": "toy", "layers": 2}, weights)
    yield made
    made.close()
