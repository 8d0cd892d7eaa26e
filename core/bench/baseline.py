"""Attention as a first Triton kernel: the loop over keys, with nothing done for speed.

It is raced to show what the rest of `kernels.attention` gains. Lengths and features are padded by
masks, and if causal the loop ends at the diagonal; there is no backward.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def kernel(
    q_ptr,  # (Z, M, D)
    k_ptr,  # (Z, N, D)
    v_ptr,  # (Z, N, D)
    out_ptr,  # (Z, M, D)
    M, N, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_M queries of one head."""
    z, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_M
    i, n, d = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    rows = (i < M)[:, None] & (d < D)[None, :]
    q_at = (z * M + i)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + q_at, mask=rows, other=0.0)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = N
    if CAUSAL:
        end = tl.minimum(N, first + BLOCK_M)
    for start in range(0, end, BLOCK_N):
        j = start + n
        at = (z * N + j)[:, None] * D + d[None, :]
        there = (j < N)[:, None] & (d < D)[None, :]
        k = tl.load(k_ptr + at, mask=there, other=0.0)
        s = tl.dot(q, tl.trans(k)) * scale
        live = (j < N)[None, :]
        if CAUSAL:
            live = live & (j[None, :] <= i[:, None])
        s = tl.where(live, s, -float("inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1))
        p = tl.exp(s - new_top[:, None])
        rescale = tl.exp(top - new_top)
        total = total * rescale + tl.sum(p, axis=1)
        v = tl.load(v_ptr + at, mask=there, other=0.0)
        acc = acc * rescale[:, None] + tl.dot(p.to(v.dtype), v)
        top = new_top
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + q_at, out, mask=rows)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Any:
    """Return softmax(q·kᵀ·scale)·v from contiguous copies; keys have as many heads as queries."""
    (B, H, M, D), N = q.shape, k.shape[2]
    if k.shape[1] != H or (causal and M != N):
        raise NotImplementedError("heads of its own for every query, and as many queries as keys")
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    block = 64 if D <= 128 else 32
    kernel[(triton.cdiv(M, block), B * H)](
        q, k, v, out, M, N, D**-0.5 if softmax_scale is None else softmax_scale,
        D=D, CAUSAL=causal,
        BLOCK_M=block, BLOCK_N=block, BLOCK_D=max(16, triton.next_power_of_2(D)),
    )  # fmt: skip
    return out
