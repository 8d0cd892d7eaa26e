"""Attention in FP8 (e4m3), in one pass over the keys.

This is `attention`'s forward with half the bytes of 16 bits and, on a matrix unit that has such
products, twice its rate. Bytes, one per number: q read once, k and v once per tile of queries;
operations: 4·M·N·D per head, half of it where causal.

Products of e4m3 are exact in float32. The scales of q and k multiply a tile of products, that of v
the output. The weights, between 0 and 1, are multiplied by 256 and cast to e4m3 for their product
with v: 256 is a power of two, so that only the cast rounds, and the largest one below 448. The
smallest nonzero weight is then 2⁻¹⁷. The sum of weights is taken before the cast. Dropout's scale
multiplies the output and not the weights, so that kept weights round as they do without dropout.

(0) A rotated number is no longer in e4m3. With rotary positions q is multiplied by kᵀ in float16,
which represents e4m3 exactly, and to which each rotated number, at most 448·√2, is rounded once;
the weights' product with v is unchanged.

Hopper sums products of 8 bits with 14 bits (DeepSeek-AI 2024, "DeepSeek-V3 Technical Report",
section 3.3.2): it sums only SUMMED products at a time, and those sums are added in float32. Values
whose keys are adjacent in memory (`v.mT` contiguous) are read as its matrix unit wants them; others
take a detour through registers. NVIDIA GPUs before the L4 and H100 have no e4m3. On AMD GPUs before
the MI350, which have a different format, and on Hopper in tiles of fewer than 64 rows, Triton
multiplies in float16, where products of e4m3 are exact too.

`B` batch, `H` heads, `K` KV heads, `G` = H/K, `M` queries, `N` keys, `D` head_dim.
Steps (0) to (4) are those of the reference. Any head_dim is padded to a power of two by masks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twofold.kernels import attention_blocks, dropout
from twofold.kernels.attention import draws
from twofold.kernels.attention_blocks import places, tile_at
from twofold.kernels.attention_fp8_quantize import quantize
from twofold.kernels.attention_fp8_tiles import choose_tile, copied, padded
from twofold.kernels.attention_parts import (
    LOG2_E,
    at,
    call,
    load,
    log_sum,
    place,
    rows_at,
    scores,
    seen,
    sequence,
    tile_start,
    tiles_seen,
    turned,
    weigh,
)
from twofold.kernels.attention_tiles import Tile, aligned
from twofold.kernels.device import architecture
from twofold.kernels.layout import same_aligned_strides, side_by_side
from twofold.kernels.precision import DTYPES, on_current_device
from twofold.reference import checks
from twofold.reference.attention_fp8 import check
from twofold.reference.attention_scores import BlockSize, Options, ScoreMod, Window, sizes
from twofold.reference.rotary import Rotary

__all__ = ["forward", "quantize"]

WEIGHTS = tl.constexpr(256.0)  # the factor of a weight before its cast
SUMMED = tl.constexpr(32)  # products that one instruction of the matrix unit sums


@triton.jit
def load_scale(ptr, strides, b, h):
    """Load the scale of a head."""
    return tl.load(ptr + b * strides[0] + h * strides[1])


@triton.jit
def read(ptr, strides, b, h, start, rows, d, length, D: tl.constexpr, turn):
    """Load a tile of queries or keys; (0) rotated, in float16, if `turn` is given."""
    x = load(ptr, strides, b, h, start, rows, d, length, D)
    if turn is not None:
        inside = (start + rows < length) & (d < D)
        x = turned(x.to(tl.float16), ptr, strides, b, h, start, rows, d, inside, turn, start)
    return x


@triton.jit
def products(
    x, b, h, kv_head, query, m, q_end, key, n, k_end, D: tl.constexpr, CHUNK_D: tl.constexpr
):  # fmt: skip
    """Multiply queries m (BLOCK_M, 1) by keys n (1, BLOCK_N), CHUNK_D features at a time."""
    acc = tl.zeros([m.shape[0], n.shape[1]], tl.float32)
    for chunk in range(0, D, CHUNK_D):
        d = chunk + tl.arange(0, CHUNK_D)[None, :]
        q = read(x.q, x.q_strides, b, h, query, m, d, q_end, D, x.q_turn)  # (BLOCK_M, CHUNK_D)
        k = read(x.k, x.k_strides, b, kv_head, key, tl.trans(n), d, k_end, D, x.k_turn)
        acc = tl.dot(q, tl.trans(k), acc, max_num_imprecise_acc=SUMMED)
    return acc


@triton.jit(do_not_specialize=["threshold"])
def forward_kernel(
    x,  # Call
    q_scale_ptr,  # (B, H) float32
    k_scale_ptr,  # (B, H/G) float32
    v_scale_ptr,  # (B, H/G) float32
    out_ptr,  # (B, H, M, D)
    lse_ptr,  # (B, H, M) float32
    q_scale_strides, k_scale_strides, v_scale_strides, out_strides,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_M queries of one head."""
    block, b, h = place(tl.program_id(0), tl.cdiv(x.longest_q, BLOCK_M), x.H)
    seq = sequence(x, b)
    kv_head = h // x.G
    first = block * BLOCK_M
    if x.q_starts is not None:
        if first >= seq.M:
            return
    query, q_end, k_end = seq.q_first + first, seq.q_first + seq.M, seq.k_first + seq.present
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    d = tl.arange(0, BLOCK_D)[None, :]
    rows = first + m
    if DROPOUT:
        seed = tl.load(x.seed)
    # (0) rotated, if they are at all: q here, k where (1) reads it
    if CHUNK_D == BLOCK_D:
        q = read(x.q, x.q_strides, seq.batch, h, query, m, d, q_end, D, x.q_turn)
    qk_scale = load_scale(q_scale_ptr, q_scale_strides, b, h)
    qk_scale *= load_scale(k_scale_ptr, k_scale_strides, b, kv_head)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if x.sinks is not None:
        top = tl.zeros([BLOCK_M], tl.float32) + tl.load(x.sinks + h).to(tl.float32) * LOG2_E
        total += 1.0
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = tl.minimum(first + BLOCK_M, seq.M) - 1
    begin, full, stop, end = seen(
        first + seq.shift, last + seq.shift, x.behind, x.ahead, seq.present, BLOCK_N
    )
    begin, full, stop, end = places(x, b, h, block, begin, full, stop, end, BLOCK_N)
    # EDGE 0: tiles that every query sees in full; 1: tiles that need the mask.
    for EDGE in tl.static_range(2):
        for i in range(tiles_seen(begin, full, stop, end, x.behind, EDGE, BLOCK_N)):
            start = tile_start(i, begin, full, stop, x.behind, EDGE, BLOCK_N)
            start = tile_at(x, b, h, block, start, BLOCK_N)
            key, columns = seq.k_first + start, start + n
            # (1) S = φ(scale·q·kᵀ) + …, −∞ where masked; in base 2
            if CHUNK_D == BLOCK_D:
                k = read(
                    x.k, x.k_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D, x.k_turn
                )
                product = tl.dot(q, tl.trans(k), max_num_imprecise_acc=SUMMED)
            else:
                product = products(
                    x, seq.batch, h, kv_head, query, m, q_end, key, n, k_end, D, CHUNK_D
                )  # (BLOCK_M, BLOCK_N)
            s = scores(product * qk_scale, x, b, seq, h, rows, columns, EDGE, SCORE)
            # (2) P̃ = exp(S − m), m the maximum so far; (3) ℓ = rowsum P̃, so far
            p, rescale, top, total = weigh(s, top, total)
            # (4) out = (P∘X)·v, so far, still without ÷ ℓ and X's 1/(1 − p)
            if DROPOUT:
                keep = dropout.attention_keep(x, seed, b, h, rows, start, threshold, BLOCK_N)
                p = tl.where(keep, p, 0.0)
            acc = acc * rescale[:, None]
            v = load(x.v, x.v_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D)
            acc = tl.dot((p * WEIGHTS).to(v.dtype), v, acc, max_num_imprecise_acc=SUMMED)
    # (3) lse = m + log ℓ; (4) out ÷ ℓ, and X's 1/(1 − p), a constant factored out of the sum
    divisor, lse = log_sum(top, total)
    v_scale = load_scale(v_scale_ptr, v_scale_strides, b, kv_head)
    out = acc * (dropout_scale / (divisor * WEIGHTS))[:, None] * v_scale
    i = first + tl.arange(0, BLOCK_M)
    row_at = rows_at(x, seq, h, i)
    tl.store(lse_ptr + row_at, lse, mask=i < seq.M)
    out_at = at(out_ptr, out_strides, seq.batch, h, query, m, d)
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=(rows < seq.M) & (d < D))


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    q_scale: torch.Tensor,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
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
    out_dtype: str | torch.dtype | None = None,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for every query, the weighted sum of the values of the keys it attends to.

    Arguments and results are those of `reference.attention_fp8.forward`: q, k and v in
    float8_e4m3fn, any strides, scales in float32. `out_dtype` is "bfloat16" by default, "float16"
    or "float32"; lse is float32. `tile` overrides the table's choice.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, sinks, mask,
        key_lengths, dropout_p, seed, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        rotary, block_mask, block_size,
    )  # fmt: skip
    check(q, k, v, q_scale, k_scale, v_scale, options)
    checks.dtype("q", q, "float8_e4m3fn")
    on_current_device("q", q)
    checks.dtype("q_scale", q_scale, "float32")
    name = checks.floating_dtype("out_dtype", out_dtype or "bfloat16", DTYPES)
    (B, H, M, D), (K, N) = q.shape, k.shape[1:3]
    sequences, longest_q, _ = sizes(options, B, M, N)
    q_scale = q_scale.expand(sequences, H)
    k_scale, v_scale = (scale.expand(sequences, K) for scale in (k_scale, v_scale))
    out = side_by_side((B, H, M, D), getattr(torch, name), q.device)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    straight = aligned(*q.stride(), *k.stride(), *v.stride())
    if not straight and copied(D):
        straight, (q, k, v) = True, (same_aligned_strides(x)[0] for x in (q, k, v))
    tile = tile or choose_tile(
        D,
        masked=mask is not None
        or options.changes_scores
        or options.packed
        or block_mask is not None
        or dropout_p > 0.0,
        rotary=rotary is not None,
        aligned=straight,
        amd=architecture().startswith("gfx"),
    )
    x = attention_blocks.over_keys(call(q, k, v, options.scale(D), options), tile)
    forward_kernel[(triton.cdiv(longest_q, tile.block_m) * sequences * H,)](
        x, q_scale, k_scale, v_scale, out, lse,
        q_scale.stride(), k_scale.stride(), v_scale.stride(), out.stride(),
        **draws(options),
        D=D, SCORE=None if score_mod is None else score_mod.function,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=padded(D),
        CHUNK_D=tile.chunk_d or padded(D),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out, lse
