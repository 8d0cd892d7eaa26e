"""Attention in one pass over the keys: no M×N matrix is ever stored, forward or backward.

Forward keeps a tile of queries in registers and streams keys and values past it, with a running
maximum and sum (online softmax: Milakov & Gimelshein 2018; FlashAttention-2: Dao 2023). Saved for
backward: out, and one float32 per row, lse. Bytes: q read and out written once, k and v read once
per tile of queries; operations: 4·M·N·D per head, half of it where causal.

Backward is in `attention_backward` and `attention_bias`; how a tile is loaded and scored is in
`attention_parts`, its size in `attention_tiles`, the order in which programs begin in
`attention_order`. On Hopper GPUs `attention_hopper` runs the forward of long calls without extras.

`B` batch, `H` heads, `K` KV heads, `G` = H/K, `M` queries, `N` keys, `D` head_dim. Steps (0)–(9)
are those of the reference. Scores are kept in base 2: the hardware has exp2, and log₂e is folded
into the scale where nothing else is done to the scores. Tiles that no query of a program may attend
to are not visited, nor those without a live block (`attention_blocks`); tiles that all queries
attend to are not masked. Packed sequences, and keys shared by heads, are read in place; a program
past the end of its sequence does nothing. Any head_dim is padded by masks to a power of two in
registers, or to two of them (`attention_features`). (0) rotates copies of q and k in each pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import attention_blocks, attention_hopper, dropout
from twofold.kernels.attention_backward import delta_kernel, dk_dv_kernel, dq_kernel
from twofold.kernels.attention_bias import dbias_kernel
from twofold.kernels.attention_blocks import places, tile_at
from twofold.kernels.attention_features import (
    add_weighted,
    dot_rows,
    features,
    load_features,
    scaled,
    store_features,
    zeros,
)
from twofold.kernels.attention_order import by_keys, by_queries, place_in_groups
from twofold.kernels.attention_parts import (
    LOG2_E,
    Call,
    call,
    log_sum,
    products,
    rows_at,
    scores,
    seen,
    sequence,
    tile_start,
    tiles_seen,
    weigh,
)
from twofold.kernels.attention_tiles import Tile, aligned, choose_tile, padded
from twofold.kernels.device import architecture
from twofold.kernels.layout import (
    checked_into,
    copied_into,
    side_by_side,
    with_32bit_offsets,
    written_in_tiles,
)
from twofold.kernels.precision import float32_products, supported
from twofold.kernels.rotary import at_positions, turn_back_in_place
from twofold.reference import checks
from twofold.reference.attention import check, check_backward
from twofold.reference.attention_scores import BlockSize, Options, ScoreMod, Window, sizes
from twofold.reference.rotary import Rotary

# A program of backward sums at most MOST_SUMMED features; beyond that, SLICE features each.
MOST_SUMMED, SLICE = 256, 128


class Cache(NamedTuple):
    """What `backward` needs; `lse` (B, H, M) is float32, the natural logarithm."""

    q: torch.Tensor  # q and k as given: backward rotates them again
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    softmax_scale: float
    options: Options
    allow_tf32: bool


class Gradients(NamedTuple):
    """Gradients of q, k, v, bias and sinks, with their shapes; None for those that were None."""

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor
    dbias: torch.Tensor | None = None
    dsinks: torch.Tensor | None = None


@triton.jit(do_not_specialize=["threshold"])
def forward_kernel(
    x,  # Call
    out_ptr,  # (B, H, M, D)
    lse_ptr,  # (B, H, M) float32
    out_strides,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_M queries of one head."""
    blocks = tl.cdiv(x.longest_q, BLOCK_M)
    block, b, h = place_in_groups(tl.program_id(0), blocks, x.H, x.together)
    seq = sequence(x, b)
    kv_head = h // x.G
    first = block * BLOCK_M
    if x.q_starts is not None:
        if first >= seq.M:
            return
    query, q_end, k_end = seq.q_first + first, seq.q_first + seq.M, seq.k_first + seq.present
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    d = features(0, BLOCK_D, TAIL_D)
    rows = first + m
    if DROPOUT:
        seed = tl.load(x.seed)
    if CHUNK_D >= D:
        q = load_features(x.q, x.q_strides, seq.batch, h, query, m, d, q_end, D)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if x.sinks is not None:
        top = tl.zeros([BLOCK_M], tl.float32) + tl.load(x.sinks + h).to(tl.float32) * LOG2_E
        total += 1.0
    acc = zeros(BLOCK_M, BLOCK_D, TAIL_D)
    last = tl.minimum(first + BLOCK_M, seq.M) - 1
    begin, full, stop, end = seen(
        first + seq.shift, last + seq.shift, x.behind, x.ahead, seq.present, BLOCK_N
    )
    begin, full, stop, end = places(x, b, h, block, begin, full, stop, end, BLOCK_N)
    # EDGE 0: tiles that every query sees in full; 1: tiles on the diagonal or at the end of the
    # window or the sequence, which are masked.
    for EDGE in tl.static_range(2):
        for i in range(tiles_seen(begin, full, stop, end, x.behind, EDGE, BLOCK_N)):
            start = tile_start(i, begin, full, stop, x.behind, EDGE, BLOCK_N)
            start = tile_at(x, b, h, block, start, BLOCK_N)
            key, columns = seq.k_first + start, start + n
            # (1) S = φ(scale·q·kᵀ) + …, −∞ where masked; in base 2
            if CHUNK_D >= D:
                k = load_features(
                    x.k, x.k_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D
                )
                product = dot_rows(q, k, PRECISION)  # (BLOCK_M, BLOCK_N)
            else:
                product = products(
                    x.q, x.q_strides, h, x.k, x.k_strides, kv_head, seq.batch,
                    query, m, q_end, key, tl.trans(n), k_end, D, CHUNK_D, PRECISION,
                )  # fmt: skip
            s = scores(product, x, b, seq, h, rows, columns, EDGE, SCORE)
            # (2) P̃ = exp(S − m), m the maximum so far; (3) ℓ = rowsum P̃, so far
            p, rescale, top, total = weigh(s, top, total)
            # (4) out = (P∘X)·v, so far, still without ÷ ℓ and X's 1/(1 − p)
            if DROPOUT:
                keep = dropout.attention_keep(x, seed, b, h, rows, start, threshold, BLOCK_N)
                p = tl.where(keep, p, 0.0)
            acc = scaled(acc, rescale[:, None])
            v = load_features(x.v, x.v_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D)
            acc = add_weighted(acc, p, v, PRECISION)
    # (3) lse = m + log ℓ; (4) out ÷ ℓ, and X's 1/(1 − p), a constant factored out of the sum
    divisor, lse = log_sum(top, total)
    out = scaled(acc, (dropout_scale / divisor)[:, None])
    i = first + tl.arange(0, BLOCK_M)
    row_at = rows_at(x, seq, h, i)
    tl.store(lse_ptr + row_at, lse, mask=i < seq.M)
    store_features(out_ptr, out_strides, seq.batch, h, query, m, d, rows < seq.M, out, D)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor = 0,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: torch.Tensor | None = None,
    block_size: BlockSize | None = None,
    allow_tf32: bool = False,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Return, for every query, the weighted sum of the values of the keys it attends to.

    Arguments and results are those of `reference.attention.forward`, in float16, bfloat16 or
    float32, any strides; the functions of `score_mod` are `@triton.jit` functions, called on
    whole tiles, even past the ends of sequences. float32 products are accurate to float32 (three
    tf32 products) unless `allow_tf32`; `tile` overrides the table's choice. Without `tile`, long
    16-bit calls that use no extra features have a kernel of their own on Hopper: see
    `attention_hopper`.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, sinks, mask,
        key_lengths, dropout_p, seed, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        rotary, block_mask, block_size,
    )  # fmt: skip
    check(q, k, v, options)
    supported("q", q)
    B, H, M, D = q.shape
    scale = options.scale(D)
    out = side_by_side((B, H, M, D), q.dtype, q.device)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    cache = Cache(q, k, v, out, lse, scale, options, allow_tf32)
    # (0) queries and keys at their positions
    q, k, options = at_positions(q, k, options)
    read = cache._replace(q=q, k=k, options=options)
    if tile is None and attention_hopper.takes(q, k, v, options):
        attention_hopper.forward(q, k, v, out, lse, scale, bool(causal))
        return out, cache
    tile = tile or _tile("forward", read)
    sequences, longest_q, _ = _sizes(read)
    x = by_queries(attention_blocks.over_keys(call(q, k, v, scale, options), tile))
    forward_kernel[(triton.cdiv(longest_q, tile.block_m) * sequences * H,)](
        x, out, lse, out.stride(),
        **_features(tile, padded(D)), **_constants(read, tile),
    )  # fmt: skip
    return out, cache


def backward(
    dout: torch.Tensor,
    cache: Cache,
    dlse: torch.Tensor | None = None,
    *,
    of_bias: bool = True,
    into: checks.Into = None,
    dk_dv_tile: Tile | None = None,
    dq_tile: Tile | None = None,
) -> Gradients:
    """Return the gradients of q, k, v, bias and sinks.

    Arguments and results are those of `reference.attention.backward`; `into`, (dq, dk, dv), may
    have any strides, as views of a packed projection do. Tiles override the table's choices.
    """
    checks.flag("of_bias", of_bias)
    check_backward(dout, dlse, cache.q)
    supported("dout", dout)
    # (0) queries and keys at their positions, again
    rotary, v = cache.options.rotary, cache.v
    q, k, options = at_positions(cache.q, cache.k, cache.options)
    cache = cache._replace(q=q, k=k, options=options)
    dout = with_32bit_offsets(dout)
    (B, H, M, D), K = q.shape, k.shape[1]
    sequences, longest_q, longest_k = _sizes(cache)
    shapes = {f"d{name}": tuple(x.shape) for name, x in (("q", q), ("k", k), ("v", v))}
    given = checked_into(into, **shapes)
    grads = Gradients(*map(written_in_tiles, given, (q, k, v)))
    delta = torch.empty_like(cache.lse)
    over_keys = dk_dv_tile or _tile("dk_dv", cache)
    over_queries = dq_tile or _tile("dq", cache)
    blocks = triton.cdiv(M, over_queries.block_m)
    x, rest = call(q, k, v, cache.softmax_scale, options), (dout, cache.lse, delta)
    shares = None
    if x.sinks is not None:
        shares = torch.empty((B, H, blocks), dtype=torch.float32, device=q.device)
    delta_kernel[(blocks * B * H,)](
        cache.out, dout, None if dlse is None else dlse.float().contiguous(),
        delta, cache.lse, x.sinks, shares,
        cache.out.stride(), dout.stride(),
        H, M,
        D=D, BLOCK_M=over_queries.block_m, BLOCK_D=padded(D),
        num_warps=over_queries.num_warps,
    )  # fmt: skip
    derivative = None if options.score_mod is None else options.score_mod.derivative
    summed = _summed(D)
    slices = triton.cdiv(D, summed)
    dk_dv_kernel[(triton.cdiv(longest_k, over_keys.block_n) * sequences * K, slices)](
        by_keys(attention_blocks.over_queries(x, over_keys)), *rest,
        grads.dk, grads.dv, dout.stride(), grads.dk.stride(), grads.dv.stride(),
        SCORE_SLOPE=derivative,
        **_features(over_keys, summed), **_constants(cache, over_keys),
    )  # fmt: skip
    dq_kernel[(triton.cdiv(longest_q, over_queries.block_m) * sequences * H, slices)](
        by_queries(attention_blocks.over_keys(x, over_queries)), *rest,
        grads.dq, dout.stride(), grads.dq.stride(),
        SCORE_SLOPE=derivative,
        **_features(over_queries, summed), **_constants(cache, over_queries),
    )  # fmt: skip
    # (0) rotated back, in place
    if rotary is not None:
        turn_back_in_place(grads.dq, *rotary.of_q)
        turn_back_in_place(grads.dk, *rotary.of_k)
    grads = Gradients(*map(copied_into, grads[:3], given))
    if options.bias is not None and of_bias:
        tile = dq_tile or _tile("dbias", cache)
        inputs = (attention_blocks.over_keys(x, tile), *rest)
        grads = grads._replace(dbias=_dbias(inputs, cache, tile))
    if options.sinks is not None and shares is not None:
        grads = grads._replace(dsinks=-shares.sum((0, 2)).to(options.sinks.dtype))
    return grads


def _dbias(
    inputs: tuple[Call, torch.Tensor, torch.Tensor, torch.Tensor], cache: Cache, tile: Tile
) -> torch.Tensor:
    """Return the gradient of the bias, summed over the axes along which it was broadcast."""
    bias = cache.options.bias
    dbias = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    own = (1,) * (4 - bias.ndim) + tuple(bias.shape)
    H, (B, M, N) = cache.q.shape[1], _sizes(cache)
    tiles = (triton.cdiv(own[2], tile.block_m), triton.cdiv(own[3], tile.block_n))
    dbias_kernel[(own[0] * own[1] * tiles[0] * tiles[1],)](
        *inputs, dbias, inputs[1].stride(), dbias.view(own).stride(),
        B,
        OWN_B=own[0] == B, OWN_H=own[1] == H, OWN_M=own[2] == M, OWN_N=own[3] == N,
        **_constants(cache, tile),
    )  # fmt: skip
    return dbias


def _summed(D: int) -> int:
    """Return how many features one program of backward sums."""
    return padded(D) if D <= MOST_SUMMED else SLICE


def _features(tile: Tile, summed: int) -> dict[str, int | None]:
    """Return how the `summed` features of a program are divided into one or two tiles."""
    return {"BLOCK_D": summed // 2 if tile.tail_d else summed, "TAIL_D": tile.tail_d or None}


def _tile(kernel: str, cache: Cache) -> Tile:
    """Return the tile of a kernel for the cached call, on the current device."""
    options = cache.options
    _, longest_q, longest_k = _sizes(cache)
    return choose_tile(
        kernel,
        cache.q.shape[-1],
        cache.q.element_size(),
        architecture=architecture(),
        rows=longest_k if kernel == "dk_dv" else longest_q,
        masked=options.mask is not None or options.changes_scores,
        packed=options.packed,
        grouped=cache.q.shape[1] != cache.k.shape[1],
        blocked=options.block_mask is not None,
        dropout=options.dropout_p > 0.0,
        aligned=aligned(*cache.q.stride(), *cache.k.stride(), *cache.v.stride()),
    )


def _constants(cache: Cache, tile: Tile) -> dict[str, object]:
    """Return the arguments that the kernels share besides the `Call`: dropout, variants, tile."""
    options = cache.options
    return {**draws(options), **constants(cache.q, options, cache.allow_tf32, tile)}


def draws(options: Options) -> dict[str, object]:
    """Return the arguments of every kernel that draws the dropout mask."""
    return {
        "threshold": dropout.threshold(options.dropout_p),
        "dropout_scale": dropout.scale(options.dropout_p),
        "DROPOUT": options.dropout_p > 0.0,
    }


def constants(q: torch.Tensor, options: Options, allow_tf32: bool, tile: Tile) -> dict[str, object]:
    """Return the arguments of every kernel that computes scores, besides the `Call`."""
    D = q.shape[-1]
    return {
        "D": D,
        "SCORE": None if options.score_mod is None else options.score_mod.function,
        "PRECISION": float32_products(allow_tf32),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "CHUNK_D": tile.chunk_d or padded(D),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _sizes(cache: Cache) -> tuple[int, int, int]:
    """Return the number of sequences, and the most queries and the most keys that one has."""
    (B, _, M, _), N = cache.q.shape, cache.k.shape[2]
    return sizes(cache.options, B, M, N)
