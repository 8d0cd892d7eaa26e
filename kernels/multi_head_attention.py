"""Multi-head attention out of the kernels of its parts, with no copy between them.

A self-attention is three launches forward, four with rotary positions: one product for q, k and v
together, attention, one product out. What would be copies are views:

- heads apart: q, k and v of a head are strided views of the packed projection (B, M, 3E);
- heads together: attention lays the heads of a query side by side, as the output product reads
  them;
- backward: attention writes dq, dk and dv straight into views of one packed gradient, rotary turns
  dq and dk there in place, and the projection's backward reads it as one matrix.

So between the products only the packed projection and the heads travel: 4·B·M·E·b bytes written
and read once each way. Saved: x, the packed projection, the heads, and lse.

`B` batch, `M` queries, `N` keys, `E` features, `H` heads, `D` = E/H head_dim; steps (1)–(4) are
those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from twofold.kernels import attention, linear
from twofold.kernels import rotary as positions
from twofold.reference import checks
from twofold.reference.multi_head_attention import check


class Cache(NamedTuple):
    """The caches of the parts; `context` is None for self-attention."""

    projection: linear.Cache
    context: linear.Cache | None
    rotary: positions.Cache | None
    attention: attention.Cache
    output: linear.Cache


class Gradients(NamedTuple):
    """Gradients of the arguments; None for those that were None."""

    dx: torch.Tensor
    dcontext: torch.Tensor | None
    dw_qkv: torch.Tensor
    db_qkv: torch.Tensor | None
    dw_out: torch.Tensor
    db_out: torch.Tensor | None


def forward(
    x: torch.Tensor,
    w_qkv: torch.Tensor,
    b_qkv: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    *,
    num_heads: int,
    context: torch.Tensor | None = None,
    causal: bool = False,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    rotary: tuple[torch.Tensor, torch.Tensor, bool] | None = None,
    allow_tf32: bool = False,
) -> tuple[torch.Tensor, Cache]:
    """Attend from x to itself or to a context.

    Arguments and results are those of `reference.multi_head_attention.forward`, in float16,
    bfloat16 or float32. float32 products are accurate to float32 (three tf32 products) unless
    `allow_tf32`.
    """
    check(x, w_qkv, b_qkv, w_out, b_out, num_heads, context)
    checks.require(rotary is None or context is None, "rotary", "given with context", "None")
    E = x.shape[-1]
    # (1) projections
    context_cache = None
    if context is None:
        packed, projection_cache = linear.forward(x, w_qkv, b_qkv, allow_tf32=allow_tf32)
        q, k, v = split(packed, 3, num_heads)  # of (B, M, 3E)
    else:
        bias_q, bias_kv = (None, None) if b_qkv is None else (b_qkv[:E], b_qkv[E:])
        packed, projection_cache = linear.forward(x, w_qkv[:E], bias_q, allow_tf32=allow_tf32)
        packed_kv, context_cache = linear.forward(
            context, w_qkv[E:], bias_kv, allow_tf32=allow_tf32
        )
        (q,), (k, v) = split(packed, 1, num_heads), split(packed_kv, 2, num_heads)
    # (2) positions
    rotary_cache = None
    if rotary is not None:
        cos, sin, interleaved = rotary
        (q, k), rotary_cache = positions.forward(q, k, cos, sin, interleaved=interleaved)
    # (3) attention of every head
    heads, attention_cache = attention.forward(
        q,
        k,
        v,
        causal=causal,
        mask=mask,
        key_lengths=key_lengths,
        dropout_p=dropout_p,
        seed=seed,
        allow_tf32=allow_tf32,
    )
    # (4) output projection
    out, output_cache = linear.forward(join(heads), w_out, b_out, allow_tf32=allow_tf32)
    cache = Cache(projection_cache, context_cache, rotary_cache, attention_cache, output_cache)
    return out, cache


def backward(dout: torch.Tensor, cache: Cache) -> Gradients:
    """Return the gradients of everything that was given."""
    x, w = cache.projection.x, cache.projection.weight
    num_heads, (B, M, E) = cache.attention.q.shape[1], x.shape
    # (4) output projection
    dheads, dw_out, db_out = linear.backward(dout, cache.output)
    (dheads,) = split(dheads, 1, num_heads)
    if cache.context is None:
        packed = torch.empty((B, M, 3 * E), dtype=x.dtype, device=x.device)
        into = attention.Gradients(*split(packed, 3, num_heads))
        # (3) attention of every head
        dq, dk, *_ = attention.backward(dheads, cache.attention, into=into)
        # (2) positions
        if cache.rotary is not None:
            positions.backward(dq, dk, cache.rotary, into=(dq, dk))
        # (1) projections
        dx, dw_qkv, db_qkv = linear.backward(packed, cache.projection)
        return Gradients(dx, None, dw_qkv, db_qkv, dw_out, db_out)
    context = cache.context.x
    packed = torch.empty((B, M, E), dtype=x.dtype, device=x.device)
    packed_kv = torch.empty((B, context.shape[1], 2 * E), dtype=x.dtype, device=x.device)
    into = attention.Gradients(*split(packed, 1, num_heads), *split(packed_kv, 2, num_heads))
    # (3) attention of every head
    attention.backward(dheads, cache.attention, into=into)
    # (1) projections, each into its part of the weight's gradient
    dw_qkv = torch.empty((3 * E, E), dtype=w.dtype, device=w.device)
    db_qkv = torch.empty(3 * E, dtype=w.dtype, device=w.device)
    dx, dcontext = (torch.empty(a.shape, dtype=a.dtype, device=a.device) for a in (x, context))
    linear.backward(packed, cache.projection, into=linear.Gradients(dx, dw_qkv[:E], db_qkv[:E]))
    linear.backward(
        packed_kv, cache.context, into=linear.Gradients(dcontext, dw_qkv[E:], db_qkv[E:])
    )
    has_bias = cache.projection.has_bias
    return Gradients(dx, dcontext, dw_qkv, db_qkv if has_bias else None, dw_out, db_out)


def split(packed: torch.Tensor, parts: int, num_heads: int) -> tuple[torch.Tensor, ...]:
    """View (B, L, parts·E) as so many times heads (B, H, L, D)."""
    B, L, _ = packed.shape
    return packed.view(B, L, parts, num_heads, -1).permute(2, 0, 3, 1, 4).unbind()


def join(heads: torch.Tensor) -> torch.Tensor:
    """View heads (B, H, L, D), side by side in memory, as (B, L, E)."""
    return heads.transpose(1, 2).flatten(2)
