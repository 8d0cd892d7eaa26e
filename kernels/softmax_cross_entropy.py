"""Softmax and cross-entropy, loss and gradient in one launch: the probabilities are never stored.

A program takes whole rows in blocks of classes, twice: once for the running maximum and sum (online
softmax: Milakov & Gimelshein 2018), once for loss and gradient. Bytes, for n = R·C elements of b
bytes: n·b read, n·b written, and n·b read again unless L2 still has it. It can where all rows in
flight fit: four on each multiprocessor, five in 16 bits, on an H100 528 or 660 in 50 MB, so up to
24,000 classes in float32, 39,000 in 16 bits. Targets that are probabilities are read like the
logits. Saved: the gradient; backward takes 2·n·b more to multiply it by that of the loss. Where
there will be no backward pass it is not computed, and the loss of a class index without smoothing
takes only the first pass.

The limit of this kernel may be instructions per element, not bytes. A class index without smoothing
is a single nonzero target per row: its mass and its loss need no sum over the classes, and what is
left per element is two exponentials, the maximum, the sum and the gradient: 27 instructions for
sm_90a; with the sums for smoothed targets 54, and with class weights 63. (Counted; not timed yet.)
Exponentials are exp2, which the hardware has.

The mean divides by a sum over all rows, which the gradient needs before any of it is written. So a
small kernel comes first and writes partial sums, one for each share of the rows; every program that
needs the divisor adds those up, in the same order. The rows' losses are summed last, by one
program. No atomics: the same bits in every run.

A class index outside 0 … C − 1 that is not `ignore_index` gives NaN: raising an error would mean
waiting for the GPU.

`R` rows, `C` classes; steps (1)–(5) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import precision
from twofold.kernels.attention_parts import LOG2_E
from twofold.reference import checks
from twofold.reference.softmax_cross_entropy import check, check_backward


class Tile(NamedTuple):
    """Rows of a program, classes it takes at a time, its warps, and stages of its pipeline."""

    block_r: int
    block_c: int
    num_warps: int
    stages: int


# (most classes, tile); more classes than the last entry's take its tile as well.
TILES = (
    (32, Tile(32, 32, 4, 1)),
    (256, Tile(8, 256, 4, 1)),
    (2048, Tile(1, 2048, 4, 1)),
    (65536, Tile(1, 4096, 8, 2)),
)
# The most shares into which the rows are split to sum the divisor. Every program adds all the sums.
SHARES = 64
BLOCK = 1024  # elements at a time in kernels that do not take whole rows


class Cache(NamedTuple):
    """The gradient of the loss by the logits, (R, C), if kept, and whether each row has a loss."""

    dlogits: torch.Tensor | None
    per_row: bool


class Gradients(NamedTuple):
    """Gradient of the logits, (R, C)."""

    dlogits: torch.Tensor


def choose_tile(classes: int, probabilities: bool = False) -> Tile:
    """Return the table's tile for rows of this many classes.

    With probabilities as targets twice as many loads are in flight; with more classes than a tile
    has, that is too many for registers if they are begun a stage ahead.
    """
    tile = next((tile for most, tile in TILES if classes <= most), TILES[-1][1])
    return tile._replace(stages=1) if probabilities else tile


@triton.jit
def load_index(targets_ptr, targets_strides, rows, R, C, ignore_index):
    """Return rows' class indices, whether they count, and whether they are in range."""
    index = tl.load(targets_ptr + rows * targets_strides[0], mask=rows < R, other=0).to(tl.int64)
    return index, index != ignore_index, (index >= 0) & (index < C)


@triton.jit
def load_weight(weight_ptr, weight_strides, index, counts, valid, HAS_WEIGHT: tl.constexpr):
    """Return the weights of rows' classes: 0 if a row does not count, NaN for no such class."""
    w = tl.where(valid, 1.0, float("nan"))
    if HAS_WEIGHT:
        at = weight_ptr + index * weight_strides[0]
        w *= tl.load(at, mask=counts & valid, other=1.0)
    return tl.where(counts, w, 0.0)


@triton.jit
def load_targets(
    targets_ptr, targets_strides, weight_ptr, weight_strides,
    index, counts, valid,  # of the rows
    rows, columns, R, C,
    on_target, elsewhere,
    PROBABILITIES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """(1) Return a tile of T = t·w, targets times class weights, 0 outside."""
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    if PROBABILITIES:
        at = rows[:, None] * targets_strides[0] + columns[None, :] * targets_strides[1]
        t = tl.load(targets_ptr + at, mask=inside, other=0.0).to(tl.float32)
        t = t * on_target + elsewhere
    else:
        t = elsewhere + tl.where(columns[None, :] == index[:, None], on_target, 0.0)
        t = tl.where(counts[:, None], tl.where(valid[:, None], t, float("nan")), 0.0)
    if HAS_WEIGHT:
        w = tl.load(weight_ptr + columns * weight_strides[0], mask=columns < C, other=0.0)
        t = t * w.to(tl.float32)[None, :]
    return tl.where(inside, t, 0.0)


@triton.jit
def load_scale(divisor_ptr, shares, scale, HAS_DIVISOR: tl.constexpr, SHARES: tl.constexpr):
    """(5) Return what the reduction multiplies by: 0 if it would divide by 0."""
    if HAS_DIVISOR:
        share = tl.arange(0, SHARES)
        divisor = tl.sum(tl.load(divisor_ptr + share, mask=share < shares, other=0.0), axis=0)
        scale = tl.where(divisor == 0.0, 0.0, 1.0 / tl.where(divisor == 0.0, 1.0, divisor))
    return scale


@triton.jit(do_not_specialize=["ignore_index"])
def divisor_kernel(
    targets_ptr,  # (R,)
    weight_ptr,  # (C,) if HAS_WEIGHT
    divisor_ptr,  # (shares,) float32
    targets_strides, weight_strides,
    R: tl.int64,
    C,
    rows_per_share: tl.int64,
    ignore_index: tl.int64,
    HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(5) Sum w_y over one share of the rows, by which the mean divides."""
    share = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    first = share * rows_per_share
    last = tl.minimum(first + rows_per_share, R)
    for start in range(first, last, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        index, counts, valid = load_index(targets_ptr, targets_strides, rows, last, C, ignore_index)
        counts = counts & (rows < last)
        total += load_weight(weight_ptr, weight_strides, index, counts, valid, HAS_WEIGHT)
    tl.store(divisor_ptr + share, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["ignore_index"])
def rows_kernel(
    logits_ptr,  # (R, C)
    targets_ptr,  # (R,), or (R, C) if PROBABILITIES
    weight_ptr,  # (C,) if HAS_WEIGHT
    divisor_ptr,  # (shares,) float32 if HAS_DIVISOR
    loss_ptr,  # (R,)
    dlogits_ptr,  # (R, C) if KEEP
    logits_strides, targets_strides, weight_strides,
    R: tl.int64,
    C,
    shares,
    on_target: tl.float32,  # 1 − ε
    elsewhere: tl.float32,  # ε/C
    scale: tl.float32,
    ignore_index: tl.int64,
    PROBABILITIES: tl.constexpr,
    ONE_CLASS: tl.constexpr,  # targets are class indices, and nothing is smoothed
    HAS_WEIGHT: tl.constexpr,
    HAS_DIVISOR: tl.constexpr,
    KEEP: tl.constexpr,  # the gradient is made
    SHARES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Loss, not yet reduced, and gradient, reduced, of BLOCK_R rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    scale = load_scale(divisor_ptr, shares, scale, HAS_DIVISOR, SHARES)
    index = rows
    counts = rows < R
    valid = counts
    if not PROBABILITIES:
        index, counts, valid = load_index(targets_ptr, targets_strides, rows, R, C, ignore_index)
    # (2) maximum and sum of the softmax, and rowsum(T), here `mass`
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    mass = tl.zeros([BLOCK_R], tl.float32)
    for start in tl.range(0, C, BLOCK_C, num_stages=STAGES):
        columns = start + tl.arange(0, BLOCK_C).to(tl.int64)
        inside = (rows[:, None] < R) & (columns[None, :] < C)
        at = rows[:, None] * logits_strides[0] + columns[None, :] * logits_strides[1]
        x = tl.load(logits_ptr + at, mask=inside, other=-float("inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(x, axis=1))
        safe = tl.where(new_top == -float("inf"), 0.0, new_top)  # stands in for −∞ − (−∞)
        p = tl.exp2((x - safe[:, None]) * LOG2_E)
        total = total * tl.exp2((top - safe) * LOG2_E) + tl.sum(p, axis=1)
        top = new_top
        if not ONE_CLASS:
            t = load_targets(
                targets_ptr, targets_strides, weight_ptr, weight_strides, index, counts, valid,
                rows, columns, R, C, on_target, elsewhere, PROBABILITIES, HAS_WEIGHT,
            )  # fmt: skip
            mass += tl.sum(t, axis=1)
    top = tl.where(rows < R, top, 0.0)
    total = tl.where(rows < R, total, 1.0)
    log_total = tl.log(total)
    loss = tl.zeros([BLOCK_R], tl.float32)
    if ONE_CLASS:
        # (1) the target, and (3) the loss: the one term that has a weight
        counts = counts & (rows < R)
        mass = load_weight(weight_ptr, weight_strides, index, counts, valid, HAS_WEIGHT)
        target = logits_ptr + rows * logits_strides[0] + index * logits_strides[1]
        logit = tl.load(target, mask=counts & valid, other=0.0).to(tl.float32)
        loss = tl.where(mass == 0.0, 0.0, mass * (log_total - (logit - top)))
    mass_share = mass / total
    # The loss of one class is done: for it alone there is no second pass.
    for start in tl.range(0, C if KEEP or not ONE_CLASS else 0, BLOCK_C, num_stages=STAGES):
        columns = start + tl.arange(0, BLOCK_C).to(tl.int64)
        inside = (rows[:, None] < R) & (columns[None, :] < C)
        at = rows[:, None] * logits_strides[0] + columns[None, :] * logits_strides[1]
        x = tl.load(logits_ptr + at, mask=inside, other=-float("inf")).to(tl.float32)
        shifted = x - top[:, None]
        if ONE_CLASS:
            hit = tl.arange(0, BLOCK_C)[None, :] == (index - start).to(tl.int32)[:, None]
            t = tl.where(hit, mass[:, None], 0.0)
        else:
            t = load_targets(
                targets_ptr, targets_strides, weight_ptr, weight_strides, index, counts, valid,
                rows, columns, R, C, on_target, elsewhere, PROBABILITIES, HAS_WEIGHT,
            )  # fmt: skip
            # (3) loss: terms without weight are left out, so that 0·∞ cannot arise
            loss += tl.sum(t * tl.where(t == 0.0, 0.0, log_total[:, None] - shifted), axis=1)
        if KEEP:
            # (4) ∂loss/∂x = p·rowsum(T) − T, reduced
            d = (tl.exp2(shifted * LOG2_E) * mass_share[:, None] - t) * scale
            at = rows[:, None] * C + columns[None, :]
            tl.store(dlogits_ptr + at, d.to(dlogits_ptr.dtype.element_ty), mask=inside)
    tl.store(loss_ptr + rows, loss.to(loss_ptr.dtype.element_ty), mask=rows < R)


@triton.jit
def reduce_kernel(
    rows_ptr,  # (R,) float32
    divisor_ptr,  # (shares,) float32 if HAS_DIVISOR
    loss_ptr,  # ()
    R: tl.int64,
    shares,
    scale: tl.float32,
    HAS_DIVISOR: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(5) Sum the rows' losses, in one program, and scale the sum."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, R, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        total += tl.load(rows_ptr + rows, mask=rows < R, other=0.0)
    loss = tl.sum(total, axis=0) * load_scale(divisor_ptr, shares, scale, HAS_DIVISOR, SHARES)
    tl.store(loss_ptr, loss.to(loss_ptr.dtype.element_ty))


@triton.jit
def backward_kernel(
    dloss_ptr,  # (), or (R,) if PER_ROW
    saved_ptr,  # (R, C)
    dlogits_ptr,  # (R, C)
    dloss_strides,
    n: tl.int64,
    C,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Multiply the saved gradient by that of the loss, BLOCK elements of it."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    saved = tl.load(saved_ptr + index, mask=index < n, other=0.0).to(tl.float32)
    if PER_ROW:
        at = dloss_ptr + index // C * dloss_strides[0]
        dloss = tl.load(at, mask=index < n, other=0.0).to(tl.float32)
    else:
        dloss = tl.load(dloss_ptr).to(tl.float32)
    d = (saved * dloss).to(dlogits_ptr.dtype.element_ty)
    tl.store(dlogits_ptr + index, d, mask=index < n)


def forward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    keep: bool = True,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Return the cross-entropy of softmax(logits) with the targets.

    Arguments and results are those of `reference.softmax_cross_entropy.forward`, in float16,
    bfloat16 or float32, any strides; a class index out of range gives NaN. `tile` overrides the
    table's choice.
    """
    check(logits, targets, weight, label_smoothing, ignore_index, reduction)
    checks.flag("keep", keep)
    precision.supported("logits", logits)
    R, C = logits.shape
    label_smoothing, ignore_index = float(label_smoothing), int(ignore_index)
    probabilities = targets.dim() == 2
    tile = tile or choose_tile(C, probabilities)
    has_divisor = reduction == "mean" and not probabilities
    weights, weight_strides = (logits, (0,)) if weight is None else (weight, weight.stride())
    divisor = torch.empty(SHARES, dtype=torch.float32, device=logits.device)
    rows_per_share = triton.cdiv(R, SHARES * BLOCK) * BLOCK
    shares = triton.cdiv(R, rows_per_share)
    if has_divisor:
        divisor_kernel[(shares,)](
            targets, weights, divisor, targets.stride(), weight_strides,
            R, C, rows_per_share, ignore_index,
            HAS_WEIGHT=weight is not None, BLOCK=BLOCK,
        )  # fmt: skip
    scale = 1 / R if reduction == "mean" else 1.0
    row_dtype = logits.dtype if reduction == "none" else torch.float32
    rows = torch.empty(R, dtype=row_dtype, device=logits.device)
    dlogits = torch.empty((R, C), dtype=logits.dtype, device=logits.device) if keep else None
    rows_kernel[(triton.cdiv(R, tile.block_r),)](
        logits, targets, weights, divisor, rows, rows if dlogits is None else dlogits,
        logits.stride(), targets.stride(), weight_strides,
        R, C, shares,
        1 - label_smoothing, label_smoothing / C, scale, ignore_index,
        PROBABILITIES=probabilities,
        ONE_CLASS=not probabilities and label_smoothing == 0.0,
        HAS_WEIGHT=weight is not None,
        HAS_DIVISOR=has_divisor,
        KEEP=keep,
        SHARES=SHARES,
        BLOCK_R=tile.block_r,
        BLOCK_C=tile.block_c,
        STAGES=tile.stages,
        num_warps=tile.num_warps,
    )  # fmt: skip
    if reduction == "none":
        return rows, Cache(dlogits, True)
    loss = torch.empty((), dtype=logits.dtype, device=logits.device)
    reduce_kernel[(1,)](
        rows, divisor, loss, R, shares, scale,
        HAS_DIVISOR=has_divisor, SHARES=SHARES, BLOCK=BLOCK,
    )  # fmt: skip
    return loss, Cache(dlogits, False)


def backward(dloss: torch.Tensor | float, cache: Cache) -> Gradients:
    """Return dlogits, given the gradient of the loss.

    Arguments and results are those of `reference.softmax_cross_entropy.backward`.
    """
    saved = checks.kept("cache.dlogits", cache.dlogits)
    check_backward(dloss, saved, cache.per_row)
    precision.on_current_device("cache.dlogits", saved)
    if isinstance(dloss, float | int):  # filled in on the device: for a copy the host would wait
        dloss = torch.full((), dloss, dtype=torch.float32, device=saved.device)
    dloss = torch.as_tensor(dloss, device=saved.device)
    dlogits, n = torch.empty_like(saved), saved.numel()
    backward_kernel[(triton.cdiv(n, BLOCK),)](
        dloss, saved, dlogits, dloss.stride() or (0,), n, saved.shape[1],
        PER_ROW=cache.per_row, BLOCK=BLOCK,
    )  # fmt: skip
    return Gradients(dlogits)
