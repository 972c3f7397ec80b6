"""Decode graphs with a recorder that replays the step's own code over the same static tensors."""

import pytest
import torch

from runtime.engine.attention import AttentionBatch
from runtime.engine.device import open_device
from runtime.engine.graphs import Captured, DecodeGraphs, bucket, open_graphs

BLOCK = 4
SCRATCH = 9


class Recorder:
    """A capture on CPU: as on CUDA, logits keep their address and Python does not run again."""

    def __init__(self, nbytes: int = 100) -> None:
        self.captures = 0
        self.nbytes = nbytes

    def __call__(self, step):
        self.captures += 1
        logits = step().clone()
        return Captured(lambda: logits.copy_(step()), logits, self.nbytes)


class Model:
    """Logits that tell everything a step was given; it notes the slots it wrote to."""

    def __init__(self) -> None:
        self.written: list[list[int]] = []

    def __call__(self, tokens, positions, batch):
        self.written.append(batch.slot_mapping.tolist())
        used = (batch.context_tokens - 1) // BLOCK
        last = batch.block_tables.gather(1, used.long()[:, None])[:, 0]
        return torch.stack([tokens, positions, last, batch.context_tokens], 1).float()


def call(graphs, model, tables, contexts, key="llama in slot 0"):
    tokens = torch.tensor([100 + context for context in contexts])
    positions = torch.tensor(contexts) - 1
    batch = AttentionBatch.of(tables, [1] * len(tables), contexts, block=BLOCK)
    got = graphs.run(key, model, tokens, positions, batch, scratch_block=SCRATCH)
    assert torch.equal(got, model(tokens, positions, batch))
    model.written.pop()


@pytest.mark.parametrize("capture", [None, Recorder()])
def test_graphs_compute_what_the_step_computes(capture):
    graphs, model = DecodeGraphs(capture), Model()
    call(graphs, model, [[1, 2], [3], [4]], [5, 1, 4])
    call(graphs, model, [[5], [6, 7]], [2, 6])
    call(graphs, model, [[1, 2, 3]], [11])
    call(graphs, model, [[8], [5], [6, 7]], [1, 3, 6])


def test_graphs_pad_rows_into_the_scratch_block_alone():
    graphs, model = DecodeGraphs(Recorder()), Model()
    call(graphs, model, [[1], [2], [3], [4]], [4, 4, 4, 4])
    call(graphs, model, [[1], [2], [3]], [1, 2, 3])
    assert model.written[-1] == [4, 9, 14, SCRATCH * BLOCK]


def test_graphs_are_recorded_once_for_sizes_that_share_a_bucket():
    recorder = Recorder()
    graphs, model = DecodeGraphs(recorder), Model()
    for rows in (5, 6, 8, 7):
        call(graphs, model, [[k % 9] for k in range(rows)], [1 + k % 4 for k in range(rows)])
    assert recorder.captures == len(graphs) == 1
    call(graphs, model, [[0]] * 8, [2] * 8, key="llama in slot 1")
    assert recorder.captures == 2
    graphs.forget("llama in slot 1")
    assert len(graphs) == 1


def test_graphs_keep_to_their_number_and_bytes():
    few, small = DecodeGraphs(Recorder(), most=2), DecodeGraphs(Recorder(), budget_bytes=350)
    for graphs, left in ((few, 2), (small, 3)):
        for rows in (1, 2, 4, 8, 16):
            call(graphs, Model(), [[k % 9] for k in range(rows)], [1] * rows)
        assert len(graphs) == left
        assert graphs.used_bytes == 100 * left


def test_graphs_run_a_step_that_cannot_be_recorded_as_it_is():
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = DecodeGraphs(refuse)
    call(graphs, Model(), [[1]], [3])
    assert graphs.is_eager("llama in slot 0")
    call(graphs, Model(), [[1], [2]], [3, 4])
    assert len(graphs) == 0


def test_graphs_on_cpu_are_plain_calls():
    device = open_device("cpu")
    graphs = open_graphs(device)
    call(graphs, Model(), [[1]], [3])
    assert len(graphs) == graphs.used_bytes == 0
    device.close()


def test_buckets_waste_less_than_half():
    assert [bucket(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 33)] == [1, 2, 4, 8, 8, 16, 16, 24, 40]
