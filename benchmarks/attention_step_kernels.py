"""Attention on the way from a first kernel to the present one, a flag for each step.

Forward is one kernel whose flags are the steps; backward is one kernel that sums dq with atomics,
which the present one does without. Tensors are contiguous, with as many KV heads as heads of
queries, and, where causal, as many keys as queries; lengths and features are padded by masks.

`Z` batches times heads, `M` queries, `N` keys, `D` head_dim. Steps (1)–(9) are those of
`reference.attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from twofold.kernels.attention_tiles import Tile, choose_tile, padded
from twofold.kernels.device import architecture

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2.0))


@dataclass(frozen=True)
class Step:
    """One kernel on the way; each flag is a step.

    Attributes:
        exp2: log₂e is folded into the scale, and exp becomes exp2.
        skip: tiles that no query of a program attends to are not visited.
        edges: masks are applied only in tiles that need them.
        table: tiles come from the present kernel's table.
        long_first: programs with the most keys begin first.
        descriptors: the Tensor Memory Accelerator (TMA) copies whole tiles, without addresses.
        persistent: as many programs as fit, each taking one block after another.
    """

    exp2: bool = False
    skip: bool = False
    edges: bool = False
    table: bool = False
    long_first: bool = False
    descriptors: bool = False
    persistent: bool = False

    def tile(self, head_dim: int) -> Tile:
        """Return the tile of forward: the same for all steps before the table."""
        if self.table:
            return choose_tile("forward", head_dim, 2, architecture=architecture())
        return Tile(64, 64 if head_dim <= 128 else 32, 4, 2)

    def constants(self, causal: bool) -> dict[str, bool]:
        """Return the flags as the kernel's arguments."""
        return {
            "CAUSAL": causal,
            "EXP2": self.exp2,
            "SKIP": self.skip and causal,
            "EDGES": self.edges,
            "LONG_FIRST": self.long_first and causal,
            "DESCRIPTORS": self.descriptors,
            "PERSISTENT": self.persistent,
        }


@triton.jit
def step_kernel(
    q_ptr,  # (Z, M, D)
    k_ptr, v_ptr,  # (Z, N, D)
    out_ptr,  # (Z, M, D)
    lse_ptr,  # (Z, M) float32
    Z, M, N, scale,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    EXP2: tl.constexpr,
    SKIP: tl.constexpr,
    EDGES: tl.constexpr,
    LONG_FIRST: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_M queries of one head, or from many such blocks in turn."""
    if PERSISTENT:
        blocks = tl.cdiv(M, BLOCK_M)
        for turn in range(tl.program_id(0), blocks * Z, tl.num_programs(0)):
            attend(
                turn % Z, blocks - 1 - turn // Z,
                q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, M, N, scale,
                D, CAUSAL, EXP2, SKIP, EDGES, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip
    else:
        block = tl.program_id(0)
        if LONG_FIRST:
            block = tl.num_programs(0) - 1 - block
        attend(
            tl.program_id(1), block,
            q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, M, N, scale,
            D, CAUSAL, EXP2, SKIP, EDGES, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip


@triton.jit
def attend(
    z, block, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, M, N, scale,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    EXP2: tl.constexpr,
    SKIP: tl.constexpr,
    EDGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend from a block of queries of head z."""
    z = z.to(tl.int64)
    first = block * BLOCK_M
    i, n, d = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    rows = (i < M)[:, None] & (d < D)[None, :]
    q_at = (z * M + i)[:, None] * D + d[None, :]
    if DESCRIPTORS:
        q = tl.make_tensor_descriptor(q_ptr + z * M * D, [M, D], [D, 1], [BLOCK_M, BLOCK_D]).load(
            [first, 0]
        )
        keys = tl.make_tensor_descriptor(k_ptr + z * N * D, [N, D], [D, 1], [BLOCK_N, BLOCK_D])
        values = tl.make_tensor_descriptor(v_ptr + z * N * D, [N, D], [D, 1], [BLOCK_N, BLOCK_D])
    else:
        q = tl.load(q_ptr + q_at, mask=rows, other=0.0)
    if EXP2:
        scale = scale * LOG2_E
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = N
    if SKIP:
        end = tl.minimum(N, first + BLOCK_M)
    full = 0  # all queries see the keys before this one
    if EDGES:
        full = end // BLOCK_N * BLOCK_N
        if CAUSAL:
            full = tl.minimum(full, (first + 1) // BLOCK_N * BLOCK_N)
    for EDGE in tl.static_range(0 if EDGES else 1, 2):
        for start in range(full if EDGE else 0, end if EDGE else full, BLOCK_N):
            j = start + n
            at = (z * N + j)[:, None] * D + d[None, :]
            there = (d < D)[None, :]
            if EDGE:
                there = there & (j < N)[:, None]
            # (1) scores
            if DESCRIPTORS:
                k = keys.load([start, 0])
            else:
                k = tl.load(k_ptr + at, mask=there, other=0.0)
            s = tl.dot(q, tl.trans(k)) * scale
            if EDGE:
                live = (j < N)[None, :]
                if CAUSAL:
                    live = live & (j[None, :] <= i[:, None])
                s = tl.where(live, s, -float("inf"))
            # (2) weights, against the running maximum; (3) log-sum-exp: the sum so far
            new_top = tl.maximum(top, tl.max(s, axis=1))
            if EXP2:
                p, rescale = tl.exp2(s - new_top[:, None]), tl.exp2(top - new_top)
            else:
                p, rescale = tl.exp(s - new_top[:, None]), tl.exp(top - new_top)
            total = total * rescale + tl.sum(p, axis=1)
            # (4) output
            if DESCRIPTORS:
                v = values.load([start, 0])
            else:
                v = tl.load(v_ptr + at, mask=there, other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None])
            top = new_top
    lse = (top + tl.log2(total)) * LN_2 if EXP2 else top + tl.log(total)
    tl.store(lse_ptr + z * M + i, lse, mask=i < M)
    tl.store(out_ptr + q_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=rows)


@triton.jit
def step_backward_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr,  # (Z, M or N, D)
    lse_ptr, delta_ptr,  # (Z, M) float32
    dq_ptr,  # (Z, M, D) float32, zero
    dk_ptr, dv_ptr,  # (Z, N, D)
    M, N, scale,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    SKIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum dk and dv of BLOCK_N keys over the queries, and add what these keys contribute to dq.

    Tiles are (keys, queries).
    """
    z, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_N
    j, m, d = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    columns = (j < N)[:, None] & (d < D)[None, :]
    k_at = (z * N + j)[:, None] * D + d[None, :]
    k = tl.load(k_ptr + k_at, mask=columns, other=0.0)
    v = tl.load(v_ptr + k_at, mask=columns, other=0.0)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    begin = 0
    if SKIP:
        begin = first // BLOCK_M * BLOCK_M
    for start in range(begin, M, BLOCK_M):
        i = start + m
        at = (z * M + i)[:, None] * D + d[None, :]
        there = (i < M)[:, None] & (d < D)[None, :]
        q = tl.load(q_ptr + at, mask=there, other=0.0)
        dout = tl.load(dout_ptr + at, mask=there, other=0.0)
        lse = tl.load(lse_ptr + z * M + i, mask=i < M, other=0.0)[None, :]
        delta = tl.load(delta_ptr + z * M + i, mask=i < M, other=0.0)[None, :]
        # (5) weights again
        s = tl.dot(k, tl.trans(q)) * (scale * LOG2_E)
        live = (j < N)[:, None] & (i < M)[None, :]
        if CAUSAL:
            live = live & (j[:, None] <= i[None, :])
        p = tl.where(live, tl.exp2(s - lse * LOG2_E), 0.0)
        # (6) gradient of the weights; (8) gradient of the scores
        ds = (p * (tl.dot(v, tl.trans(dout)) - delta)).to(q.dtype)
        # (9) gradients of the inputs
        dv = tl.dot(p.to(dout.dtype), dout, dv)
        dk = tl.dot(ds, q, dk)
        tl.atomic_add(dq_ptr + at, tl.dot(tl.trans(ds), k) * scale, mask=there)
    tl.store(dk_ptr + k_at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=columns)
    tl.store(dv_ptr + k_at, dv.to(dv_ptr.dtype.element_ty), mask=columns)


PROGRAMS = 264  # of a persistent grid: two for each multiprocessor of an H100


def _scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Allocate memory for the descriptors that a kernel makes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def forward(
    step: Step,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out and lse of contiguous tensors (Z, length, D); `tile` overrides the step's own."""
    (Z, M, D), N = q.shape, k.shape[1]
    out, lse = torch.empty_like(q), torch.empty(Z, M, dtype=torch.float32, device=q.device)
    tile = tile or step.tile(D)
    blocks = triton.cdiv(M, tile.block_m)
    grid = (min(PROGRAMS, blocks * Z),) if step.persistent else (blocks, Z)
    if step.descriptors and q.is_cuda:
        triton.set_allocator(_scratch)
    step_kernel[grid](
        q, k, v, out, lse, Z, M, N, scale,
        D=D, **step.constants(causal),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=padded(D),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out, lse


BACKWARD_TILES = {64: Tile(64, 64, 4, 2), 128: Tile(32, 128, 8, 1), 256: Tile(32, 32, 8, 1)}


def backward(
    skip: bool, dout: torch.Tensor, saved: tuple[torch.Tensor, ...], scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dq, dk, dv; `saved` is (q, k, v, out, lse)."""
    q, k, v, out, lse = saved
    (Z, M, D), N = q.shape, k.shape[1]
    delta = (dout.float() * out.float()).sum(-1)  # (7)
    dq = torch.zeros_like(q, dtype=torch.float32)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    tile = BACKWARD_TILES[min(256, max(64, padded(D)))]
    step_backward_kernel[(triton.cdiv(N, tile.block_n), Z)](
        q, k, v, dout, lse, delta, dq, dk, dv, M, N, scale,
        D=D, CAUSAL=causal, SKIP=skip and causal,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=padded(D),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return dq.to(q.dtype), dk, dv


class _Attention(torch.autograd.Function):
    """A step as a function that torch can differentiate; backward is the kernel with atomics."""

    @staticmethod
    def forward(ctx: Any, step: Step, q: Any, k: Any, v: Any, scale: float, causal: bool) -> Any:
        flat = [x.contiguous().flatten(0, 1) for x in (q, k, v)]
        out, lse = forward(step, *flat, scale, causal)
        ctx.save_for_backward(*flat, out, lse)
        ctx.step, ctx.scale, ctx.causal = step, scale, causal
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        flat = dout.contiguous().flatten(0, 1)
        found = backward(ctx.step.skip, flat, ctx.saved_tensors, ctx.scale, ctx.causal)
        grads = (d.view(*dout.shape[:2], *d.shape[1:]) for d in found)
        return None, *grads, None, None


def attention(step: Step) -> Any:
    """Return a step as a plain function."""

    def call(
        q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False
    ) -> Any:
        """softmax(q·kᵀ·scale)·v by one of the kernels above."""
        if causal and q.shape[2] != k.shape[2]:
            raise NotImplementedError("as many queries as keys where causal")
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        return _Attention.apply(step, q, k, v, scale, causal)

    return call


def materialised(
    q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False
) -> Any:
    """softmax(q·kᵀ·scale)·v with scores and weights in memory, one kernel per operation."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    s = (q @ k.mT) * scale
    if causal:
        later = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1)
        s = s.masked_fill(later, -torch.inf)
    return torch.softmax(s, dim=-1) @ v


# The steps, each on top of those before it; `materialised` comes before the first, and the present
# kernel after the last.
IN_MEMORY = "scores in memory"
STEPS: dict[str, Step] = {
    "one pass": Step(),
    "powers of two": Step(exp2=True),
    "no masked tiles": Step(exp2=True, skip=True),
    "masks at edges only": Step(exp2=True, skip=True, edges=True),
    "tile table": Step(exp2=True, skip=True, edges=True, table=True),
    "long rows first": Step(exp2=True, skip=True, edges=True, table=True, long_first=True),
}
ALL = STEPS["long rows first"]
# Besides these, each on top of all of them: what the present kernel does not do.
ASIDE: dict[str, Step] = {
    "descriptors": replace(ALL, descriptors=True),
    "descriptors, persistent": replace(ALL, descriptors=True, persistent=True),
}
# The steps of backward, and whether they skip tiles where nothing is seen; then the present.
BACKWARD_STEPS = {"one kernel, atomics": False, "one kernel, atomics, no masked tiles": True}
