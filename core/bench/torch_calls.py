"""PyTorch's own functions as plain calls, with the operators' arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


def torch_attention(
    q: Any,
    k: Any,
    v: Any,
    causal: bool = False,
    softmax_scale: Any = None,
) -> Any:
    """torch's attention, with the backend it chooses."""
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=shared, scale=softmax_scale
    )


def torch_layer_norm(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    eps: float = 1e-5,
) -> Any:
    """torch's layer norm, after its dropout and a sum."""
    if residual is not None:
        x = residual + F.dropout(x, dropout_p)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def torch_rms_norm(
    x: Any, weight: Any, residual: Any = None, eps: float = 1e-6, offset: float = 0.0
) -> Any:
    """torch's RMSNorm, after a sum."""
    if residual is not None:
        x = residual + x
    return F.rms_norm(x, x.shape[-1:], weight + offset if offset else weight, eps)


def torch_dropout(x: Any, p: float, seed: int = 0) -> Any:
    """torch's dropout, with the generator's seed."""
    return F.dropout(x, p)


def torch_positions(ids: Any, table: Any, position_table: Any) -> Any:
    """torch's embedding look-up, with positions added."""
    return F.embedding(ids, table) + position_table


def torch_decode(q: Any, k_cache: Any, v_cache: Any, key_lengths: Any) -> Any:
    """torch's attention to a full cache."""
    return F.scaled_dot_product_attention(q, k_cache, v_cache, enable_gqa=True)


def torch_linear(x: Any, weight: Any, bias: Any, activation: str | None = None) -> Any:
    """torch's linear layer, then the activation."""
    out = F.linear(x, weight, bias)
    return out if activation is None else torch_activation(out, activation)


def torch_activation(x: Any, kind: str = "gelu", bias: Any = None) -> Any:
    """torch's activations, after a sum with the bias if there is one."""
    if bias is not None:
        x = x + bias
    return ACTIVATIONS[kind](x)


def torch_gated_activation(gate: Any, up: Any, kind: str = "silu") -> Any:
    """torch's activation of the gate, times up: two operations, each of which reads and writes."""
    return ACTIVATIONS[kind](gate) * up


def torch_softmax(x: Any) -> Any:
    """torch's softmax over the last axis."""
    return torch.softmax(x, dim=-1)


def torch_cross_entropy(logits: Any, targets: Any) -> Any:
    """torch's softmax with cross-entropy."""
    return F.cross_entropy(logits, targets)


def torch_embedding(ids: Any, table: Any) -> Any:
    """torch's embedding look-up."""
    return F.embedding(ids, table)


def torch_rotary(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions as torch models write them, rotating the halves of a head together."""
    angles = [torch.cat((t, t), dim=-1).to(q.dtype) for t in (cos, sin)]
    return tuple(_turned(x, *angles) for x in (q, k))


def _turned(x: Any, cos: Any, sin: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


OF_TORCH: dict[str, Callable[..., Any]] = {
    "attention": torch_attention,
    "layer_norm": torch_layer_norm,
    "rms_norm": torch_rms_norm,
    "linear": torch_linear,
    "activation": torch_activation,
    "gated_activation": torch_gated_activation,
    "softmax": torch_softmax,
    "softmax_cross_entropy": torch_cross_entropy,
    "embedding": torch_embedding,
    "rotary": torch_rotary,
    "dropout": torch_dropout,
    "positional_encoding": torch_positions,
    "attention_decode": torch_decode,
}
