"""Dropout in one pass: the mask is drawn in registers, used, and drawn again in backward.

Bytes: 2·n·b; no mask is stored. Operations: as `keep` is written, one Philox 4x32-10 per element,
with one of its eight draws used. But eight neighbours have the same counter, and where sizes are
multiples of 16 the compiler sees that one thread has them all, and keeps one Philox for all eight.
All kernels draw with `keep` and `attention_keep`, so a mask has one definition on this side, too.
Steps (1)–(3) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import precision
from twofold.reference import checks
from twofold.reference.dropout import check

BLOCK = 1024


class Cache(NamedTuple):
    """What `backward` needs: two numbers and the shape, no mask."""

    p: float
    seed: int | torch.Tensor
    shape: tuple[int, ...]


class Gradients(NamedTuple):
    """Gradient of the input, shaped as the input."""

    dx: torch.Tensor


def threshold(p: float) -> int:
    """Return p in units of 1/65536: an element is kept iff its 16-bit draw is at least this."""
    return min(round(float(p) * 65536), 65535)


def scale(p: float) -> float:
    """Return 1/(1 − p) for the rounded p."""
    return 65536 / (65536 - threshold(p))


def in_memory(p: float, seed: int | torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """Return where kernels read the seed, () int64 on the device of `x`; None if p is 0.

    A seed passed as an argument would be repeated by a captured CUDA graph; in memory, it can be
    overwritten before a replay. A kernel writes a number there, so that the host need not wait.
    """
    if p == 0.0:
        return None
    if isinstance(seed, torch.Tensor):
        return seed
    return torch.full((), int(seed), dtype=torch.int64, device=x.device)


@triton.jit
def keep(seed, index, threshold):
    """Draw the mask of elements `index` (int64 block), as `reference.dropout.keep_mask` does."""
    counter = index // 8
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = low * 0
    # (1) draws, (2) mask
    return draw(seed, low, high, zero, zero, index % 8) >= threshold


@triton.jit
def attention_keep(x, seed, b, h, rows, first, threshold, BLOCK_N: tl.constexpr):
    """Draw the mask of weights (b, h, rows, first …), a tile (BLOCK_M, BLOCK_N).

    It is a tile of `reference.dropout.attention_keep_mask`. `rows` is (BLOCK_M, 1), `first` a
    multiple of 8: eight neighbours are the draws of one Philox call. `x` is the `Call`.

    Triton 3.6 decides how many neighbours of a product's operand a thread holds by the narrowest
    load that the operand comes from, and counts a join as half its bits. Beside the joins below,
    loads of bytes, for a mask or a function of the scores, would make that 8 neighbours, and then
    sums over 16 come out wrong. A maximum over one element hides the joins from Triton.
    """
    groups = first // 8 + tl.arange(0, BLOCK_N // 8)[None, :]
    zero = (rows * 0 + groups * 0).to(tl.uint32)
    c0, c1 = zero + groups.to(tl.uint32), zero + rows.to(tl.uint32)
    c2, c3 = zero + h.to(tl.uint32), zero + b.to(tl.uint32)
    # (1) draws
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (BLOCK_M, BLOCK_N / 8, 2, 2)
    draws = tl.join(words & 0xFFFF, words >> 16).to(tl.int32)
    # (2) mask
    keep = tl.reshape(draws >= threshold, [rows.shape[0], BLOCK_N])
    if x.mask is not None or x.block_mask is not None or len(x.score_args) > 0:
        if rows.shape[0] < 32 or BLOCK_N < 32:
            keep = tl.max(keep.to(tl.int32)[:, :, None], axis=2) != 0
    return keep


@triton.jit
def draw(seed, c0, c1, c2, c3, lane):
    """Pick the 16-bit draw `lane` of each Philox call: word lane // 2, low half first."""
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
    word = tl.where(lane < 4, tl.where(lane < 2, w0, w1), tl.where(lane < 6, w2, w3))
    return tl.where(lane % 2 == 0, word & 0xFFFF, word >> 16).to(tl.int32)


@triton.jit(do_not_specialize=["threshold"])
def dropout_kernel(
    x_ptr,  # (n,)
    y_ptr,  # (n,)
    seed_ptr,  # () int64, or None
    n: tl.int64,
    threshold: tl.int32,
    scale: tl.float32,
    BLOCK: tl.constexpr,
):
    """y = x·keep·scale, for `BLOCK` elements a program."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    y = tl.load(x_ptr + index, mask=inside, other=0.0).to(tl.float32)
    # (1) draws, (2) mask, (3) scale
    if seed_ptr is not None:
        y = tl.where(keep(tl.load(seed_ptr), index, threshold), y * scale, 0.0)
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=inside)


def forward(x: torch.Tensor, p: float, seed: int | torch.Tensor) -> tuple[torch.Tensor, Cache]:
    """Zero each element of `x` with probability `p` and scale the rest by 1/(1 − p).

    Arguments and results are those of `reference.dropout.forward`, in float16, bfloat16 or float32
    and any strides.
    """
    check(x, p, seed)
    precision.supported("x", x)
    return _dropout(x, p, seed), Cache(p, seed, tuple(x.shape))


def backward(dout: torch.Tensor, cache: Cache) -> Gradients:
    """Return dx = dout·keep/(1 − p), with the mask drawn again from the seed.

    Arguments and results are those of `reference.dropout.backward`.
    """
    checks.gradient("dout", dout, cache.shape)
    precision.supported("dout", dout)
    return Gradients(_dropout(dout, cache.p, cache.seed))


def _dropout(x: torch.Tensor, p: float, seed: int | torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    n = x.numel()
    if n:
        dropout_kernel[(triton.cdiv(n, BLOCK),)](
            x, y, in_memory(p, seed, x), n, threshold(p), scale(p), BLOCK=BLOCK
        )
    return y
