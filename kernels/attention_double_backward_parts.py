"""What the kernels of attention's double backward share: a tile of everything of size M×N.

Tensors of queries have the strides of q, tensors of keys those of k, as the registers have no room
for more addresses. Steps (5)–(15) are those of the reference; tiles are (queries, keys).

`B` batch, `H` heads, `G` of them for each KV head, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twofold.kernels import dropout
from twofold.kernels.attention_backward import weights_again
from twofold.kernels.attention_parts import products, rows_at, scores, tanh


class Second(NamedTuple):
    """What kernels read besides a `Call`, with its strides; tensors are pointers in a kernel."""

    dout: Any  # (B, H, M, D)
    ddq: Any  # (B, H, M, D)
    ddk: Any  # (B, H/G, N, D)
    ddv: Any  # (B, H/G, N, D)
    lse: Any  # (B, H, M) float32, as are the others
    delta: Any
    g: Any
    c: Any


@triton.jit
def multiply(
    queries_ptr, keys_ptr, x, seq, h, first, m, start, n,
    D: tl.constexpr, PRECISION: tl.constexpr, CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of a tensor laid out as q by a tile of one laid out as k."""
    return products(
        queries_ptr, x.q_strides, h, keys_ptr, x.k_strides, h // x.G, seq.batch,
        seq.q_first + first, m, seq.q_first + seq.M,
        seq.k_first + start, tl.trans(n), seq.k_first + seq.present,
        D, CHUNK_D, PRECISION,
    )  # fmt: skip


@triton.jit
def weights(
    x, y, seq, b, h, first, m, start, n, lse,
    threshold, dropout_scale,
    D: tl.constexpr, DROPOUT: tl.constexpr, SCORE: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Return a tile's products, weights before and after dropout, and the weights' gradient."""
    rows = first + m
    # (5) P = exp(S − lse), again
    product = multiply(x.q, x.k, x, seq, h, first, m, start, n, D, PRECISION, CHUNK_D)
    s = scores(product, x, b, seq, h, rows, start + n, True, SCORE)
    p = weights_again(s, lse)
    # (6) dP = (dout·vᵀ)∘X
    dp = multiply(y.dout, x.v, x, seq, h, first, m, start, n, D, PRECISION, CHUNK_D)
    dropped = p
    if DROPOUT:
        keep = dropout.attention_keep(x, tl.load(x.seed), b, h, rows, start, threshold, n.shape[1])
        dropped = tl.where(keep, p * dropout_scale, 0.0)
        dp = tl.where(keep, dp * dropout_scale, 0.0)
    return product, p, dropped, dp


@triton.jit
def curvature_terms(
    product, p, x, y, seq, b, h, first, m, start, n,
    D: tl.constexpr, SCORE: tl.constexpr, SCORE_SLOPE: tl.constexpr, SCORE_BEND: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK_D: tl.constexpr,
):  # fmt: skip
    """(10) Return tiles of A = scale·(ddq·kᵀ + q·ddkᵀ), G = φ′∘A, E = dout·ddvᵀ, φ′ and φ″.

    φ′ is 1 and φ″ is 0 without a softcap or a function of the scores.
    """
    a = multiply(y.ddq, x.k, x, seq, h, first, m, start, n, D, PRECISION, CHUNK_D)
    a += multiply(x.q, y.ddk, x, seq, h, first, m, start, n, D, PRECISION, CHUNK_D)
    a *= x.softmax_scale
    e = multiply(y.dout, y.ddv, x, seq, h, first, m, start, n, D, PRECISION, CHUNK_D)
    slope = 1.0
    curvature = 0.0
    gs = a
    if x.softcap is not None or SCORE is not None:
        s = product * x.scale
        if x.softcap is not None:
            ratio = tanh(s / x.softcap)
            slope = 1.0 - ratio * ratio
            curvature = ratio * slope * -2.0 / x.softcap
            s = x.softcap * ratio
        if SCORE is not None:
            change = SCORE_SLOPE(s, b, h, first + m, start + n, x.score_args)
            curvature = change * curvature
            curvature += SCORE_BEND(s, b, h, first + m, start + n, x.score_args) * slope * slope
            # Where a weight is 0 the derivatives may be anything.
            slope = tl.where(p == 0.0, 0.0, change * slope)
            curvature = tl.where(p == 0.0, 0.0, curvature)
        gs = a * slope
    return a, gs, e, slope, curvature


@triton.jit
def gradient_tiles(
    x, y, seq, b, h, first, m, start, n,
    threshold, dropout_scale,
    D: tl.constexpr, DROPOUT: tl.constexpr,
    SCORE: tl.constexpr, SCORE_SLOPE: tl.constexpr, SCORE_BEND: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Return tiles of the weights after dropout, dZ, R and U, in the dtype of the products."""
    row_at, inside = rows_at(x, seq, h, first + m), first + m < seq.M
    lse = tl.load(y.lse + row_at, mask=inside, other=0.0)  # (BLOCK_M, 1)
    delta = tl.load(y.delta + row_at, mask=inside, other=0.0)
    g = tl.load(y.g + row_at, mask=inside, other=0.0)
    c = tl.load(y.c + row_at, mask=inside, other=0.0)
    product, p, dropped, dp = weights(
        x, y, seq, b, h, first, m, start, n, lse, threshold, dropout_scale,
        D, DROPOUT, SCORE, PRECISION, CHUNK_D,
    )  # fmt: skip
    a, gs, e, slope, curvature = curvature_terms(
        product, p, x, y, seq, b, h, first, m, start, n,
        D, SCORE, SCORE_SLOPE, SCORE_BEND, PRECISION, CHUNK_D,
    )  # fmt: skip
    # (8) dS = P∘(dP − Δ)
    centred = dp - delta
    ds = p * centred
    # (12) R = P∘X∘(G − g)
    away = gs - g
    r = dropped * away
    # (14) T = P∘((dP − Δ)∘(G − g) − c) + P∘X∘E
    t = p * (centred * away - c) + dropped * e
    # (15) U = φ′∘T + φ″∘dS∘A, dZ = φ′∘dS
    u = t
    dz = ds
    if x.softcap is not None or SCORE is not None:
        u = slope * t + curvature * ds * a
        dz = slope * ds
    dtype = x.q.dtype.element_ty
    return dropped.to(dtype), dz.to(dtype), r.to(dtype), u.to(dtype)
