"""What the attention kernels share: what they read, how a tile is loaded and scored.

A kernel gets one `Call`; a feature that the call does not use is None there, and costs nothing.

A program works on one `Sequence`: a batch element, or, if sequences are packed one after the other,
some rows of the only one. Dropout, mask, bias and the user's function identify it by its number.

`B` batch, `H` heads, `G` of them for each KV head, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import dropout
from twofold.kernels.layout import with_32bit_offsets
from twofold.reference.attention_scores import Options, band, blocks, sizes

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2.0))


class Call(NamedTuple):
    """What every kernel of a call of attention reads; tensors are pointers in a kernel.

    Query i may attend to keys from i + shift − behind to i + shift + ahead; a shift of None stands
    for each sequence's own N − M. M and N are the lengths of q and k, `longest_q` and `longest_k`
    those of the longest sequence in them.
    """

    q: Any  # (B, H, M, D)
    k: Any  # (B, H/G, N, D)
    v: Any  # (B, H/G, N, D); None where no values are read
    q_strides: tuple[int, ...]
    k_strides: tuple[int, ...]
    v_strides: tuple[int, ...]
    H: int
    G: int
    M: int
    N: int
    longest_q: int
    longest_k: int
    scale: float  # softmax_scale, times log₂e if the scores are not changed
    softmax_scale: float
    score_args: tuple[Any, ...]
    shift: int | None = None
    behind: int | None = None
    ahead: int | None = None
    q_starts: Any = None  # (B + 1,) int32, where sequences begin in q, and in k
    k_starts: Any = None
    lengths: Any = None  # (B,)
    mask: Any = None  # (B, H, M, N)
    mask_strides: tuple[int, ...] = ()
    bias: Any = None  # (B, H, M, N)
    bias_strides: tuple[int, ...] = ()
    alibi: Any = None  # (B, H), slopes
    alibi_strides: tuple[int, ...] = ()
    sinks: Any = None  # (H,)
    seed: Any = None  # () int64, of the dropout mask
    softcap: float | None = None
    q_turn: Any = None  # what `turned` rotates q and k by: FP8, and q in decoding
    k_turn: Any = None
    block_mask: Any = None  # (B, H, ⌈M/block_m⌉, ⌈N/block_n⌉)
    block_strides: tuple[int, ...] = ()
    block_m: int = 1
    block_n: int = 1
    live: Any = None  # (B, H, tiles, tiles + 1) int32, and `before`: see `attention_blocks`
    before: Any = None
    live_strides: tuple[int, ...] = ()
    together: int = 1  # heads: see `attention_order`
    # In a loop, Triton 3.6 forgets the constants in nested tuples that come after the last constant
    # of the tuple itself, such as this None.
    last: None = None


def call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    softmax_scale: float,
    options: Options,
    room: int | None = None,
) -> Call:
    """Return what every kernel reads, without v if it is None; `room` overrides N, k's length."""
    (H, M), (K, N) = q.shape[1:3], k.shape[1:3]
    N = N if room is None else room
    q, k = with_32bit_offsets(q), with_32bit_offsets(k)
    v = None if v is None else with_32bit_offsets(v)
    B, longest_q, longest_k = sizes(options, q.shape[0], M, N)
    shift, behind, ahead = band(options, M, N)
    own_shift = options.packed and options.causal != "top-left"
    reach = longest_q + longest_k  # no key is further away, and sums with it stay below 2³¹
    behind, ahead = (None if end is None else min(end, reach) for end in (behind, ahead))
    mask, bias, slopes, mod = options.mask, options.bias, options.alibi_slopes, options.score_mod
    pairs = (B, H, longest_q, longest_k)
    mask, bias = (None if x is None else x.expand(pairs) for x in (mask, bias))
    block_mask, (block_m, block_n) = options.block_mask, (1, 1)
    if block_mask is not None:
        block_m, block_n = map(min, options.block, pairs[2:])
        block_mask = block_mask.expand(B, H, *blocks(options, longest_q, longest_k))
    slopes, turns = None if slopes is None else slopes.expand(B, H), options.rotary
    folded = 1.0 if options.changes_scores else math.log2(math.e)
    return Call(
        q, k, v, q.stride(), k.stride(), _strides(v),
        H, H // K, M, N, longest_q, longest_k,
        softmax_scale * folded, softmax_scale,
        () if mod is None else mod.args,
        shift=None if own_shift else shift,
        behind=behind,
        ahead=ahead,
        q_starts=_contiguous(options.cu_seqlens_q),
        k_starts=_contiguous(options.cu_seqlens_k),
        lengths=_contiguous(options.key_lengths),
        mask=mask, mask_strides=_strides(mask),
        bias=bias, bias_strides=_strides(bias),
        alibi=slopes, alibi_strides=_strides(slopes),
        sinks=_contiguous(options.sinks),
        seed=dropout.in_memory(options.dropout_p, options.seed, q),
        softcap=None if options.softcap is None else float(options.softcap),
        q_turn=None if turns is None else _turn(*turns.of_q),
        k_turn=None if turns is None else _turn(*turns.of_k),
        block_mask=block_mask, block_strides=_strides(block_mask),
        block_m=block_m, block_n=block_n,
    )  # fmt: skip


def _turn(cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> tuple[object, ...]:
    """Return what `turned` rotates rows by."""
    L, F = cos.shape[-2:]
    batches = L * F if cos.ndim == 3 else 0
    return cos.contiguous(), sin.contiguous(), batches, F, *(() if interleaved else (F,))


def _contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()


def _strides(x: torch.Tensor | None) -> tuple[int, ...]:
    return () if x is None else x.stride()


class Sequence(NamedTuple):
    """M queries and N keys, `present` of them not padding, and where in a batch they begin.

    The diagonal is where key = query + shift.
    """

    batch: Any
    q_first: Any
    k_first: Any
    M: Any
    N: Any
    present: Any
    shift: Any


@triton.jit
def sequence(x, b):
    """Return sequence b of a call."""
    batch, q_first, k_first, M, N = b, 0, 0, x.M, x.N
    if x.q_starts is not None:
        batch, q_first, k_first = 0, tl.load(x.q_starts + b), tl.load(x.k_starts + b)
        M = tl.load(x.q_starts + b + 1) - q_first
        N = tl.load(x.k_starts + b + 1) - k_first
    present = keys_present(x.lengths, b, N)
    shift = x.shift
    if x.shift is None:
        shift = N - M
    return Sequence(batch, q_first, k_first, M, N, present, shift)


@triton.jit
def keys_present(lengths, b, N):
    """Return how many of the N keys of sequence b are not padding."""
    if lengths is not None:
        return tl.minimum(tl.maximum(tl.load(lengths + b), 0), N).to(tl.int32)
    else:
        return N


@triton.jit
def at(ptr, strides, b, h, start, rows, columns):
    """Point at [b, h, start + rows, columns]; offsets that may pass 2³¹ are 64 bits wide."""
    base = tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]
    start = tl.cast(start, tl.int64)
    return ptr + base + start * strides[2] + rows * strides[2] + columns * strides[3]


@triton.jit
def rows_at(x, seq, h, rows):
    """Return the offsets of these queries of a sequence in an array (B, H, M)."""
    return tl.cast(seq.batch * x.H + h, tl.int64) * x.M + seq.q_first + rows


@triton.jit
def load(ptr, strides, b, h, start, rows, columns, length, D: tl.constexpr):
    """Load a tile of rows, zero at and after `length` and past head_dim."""
    inside = (start + rows < length) & (columns < D)
    return tl.load(at(ptr, strides, b, h, start, rows, columns), mask=inside, other=0.0)


@triton.jit
def turned(x, ptr, strides, b, h, start, rows, columns, inside, turn, first_angle):
    """(0) Rotate a loaded tile x where `inside`; row 0 has the angles of index `first_angle`.

    `turn` is (cos, sin, stride of their batches, F) for pairs of neighbours, with a second F for
    pairs (i, i + F): its length tells them apart, as Triton 3.6 cannot compare tuples that hold
    None. The other feature of each pair is loaded too, close to when it is loaded for itself.
    """
    F = turn[3]
    if len(turn) == 4:
        first, pair, other = columns % 2 == 0, columns // 2, columns ^ 1
    else:
        first = columns < F
        pair = tl.where(first, columns, columns - F)
        other = tl.where(first, columns + F, columns - F)
    paired = inside & (columns < 2 * F)
    y = tl.load(at(ptr, strides, b, h, start, rows, other), mask=paired, other=0.0)
    row_at = tl.cast(b, tl.int64) * turn[2] + (tl.cast(first_angle, tl.int64) + rows) * F
    cos = tl.load(turn[0] + row_at + pair, mask=paired, other=1.0).to(tl.float32)
    sin = tl.load(turn[1] + row_at + pair, mask=paired, other=0.0).to(tl.float32)
    y = y.to(tl.float32) * sin
    return (x.to(tl.float32) * cos + tl.where(first, -y, y)).to(x.dtype)


@triton.jit
def products(
    x_ptr, x_strides, x_h, y_ptr, y_strides, y_h, b,
    x_first, x_rows, x_length, y_first, y_rows, y_length,
    D: tl.constexpr, CHUNK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply rows of x by rows of y, CHUNK_D features at a time: registers hold no more.

    `x_rows` (X, 1) and `y_rows` (Y, 1) are row numbers within the tiles; the result is (X, Y).
    """
    acc = tl.zeros([x_rows.shape[0], y_rows.shape[0]], tl.float32)
    for chunk in range(0, D, CHUNK_D):
        d = chunk + tl.arange(0, CHUNK_D)[None, :]
        x = load(x_ptr, x_strides, b, x_h, x_first, x_rows, d, x_length, D)  # (X, CHUNK_D)
        y = load(y_ptr, y_strides, b, y_h, y_first, y_rows, d, y_length, D)  # (Y, CHUNK_D)
        acc = tl.dot(x, tl.trans(y), acc, input_precision=PRECISION)
    return acc


@triton.jit
def place(program, blocks, H):
    """Return (block, b, h) of a program; the last blocks, longest where causal, come first."""
    bh = program // blocks
    return blocks - 1 - program % blocks, bh // H, bh % H


@triton.jit
def seen(first, last, behind, ahead, length, BLOCK: tl.constexpr):
    """Return what rows first … last see of `length` columns, row i from i − behind to i + ahead.

    Returns:
        (begin, full, stop, end): all rows see [full, stop), some [begin, full) and [stop, end).
    """
    begin, full, stop, end = 0, 0, length, length
    if ahead is not None:
        stop = tl.minimum(length, tl.maximum(first + 1 + ahead, 0))
        end = tl.minimum(length, tl.maximum(last + 1 + ahead, 0))
    if behind is not None:  # if that is past the end, no tile is seen, not even the last
        begin = tl.where(first - behind < end, first - behind, end + BLOCK - 1)
        begin = tl.maximum(begin, 0) // BLOCK * BLOCK
        full = tl.cdiv(tl.maximum(last - behind, 0), BLOCK) * BLOCK
    full = tl.minimum(full, tl.cdiv(end, BLOCK) * BLOCK)
    stop = tl.maximum(stop // BLOCK * BLOCK, full)
    return begin, full, stop, end


@triton.jit
def tiles_seen(begin, full, stop, end, behind, EDGE: tl.constexpr, BLOCK: tl.constexpr):
    """Return how many tiles are seen by only some rows (EDGE), or by all."""
    if EDGE:
        count = tl.cdiv(tl.maximum(end - stop, 0), BLOCK)
        if behind is not None:
            count += tl.maximum(full - begin, 0) // BLOCK
        return count
    else:
        return (stop - full) // BLOCK


@triton.jit
def tile_start(i, begin, full, stop, behind, EDGE: tl.constexpr, BLOCK: tl.constexpr):
    """Return where the i-th tile that `tiles_seen` counts begins."""
    if EDGE:
        if behind is not None:
            left = tl.maximum(full - begin, 0) // BLOCK
            return tl.where(i < left, begin + i * BLOCK, stop + (i - left) * BLOCK)
        else:
            return stop + i * BLOCK
    else:
        return full + i * BLOCK


@triton.jit
def scores(
    product, x, b, seq, h, rows, columns, EDGE: tl.constexpr, SCORE: tl.constexpr, positions=None
):
    """(1) S = φ(scale·q·kᵀ) + … in base 2, of a tile of products; −∞ where a query may not attend.

    `rows` and `columns` are the tile's query and key indices in sequence b, in either orientation.
    Only an EDGE tile needs to check the lengths and the band. The user's function gets `positions`
    as the indices of the queries, by default their rows.
    """
    s = product * x.scale
    if x.softcap is not None:
        s = x.softcap * tanh(s / x.softcap)
    if SCORE is not None:
        s = SCORE(s, b, h, rows if positions is None else positions, columns, x.score_args)
    if x.alibi is not None:
        alibi_slope = tl.load(x.alibi + b * x.alibi_strides[0] + h * x.alibi_strides[1])
        s -= alibi_slope.to(tl.float32) * tl.abs(rows + seq.shift - columns).to(tl.float32)
    if x.bias is not None:
        inside = (rows < seq.M) & (columns < seq.present)
        where = at(x.bias, x.bias_strides, b, h, 0, rows.to(tl.int64), columns.to(tl.int64))
        s += tl.load(where, mask=inside, other=0.0).to(tl.float32)
    if x.softcap is not None or SCORE is not None or x.alibi is not None or x.bias is not None:
        s = tl.where(rows < seq.M, s * LOG2_E, -float("inf"))  # s may be NaN past the last query
    if EDGE:
        live = columns < seq.present
        if x.behind is not None:
            live = live & (columns >= rows + (seq.shift - x.behind))
        if x.ahead is not None:
            live = live & (columns <= rows + (seq.shift + x.ahead))
        s = tl.where(live, s, -float("inf"))
    if x.mask is not None:
        inside = (rows < seq.M) & (columns < seq.present)
        s = masked(s, x.mask, x.mask_strides, b, h, rows, columns, inside)
    if x.block_mask is not None:
        inside = (rows < seq.M) & (columns < seq.present)
        i, j = rows // x.block_m, columns // x.block_n
        s = masked(s, x.block_mask, x.block_strides, b, h, i, j, inside)
    return s


@triton.jit
def masked(s, mask, strides, b, h, i, j, inside):
    """Return the scores, −∞ where a mask is False at (i, j) and where not `inside`."""
    where = at(mask, strides, b, h, 0, i.to(tl.int64), j.to(tl.int64))
    return tl.where(tl.load(where, mask=inside, other=0) != 0, s, -float("inf"))


@triton.jit
def weigh(s, top, total):
    """(2) P̃ = exp(S − m) of a tile, m the maximum so far; (3) ℓ = rowsum P̃, so far.

    Returns:
        P̃, the factor that rescales what was summed before, m and ℓ.
    """
    new_top = tl.maximum(top, tl.max(s, axis=1))
    safe = tl.where(new_top == -float("inf"), 0.0, new_top)  # 0 stands in for −∞ − (−∞)
    p = tl.exp2(s - safe[:, None])
    rescale = tl.exp2(top - safe)
    return p, rescale, new_top, total * rescale + tl.sum(p, axis=1)


@triton.jit
def log_sum(top, total):
    """(3) Return ℓ, or 1 for an ℓ of 0, and lse = m + log ℓ: −∞ where nothing is seen."""
    empty = total == 0.0
    divisor = tl.where(empty, 1.0, total)
    return divisor, tl.where(empty, -float("inf"), (top + tl.log2(divisor)) * LN_2)


@triton.jit
def through_scores(
    ds, p, product, x, b, h, rows, columns, SCORE: tl.constexpr, SCORE_SLOPE: tl.constexpr
):
    """(8) dZ = φ′∘dS: turn the gradient of scores, whose weights are p, into that of scale·q·kᵀ."""
    if x.softcap is not None:
        ratio = tanh(product * x.scale / x.softcap)
        ds = ds * (1.0 - ratio * ratio)
    if SCORE is not None:
        s = product * x.scale
        if x.softcap is not None:
            s = x.softcap * tanh(s / x.softcap)
        # Where a weight is 0 the derivative may be anything.
        ds = tl.where(p == 0.0, 0.0, ds * SCORE_SLOPE(s, b, h, rows, columns, x.score_args))
    return ds


@triton.jit
def tanh(a):
    """Return tanh a = 1 − 2/(1 + e²ᵃ), correct even where e²ᵃ overflows to infinity."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(a * (2.0 * LOG2_E)))
