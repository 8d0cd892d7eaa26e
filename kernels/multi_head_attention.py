"""Multi-head attention from the kernels of its parts, with no copy between them.

Self-attention takes three launches forward: one product for q, k and v together, attention, one
product out. Rotary positions are one more before attention, or two, for q and for k, where
attention itself rotates them. What would be copies are views:

- heads apart: q, k and v of a head are strided views of the packed projection, (B, M, (H + 2K)·D);
- keys that heads share: attention reads the one head in place, and sums its dk and dv;
- heads together: attention lays the heads of a query side by side, as the output product reads
  them;
- backward: attention writes dq, dk and dv straight into views of one packed gradient, `rotary`
  rotates dq and dk there in place, and the projection's backward reads it as one matrix.

So only the packed projection and the heads pass between the products: 2·B·M·(H + K)·D·b bytes
written and read once each way; rotated q and k are copies, (H + K)·B·M·D·b more. Saved: x, the
packed projection, the heads, and lse; and q and k rotated, unless attention itself rotates them,
which does so again in backward.

`B` batch, `M` queries, `N` keys, `E` features, `H` heads, `K` KV heads, `D` = E/H head_dim; steps
(1)–(4) are those of the reference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from twofold.kernels import attention, linear
from twofold.kernels import rotary as positions
from twofold.reference import checks
from twofold.reference.attention_scores import BlockSize, ScoreMod, Window
from twofold.reference.multi_head_attention import check, cut, receiving
from twofold.reference.rotary import Rotary

Turns = tuple[torch.Tensor, torch.Tensor, bool]  # cos, sin, interleaved


class Cache(NamedTuple):
    """The caches of the parts; `context` is None for self-attention."""

    projection: linear.Cache
    context: linear.Cache | None
    rotary: positions.Cache | None
    attention: attention.Cache
    output: linear.Cache


class Gradients(NamedTuple):
    """Gradients of the arguments; None for those that were None or are not computed."""

    dx: torch.Tensor | None
    dcontext: torch.Tensor | None
    dw_qkv: torch.Tensor | None
    db_qkv: torch.Tensor | None
    dw_out: torch.Tensor | None
    db_out: torch.Tensor | None
    dbias: torch.Tensor | None = None
    dsinks: torch.Tensor | None = None


def forward(
    x: torch.Tensor,
    w_qkv: torch.Tensor,
    b_qkv: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    context: torch.Tensor | None = None,
    causal: bool | str = False,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor = 0,
    rotary: Turns | Rotary | None = None,
    softmax_scale: float | None = None,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    block_mask: torch.Tensor | None = None,
    block_size: BlockSize | None = None,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, Cache]:
    """Attend from x to itself or to a context.

    Arguments and results are those of `reference.multi_head_attention.forward`, in float16,
    bfloat16 or float32. float32 products are accurate to float32 (three tf32 products) unless
    `allow_tf32`.
    """
    K = check(x, w_qkv, b_qkv, w_out, b_out, num_heads, num_kv_heads, context, rotary)
    E = x.shape[-1]
    # (1) projections
    context_cache = None
    if context is None:
        packed, projection_cache = linear.forward(x, w_qkv, b_qkv, allow_tf32=allow_tf32)
        q, k, v = split(packed, num_heads, K, K)  # of (B, M, (H + 2K)·D)
    else:
        bias_q, bias_kv = (None, None) if b_qkv is None else (b_qkv[:E], b_qkv[E:])
        packed, projection_cache = linear.forward(x, w_qkv[:E], bias_q, allow_tf32=allow_tf32)
        packed_kv, context_cache = linear.forward(
            context, w_qkv[E:], bias_kv, allow_tf32=allow_tf32
        )
        (q,), (k, v) = split(packed, num_heads), split(packed_kv, K, K)
    # (2) positions
    as_read, rotary_cache = None, None
    if isinstance(rotary, Rotary):
        as_read = rotary
    elif rotary is not None:
        cos, sin, interleaved = rotary
        (q, k), rotary_cache = positions.forward(q, k, cos, sin, interleaved=interleaved)
    # (3) attention of every head
    heads, attention_cache = attention.forward(
        q, k, v, causal=causal, mask=mask, key_lengths=key_lengths, dropout_p=dropout_p, seed=seed,
        softmax_scale=softmax_scale, window_size=window_size, softcap=softcap, score_mod=score_mod,
        alibi_slopes=alibi_slopes, bias=bias, sinks=sinks,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, rotary=as_read, block_mask=block_mask, block_size=block_size,
        allow_tf32=allow_tf32,
    )  # fmt: skip
    # (4) output projection
    out, output_cache = linear.forward(join(heads), w_out, b_out, allow_tf32=allow_tf32)
    cache = Cache(projection_cache, context_cache, rotary_cache, attention_cache, output_cache)
    return out, cache


def backward(
    dout: torch.Tensor,
    cache: Cache,
    *,
    of_x: bool = True,
    of_context: bool = True,
    of_weights: bool = True,
    of_bias: bool = True,
    into: checks.Into = None,
) -> Gradients:
    """Return the gradients of x, context, weights, biases, and attention's bias and sinks.

    Arguments and results are those of `reference.multi_head_attention.backward`; `into` may have
    any strides and any dtype that kernels take.
    """
    checks.flags(of_x=of_x, of_context=of_context, of_weights=of_weights, of_bias=of_bias)
    x, w = cache.projection.x, cache.projection.weight
    (B, M, E), H, K = x.shape, cache.attention.q.shape[1], cache.attention.k.shape[1]
    of_qkv, of_out = receiving(into, cache, of_weights)
    of_parameters: dict[str, Any] = {"of_weight": of_weights, "of_bias": of_weights}
    # (4) output projection
    dheads, dw_out, db_out = linear.backward(dout, cache.output, into=of_out, **of_parameters)
    assert dheads is not None
    (dheads,) = split(dheads, H)
    if cache.context is None:
        packed = torch.empty((B, M, w.shape[0]), dtype=x.dtype, device=x.device)
        heads = split(packed, H, K, K)
        # (3) attention of every head
        dq, dk, _, *others = attention.backward(
            dheads, cache.attention, of_bias=of_bias, into=heads
        )
        # (2) positions
        if cache.rotary is not None:
            positions.backward(dq, dk, cache.rotary, into=(dq, dk))
        # (1) projections
        dx, dw_qkv, db_qkv = linear.backward(
            packed, cache.projection, of_x=of_x, into=of_qkv, **of_parameters
        )
        return Gradients(dx, None, dw_qkv, db_qkv, dw_out, db_out, *others)
    context, width = cache.context.x, cache.context.weight.shape[0]
    packed = torch.empty((B, M, E), dtype=x.dtype, device=x.device)
    packed_kv = torch.empty((B, context.shape[1], width), dtype=x.dtype, device=x.device)
    heads = (*split(packed, H), *split(packed_kv, K, K))
    # (3) attention of every head
    *_, dbias, dsinks = attention.backward(dheads, cache.attention, of_bias=of_bias, into=heads)
    # (1) projections, each into its part of the weight's gradient
    dw_qkv, db_qkv = of_qkv
    of_q = of_kv = None
    if of_weights:
        if dw_qkv is None:
            dw_qkv = torch.empty((E + width, E), dtype=w.dtype, device=w.device)
        if db_qkv is None and cache.projection.has_bias:
            db_qkv = torch.empty(E + width, dtype=w.dtype, device=w.device)
        of_q, of_kv = cut(dw_qkv, db_qkv, E)
    dx = linear.backward(packed, cache.projection, of_x=of_x, into=of_q, **of_parameters).dx
    dcontext = linear.backward(
        packed_kv, cache.context, of_x=of_context, into=of_kv, **of_parameters
    ).dx
    return Gradients(dx, dcontext, dw_qkv, db_qkv, dw_out, db_out, dbias, dsinks)


def split(packed: torch.Tensor, *heads: int) -> tuple[torch.Tensor, ...]:
    """View (B, L, ΣH·D) as heads (B, H, L, D), for each H of `heads`."""
    B, L, width = packed.shape
    each = packed.view(B, L, sum(heads), width // sum(heads)).transpose(1, 2)
    return torch.split(each, list(heads), dim=1)


def join(x: torch.Tensor) -> torch.Tensor:
    """View heads (B, H, L, D), side by side in memory, as (B, L, E)."""
    return x.transpose(1, 2).flatten(2)
