"""Attention in one pass over the keys: no M×N matrix is ever stored, forward or backward.

Forward keeps a tile of queries in registers and streams keys and values past it, with a running
maximum and sum (online softmax: Milakov & Gimelshein 2018; FlashAttention-2: Dao 2023). Saved for
backward: out, and one float32 per row, lse. Bytes: q, k, v read once per tile of queries, out
written once; operations: 4·M·N·D per head, half of it where causal.

Backward is `attention_backward`, how a tile is loaded and scored `attention_parts`, how large it is
`attention_tiles`.

`B` batch, `H` heads, `M` queries, `N` keys, `D` head_dim. Steps (1)–(9) are those of the reference.
Scores are kept in base 2: exp2 is what the hardware has, log₂e is folded into the scale. Tiles that
no query of a program may see are not visited; tiles that all of them see are not masked. Any
head_dim is padded to a power of two in registers, by masks: 80 and 96 compute like 128.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import dropout
from twofold.kernels.attention_backward import delta_kernel, dk_dv_kernel, dq_kernel
from twofold.kernels.attention_parts import (
    at,
    keys_present,
    keys_seen,
    load,
    place,
    products,
    scores,
)
from twofold.kernels.attention_tiles import Tile, choose_tile, padded
from twofold.kernels.precision import float32_products
from twofold.reference.attention import check, check_backward

LN_2 = tl.constexpr(math.log(2.0))


class Cache(NamedTuple):
    """What `backward` needs; `lse` (B, H, M) is float32, the natural logarithm."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    softmax_scale: float
    causal: bool
    mask: torch.Tensor | None  # (B, H, M, N), expanded without a copy
    key_lengths: torch.Tensor | None
    dropout_p: float
    seed: int
    allow_tf32: bool


class Gradients(NamedTuple):
    """Gradients of q, k and v, shaped as they are."""

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor


@triton.jit(do_not_specialize=["seed", "threshold"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr,  # (B, H, M, D), (B, H, N, D), (B, H, N, D)
    mask_ptr,  # (B, H, M, N) if HAS_MASK
    lengths_ptr,  # (B,) if HAS_LENGTHS
    out_ptr,  # (B, H, M, D)
    lse_ptr,  # (B, H, M) float32
    q_strides, k_strides, v_strides, mask_strides, out_strides,
    H, M, N,
    scale,  # softmax_scale·log₂e
    seed: tl.int64,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_M queries of one head."""
    block, b, h = place(tl.program_id(0), tl.cdiv(M, BLOCK_M), H)
    first = block * BLOCK_M
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    d = tl.arange(0, BLOCK_D)[None, :]
    rows = first + m
    if CHUNK_D == BLOCK_D:
        q = load(q_ptr, q_strides, b, h, first, m, d, M, D)  # (BLOCK_M, BLOCK_D)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    present = keys_present(lengths_ptr, b, N, HAS_LENGTHS)
    shift = N - M
    full, end = keys_seen(first, shift, present, CAUSAL, BLOCK_M, BLOCK_N)
    for EDGE in tl.static_range(2):
        for start in range(full if EDGE else 0, end if EDGE else full, BLOCK_N):
            columns = start + n
            # (1) scores
            if CHUNK_D == BLOCK_D:
                k = load(k_ptr, k_strides, b, h, start, tl.trans(n), d, present, D)
                product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            else:
                product = products(
                    q_ptr, q_strides, k_ptr, k_strides, b, h,
                    first, m, M, start, tl.trans(n), present, D, BLOCK_D, CHUNK_D, PRECISION,
                )  # fmt: skip
            s = scores(
                product, mask_ptr, mask_strides, b, h, rows, columns, present, shift, M, scale,
                EDGE, CAUSAL, HAS_MASK,
            )  # fmt: skip
            # (2) weights, against the running maximum; 0 stands in for −∞ − (−∞)
            new_top = tl.maximum(top, tl.max(s, axis=1))
            safe = tl.where(new_top == -float("inf"), 0.0, new_top)
            p = tl.exp2(s - safe[:, None])
            rescale = tl.exp2(top - safe)
            top = new_top
            # (3) log-sum-exp: the sum so far
            total = total * rescale + tl.sum(p, axis=1)
            # (4) output
            if DROPOUT:
                keep = dropout.attention_keep(seed, b, h, rows, start, threshold, BLOCK_N)
                p = tl.where(keep, p, 0.0)
            acc = acc * rescale[:, None]
            v = load(v_ptr, v_strides, b, h, start, tl.trans(n), d, present, D)
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    empty = total == 0.0
    divisor = tl.where(empty, 1.0, total)
    out = acc * (dropout_scale / divisor)[:, None]
    lse = tl.where(empty, -float("inf"), (top + tl.log2(divisor)) * LN_2)
    i = first + tl.arange(0, BLOCK_M)
    row_at = (b * H + h).to(tl.int64) * M + i
    tl.store(lse_ptr + row_at, lse, mask=i < M)
    out_at = at(out_ptr, out_strides, b, h, first, m, d)
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=(rows < M) & (d < D))


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    allow_tf32: bool = False,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Let every query gather the values of the keys it attends to.

    Arguments and results are those of `reference.attention.forward`, in float16, bfloat16 or
    float32, any strides. float32 products are accurate to float32 (three tf32 products) unless
    `allow_tf32`; `tile` overrides the table's choice.
    """
    check(q, k, v, softmax_scale, mask, key_lengths, dropout_p, seed)
    (B, H, M, D), N = q.shape, k.shape[2]
    scale = 1 / math.sqrt(D) if softmax_scale is None else softmax_scale
    if mask is not None:
        mask = mask.expand(B, H, M, N)
    out = torch.empty_strided(
        (B, H, M, D), (M * H * D, D, H * D, 1), dtype=q.dtype, device=q.device
    )  # heads side by side, as the output projection reads them
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    cache = Cache(q, k, v, out, lse, scale, causal, mask, key_lengths, dropout_p, seed, allow_tf32)
    tile = tile or _tile("forward", cache)
    forward_kernel[(triton.cdiv(M, tile.block_m) * B * H,)](
        q, k, v, _or(mask, q), _or(key_lengths, q), out, lse,
        q.stride(), k.stride(), v.stride(), _strides(mask), out.stride(),
        H, M, N,
        scale * math.log2(math.e),
        **_options(cache, D, tile),
    )  # fmt: skip
    return out, cache


def backward(
    dout: torch.Tensor,
    cache: Cache,
    dlse: torch.Tensor | None = None,
    *,
    into: Gradients | None = None,
    dk_dv_tile: Tile | None = None,
    dq_tile: Tile | None = None,
) -> Gradients:
    """Return the gradients, given those of `out` and, optionally, of `cache.lse`.

    `into` receives them, in any strides, instead of new tensors: multi-head attention hands in
    views of the packed projection's gradient. The tiles override the table's choice.
    """
    q, k, v = cache.q, cache.k, cache.v
    check_backward(dout, dlse, q)
    (B, H, M, D), N = q.shape, k.shape[2]
    grads = into or Gradients(_empty(q), _empty(k), _empty(v))
    delta = torch.empty_like(cache.lse)
    over_keys = dk_dv_tile or _tile("dk_dv", cache)
    over_queries = dq_tile or _tile("dq", cache)
    key_programs = (triton.cdiv(N, over_keys.block_n) * B * H,)
    query_programs = (triton.cdiv(M, over_queries.block_m) * B * H,)
    delta_kernel[query_programs](
        cache.out, dout, _or(None if dlse is None else dlse.float().contiguous(), delta), delta,
        cache.out.stride(), dout.stride(),
        H, M,
        D=D, HAS_DLSE=dlse is not None, BLOCK_M=over_queries.block_m, BLOCK_D=padded(D),
    )  # fmt: skip
    inputs = (q, k, v, _or(cache.mask, q), _or(cache.key_lengths, q), dout, cache.lse, delta)
    strides = (q.stride(), k.stride(), v.stride(), _strides(cache.mask), dout.stride())
    scalars = (H, M, N, cache.softmax_scale * math.log2(math.e), cache.softmax_scale)
    dk_dv_kernel[key_programs](
        *inputs, grads.dk, grads.dv, *strides, grads.dk.stride(), grads.dv.stride(), *scalars,
        **_options(cache, D, over_keys),
    )  # fmt: skip
    dq_kernel[query_programs](
        *inputs, grads.dq, *strides, grads.dq.stride(), *scalars,
        **_options(cache, D, over_queries),
    )  # fmt: skip
    return grads


def _tile(kernel: str, cache: Cache) -> Tile:
    """Return the tile of a kernel for what is cached, on the GPU that torch was built for."""
    return choose_tile(
        kernel,
        cache.q.shape[-1],
        cache.q.element_size(),
        masked=cache.mask is not None,
        dropout=cache.dropout_p > 0.0,
        amd=torch.version.hip is not None,
    )


def _options(cache: Cache, D: int, tile: Tile) -> dict[str, object]:
    """Return the arguments that the three kernels share: dropout, variants, tile."""
    return {
        "seed": cache.seed,
        "threshold": dropout.threshold(cache.dropout_p),
        "dropout_scale": dropout.scale(cache.dropout_p),
        "D": D,
        "CAUSAL": cache.causal,
        "HAS_MASK": cache.mask is not None,
        "HAS_LENGTHS": cache.key_lengths is not None,
        "DROPOUT": cache.dropout_p > 0.0,
        "PRECISION": float32_products(cache.allow_tf32),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_D": padded(D),
        "CHUNK_D": tile.chunk_d or padded(D),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _or(x: torch.Tensor | None, unused: torch.Tensor) -> torch.Tensor:
    """Return a tensor to stand in for an absent one that no program reads."""
    return unused if x is None else x


def _strides(mask: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if mask is None else mask.stride()


def _empty(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)
