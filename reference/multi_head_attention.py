r"""Multi-head attention: project, attend with every head on its own slice, project back.

    (q, k, v) = x·W_qkvᵀ + b_qkv,   out = concat_h(attention(q_h, k_h, v_h))·W_outᵀ + b_out

Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2. The three projections are one
matrix and one GEMM, and a head is a strided view of its result. The kernels never copy heads apart
or together; here, heads that share a KV head are copied, and `join` copies. For cross-attention q
is projected from x, k and v from the context.

G = H/K consecutive heads may share a KV head: grouped-query attention (Ainslie et al. 2023, "GQA:
Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints"), multi-query where
K = 1 (Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"). Then the matrix
is that much smaller, and nothing is repeated.

`B` batch, `M` queries, `N` keys, `E` features, `H` heads, `K` KV heads, `D` = E/H head_dim. The
steps are numbered; the kernel carries the same numbers where it does the same thing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import attention, checks, linear
from twofold.reference import rotary as positions
from twofold.reference.attention_scores import BlockSize, ScoreMod, Window
from twofold.reference.rotary import Rotary

Array = np.ndarray[Any, np.dtype[Any]]
Turns = tuple[Array, Array, bool]  # cos, sin, interleaved


class Cache(NamedTuple):
    """The caches of the parts; `context` is None for self-attention."""

    projection: linear.Cache
    context: linear.Cache | None
    rotary: positions.Cache | None
    attention: attention.Cache
    output: linear.Cache


class Gradients(NamedTuple):
    """Gradients of the arguments; None for those that were None or are not computed."""

    dx: Array | None
    dcontext: Array | None
    dw_qkv: Array | None
    db_qkv: Array | None
    dw_out: Array | None
    db_out: Array | None
    dbias: Array | None = None
    dsinks: Array | None = None


def check(
    x: Any,
    w_qkv: Any,
    b_qkv: Any,
    w_out: Any,
    b_out: Any,
    num_heads: int,
    num_kv_heads: int | None,
    context: Any,
    rotary: Any,
) -> int:
    """Raise TypeError or ValueError for what none of the parts refuses itself; return K."""
    checks.floating(x=x, w_qkv=w_qkv, b_qkv=b_qkv, w_out=w_out, b_out=b_out, context=context)
    checks.shape("x", x, ("B", "M", "E"))
    B, _, E = (int(n) for n in x.shape)
    checks.count("num_heads", num_heads, 1)
    checks.require(E % num_heads == 0, "num_heads", num_heads, f"a divisor of x.shape[-1], {E}")
    K = num_heads if num_kv_heads is None else num_kv_heads
    checks.count("num_kv_heads", K, 1)
    checks.require(num_heads % K == 0, "num_kv_heads", K, f"a divisor of num_heads, {num_heads}")
    width = (num_heads + 2 * K) * (E // num_heads)
    checks.shape("w_qkv", w_qkv, (width, E))
    checks.shape("w_out", w_out, (E, E))
    if b_qkv is not None:
        checks.shape("b_qkv", b_qkv, (width,))
    if b_out is not None:
        checks.shape("b_out", b_out, (E,))
    if context is not None:
        checks.shape("context", context, (B, "N", E))
        fits = rotary is None or isinstance(rotary, Rotary)
        was = f"a {type(rotary).__name__} with context"
        checks.require(fits, "rotary", was, "a Rotary, which has the angles of both, or None")
    check_turns(rotary)
    return int(K)


def check_turns(rotary: Any) -> None:
    """Refuse a `rotary` that is neither (cos, sin, interleaved), nor a `Rotary`, nor None."""
    if rotary is None or isinstance(rotary, Rotary):
        return
    several = isinstance(rotary, tuple | list)
    if not several or len(rotary) != 3 or not isinstance(rotary[2], bool | np.bool_):
        was = f"a {type(rotary).__name__}" + (f" of {len(rotary)}" if several else "")
        raise TypeError(f"rotary is {was}; it must be (cos, sin, interleaved), a Rotary or None")


def forward(
    x: Array,
    w_qkv: Array,
    b_qkv: Array | None,
    w_out: Array,
    b_out: Array | None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    context: Array | None = None,
    causal: bool | str = False,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    rotary: Turns | Rotary | None = None,
    softmax_scale: float | None = None,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: Array | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    block_mask: Array | None = None,
    block_size: BlockSize | None = None,
) -> tuple[Array, Cache]:
    """Attend from x to itself or to a context.

    Args:
        x: (B, M, E), floating; all weights, biases and the context are of its dtype.
        w_qkv: ((H + 2K)·D, E), the stacked projections of q, k and v, (3E, E) where K = H; b_qkv:
            ((H + 2K)·D,) or None.
        w_out: (E, E); b_out: (E,) or None.
        num_heads: H, a divisor of E.
        num_kv_heads: K, a divisor of H; H if it is None.
        context: (B, N, E) to attend to instead of x.
        rotary: (cos, sin, interleaved) as for `rotary.forward`, which rotates q and k, only without
            a context; or a `Rotary`, by which `attention.forward` rotates them.
        causal and all others: as for `attention.forward`, where M and N are the lengths of x and of
            what it attends to. If packed, x is (1, M, E), and self-attention takes the same
            cu_seqlens for q and k.

    Returns:
        out (B, M, E) and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    K = check(x, w_qkv, b_qkv, w_out, b_out, num_heads, num_kv_heads, context, rotary)
    E = x.shape[-1]
    # (1) projections
    context_cache = None
    if context is None:
        packed, projection_cache = linear.forward(x, w_qkv, b_qkv)  # (B, M, (H + 2K)·D)
        q, k, v = split(packed, num_heads, K, K)
    else:
        bias_q, bias_kv = (None, None) if b_qkv is None else (b_qkv[:E], b_qkv[E:])
        packed_q, projection_cache = linear.forward(x, w_qkv[:E], bias_q)
        packed_kv, context_cache = linear.forward(context, w_qkv[E:], bias_kv)  # (B, N, 2K·D)
        (q,), (k, v) = split(packed_q, num_heads), split(packed_kv, K, K)
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
    )  # fmt: skip
    # (4) output projection
    out, output_cache = linear.forward(join(heads), w_out, b_out)
    cache = Cache(projection_cache, context_cache, rotary_cache, attention_cache, output_cache)
    return out, cache


def backward(
    dout: Array,
    cache: Cache,
    *,
    of_x: bool = True,
    of_context: bool = True,
    of_weights: bool = True,
    of_bias: bool = True,
    into: checks.Into = None,
) -> Gradients:
    """Return the gradients of x, context, weights, biases, and attention's bias and sinks.

    Args:
        dout: (B, M, E), of x's dtype.
        cache: from `forward`.
        of_x, of_context: whether dx and dcontext are computed.
        of_weights: whether the gradients of the projections' weights and biases are computed.
        of_bias: whether dbias is computed, if attention has a bias.
        into: (dw_qkv, db_qkv, dw_out, db_out), arrays to write to instead of new ones; None for a
            new one, and for a gradient that is not computed.

    Returns:
        each shaped as its argument, None for arguments that were None and for those not computed.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.flags(of_x=of_x, of_context=of_context, of_weights=of_weights, of_bias=of_bias)
    num_heads = cache.attention.q.shape[1]
    of_qkv, of_out = receiving(into, cache, of_weights)
    of_parameters: dict[str, bool] = {"of_weight": of_weights, "of_bias": of_weights}
    # (4) output projection
    dheads, dw_out, db_out = linear.backward(dout, cache.output, into=of_out, **of_parameters)
    assert dheads is not None
    # (3) attention of every head
    (dheads,) = split(dheads, num_heads)
    dq, dk, dv, *others = attention.backward(dheads, cache.attention, of_bias=of_bias)
    # (2) positions
    if cache.rotary is not None:
        dq, dk = positions.backward(dq, dk, cache.rotary)
    # (1) projections
    if cache.context is None:
        packed = np.concatenate([join(d) for d in (dq, dk, dv)], axis=-1)  # (B, M, (H + 2K)·D)
        dx, dw_qkv, db_qkv = linear.backward(
            packed, cache.projection, of_x=of_x, into=of_qkv, **of_parameters
        )
        return Gradients(dx, None, dw_qkv, db_qkv, dw_out, db_out, *others)
    packed_kv = np.concatenate([join(d) for d in (dk, dv)], axis=-1)  # (B, N, 2K·D)
    # each writes its part of the weight's gradient
    E, width = len(cache.projection.weight), len(cache.context.weight)
    dw_qkv, db_qkv = of_qkv
    of_q = of_kv = None
    if of_weights:
        if dw_qkv is None:
            dw_qkv = np.empty((E + width, E), dout.dtype)
        if db_qkv is None and cache.projection.has_bias:
            db_qkv = np.empty(E + width, dout.dtype)
        of_q, of_kv = cut(dw_qkv, db_qkv, E)
    dx = linear.backward(join(dq), cache.projection, of_x=of_x, into=of_q, **of_parameters).dx
    dcontext = linear.backward(
        packed_kv, cache.context, of_x=of_context, into=of_kv, **of_parameters
    ).dx
    return Gradients(dx, dcontext, dw_qkv, db_qkv, dw_out, db_out, *others)


def receiving(into: Any, cache: Any, of_weights: bool) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return what receives the gradients of the projections, and of the output projection."""
    E, width = len(cache.output.weight), len(cache.projection.weight)
    if cache.context is not None:
        width += len(cache.context.weight)
    shapes: dict[str, Any] = {
        "dw_qkv": (width, E),
        "db_qkv": (width,) if cache.projection.has_bias else None,
        "dw_out": (E, E),
        "db_out": (E,) if cache.output.has_bias else None,
    }
    found = checks.into(into, **(shapes if of_weights else dict.fromkeys(shapes)))
    return found[:2], found[2:]


def cut(weight: Any, bias: Any, rows: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the first rows of a weight and of its bias, if there is one, and the rest."""
    first = weight[:rows], None if bias is None else bias[:rows]
    return first, (weight[rows:], None if bias is None else bias[rows:])


def split(packed: Array, *heads: int) -> list[Array]:
    """View (B, L, ΣH·D) as heads (B, H, L, D), for each H of `heads`."""
    B, L, width = packed.shape
    each = packed.reshape(B, L, sum(heads), width // sum(heads)).swapaxes(1, 2)
    return np.split(each, np.cumsum(heads)[:-1], axis=1)


def join(x: Array) -> Array:
    """Put heads (B, H, L, D) side by side again, (B, L, H·D)."""
    B, H, L, D = x.shape
    return x.swapaxes(1, 2).reshape(B, L, H * D)
