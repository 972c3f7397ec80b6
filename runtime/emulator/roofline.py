"""The floor under any latency profile: what a GPU's peaks allow, ideally overlapped.

A pass takes at least its FLOPs over the peak and its bytes over the memory bandwidth, whichever is
longer, spread evenly over the `tp` GPUs of an instance without any communication. Counted are:
- FLOPs: 2 a weight and token (with bf16, as many as weight bytes), the output head once per
  sequence; attention 4 a layer, query channel and context token (half of the square in a prefill).
- Bytes: every weight once, of experts only those the tokens are expected to touch with even
  routing, of an untied input embedding none; in a decode step the KV of the whole context.
Activations and the KV that a prefill writes are left out.
"""

from runtime.catalog import Checkpoint, Gpu


def touched_experts(shape: Checkpoint, tokens: float) -> float:
    """Expected number of distinct experts of a layer that `tokens` tokens use, routed evenly."""
    if shape.experts == 0:
        return 0.0
    return shape.experts * (1.0 - (1.0 - shape.experts_per_token / shape.experts) ** tokens)


def read_bytes(shape: Checkpoint, tokens: float) -> float:
    """Weight bytes that a pass over `tokens` tokens reads."""
    embedding = 0 if shape.is_tied else shape.head_bytes
    untouched = shape.experts - touched_experts(shape, tokens)
    return shape.weight_bytes - embedding - untouched * shape.expert_bytes


def token_flops(shape: Checkpoint) -> float:
    """Of one token in the layers: embedding and output head apart."""
    heads = shape.head_bytes * (1 if shape.is_tied else 2)
    return float(shape.active_bytes - heads)


def attention_flops(shape: Checkpoint, pairs: float) -> float:
    """Scores and weighted sums of that many pairs of a query and a context token."""
    return 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


def prefill_floor_s(gpu: Gpu, shape: Checkpoint, tp: int, tokens: float) -> float:
    """One prompt of `tokens` tokens."""
    flops = token_flops(shape) * tokens + shape.head_bytes
    flops += attention_flops(shape, tokens * tokens / 2)
    return max(flops / gpu.flops_s, read_bytes(shape, tokens) / gpu.hbm_bytes_s) / tp


def step_floor_s(gpu: Gpu, shape: Checkpoint, tp: int, batch: float, context: float) -> float:
    """One decode step of `batch` requests with `context` tokens in all."""
    flops = (token_flops(shape) + shape.head_bytes) * batch + attention_flops(shape, context)
    read = read_bytes(shape, batch) + shape.kv_token_bytes * context
    return max(flops / gpu.flops_s, read / gpu.hbm_bytes_s) / tp
