"""Gated activation in one pass: the activated gate stays in registers, and so does its slope.

Bytes, for n elements of b bytes: forward 3·n·b (read gate and up, write out), backward 5·n·b (read
dout, gate and up, write dgate and dup). f(gate) is recomputed, not kept: to write it and read it
back would be 2·n·b more, a quarter, to save a few dozen operations that wait for memory anyhow. So
in 16 bits f(gate) is never rounded either; out and the gradients are, once.

Both halves of a packed projection (..., 2·C) are read in place, and their gradients may be written
into the halves of one packed gradient: rows have strides. Backward loads all it reads of an element
before it writes there, so gradients may take the place of gate and up.

`R` rows (all leading axes), `C` columns; steps (1) and (2) are those of the reference, and the
activations those of `activation`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import layout, precision
from twofold.kernels.activation import activate, activate_grad
from twofold.reference import checks
from twofold.reference.gated_activation import check


class Tile(NamedTuple):
    """Rows and columns of a program."""

    block_r: int
    block_c: int


# (most columns, tile): a thread has eight elements; of two bytes each, they fill a wide access.
TILES = (
    (256, Tile(8, 128)),
    (2**31 - 1, Tile(1, 1024)),
)


class Cache(NamedTuple):
    """Both inputs, and the activation."""

    gate: torch.Tensor
    up: torch.Tensor
    kind: str


class Gradients(NamedTuple):
    """Gradients of gate and up, with their shapes."""

    dgate: torch.Tensor
    dup: torch.Tensor


def choose_tile(columns: int) -> Tile:
    """Return the table's tile for rows of this many columns."""
    return next((tile for most, tile in TILES if columns <= most), TILES[-1][1])


@triton.jit
def place(C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the rows and columns of a program's tile; neighbours are side by side in a row."""
    blocks = tl.cdiv(C, BLOCK_C)
    row, column = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    rows = row.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    return rows[:, None], column.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]


@triton.jit
def load(x_ptr, x_strides, rows, columns, R, C):
    """Return a tile as float32."""
    at = x_ptr + rows * x_strides[0] + columns * x_strides[1]
    return tl.load(at, mask=(rows < R) & (columns < C), other=0.0).to(tl.float32)


@triton.jit
def store(y_ptr, y_strides, y, rows, columns, R, C):
    """Write a tile."""
    at = y_ptr + rows * y_strides[0] + columns * y_strides[1]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=(rows < R) & (columns < C))


@triton.jit
def forward_kernel(
    gate_ptr, up_ptr,  # (R, C)
    out_ptr,  # (R, C)
    gate_strides, up_strides, out_strides,
    R: tl.int64,
    C,
    KIND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = f(gate)·up, for a tile."""
    rows, columns = place(C, BLOCK_R, BLOCK_C)
    # (1) activation
    f = activate(load(gate_ptr, gate_strides, rows, columns, R, C), KIND)
    # (2) product
    out = f * load(up_ptr, up_strides, rows, columns, R, C)
    store(out_ptr, out_strides, out, rows, columns, R, C)


@triton.jit
def backward_kernel(
    dout_ptr, gate_ptr, up_ptr,  # (R, C)
    dgate_ptr, dup_ptr,  # (R, C)
    dout_strides, gate_strides, up_strides, dgate_strides, dup_strides,
    R: tl.int64,
    C,
    KIND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dgate = dout·up·f′(gate) and dup = dout·f(gate), for a tile."""
    rows, columns = place(C, BLOCK_R, BLOCK_C)
    dout = load(dout_ptr, dout_strides, rows, columns, R, C)
    gate = load(gate_ptr, gate_strides, rows, columns, R, C)
    up = load(up_ptr, up_strides, rows, columns, R, C)
    # (2) product
    dup, df = dout * activate(gate, KIND), dout * up
    # (1) activation
    dgate = df * activate_grad(gate, KIND)
    store(dup_ptr, dup_strides, dup, rows, columns, R, C)
    store(dgate_ptr, dgate_strides, dgate, rows, columns, R, C)


def forward(
    gate: torch.Tensor, up: torch.Tensor, kind: str = "silu", *, tile: Tile | None = None
) -> tuple[torch.Tensor, Cache]:
    """Activate the gate and multiply by it, element by element.

    Arguments and results are those of `reference.gated_activation.forward`; gate and up in float16,
    bfloat16 or float32, any strides (copied only if their rows do not have one common stride).
    `tile` overrides the table's choice.
    """
    check(gate, up, kind)
    precision.supported("gate", gate)
    out = layout.fresh(gate)
    _launch(forward_kernel, (gate, up), (out,), kind, tile)
    return out, Cache(gate, up, kind)


def backward(
    dout: torch.Tensor, cache: Cache, *, into: checks.Into = None, tile: Tile | None = None
) -> Gradients:
    """Return dgate = dout·up·f′(gate) and dup = dout·f(gate).

    Arguments and results are those of `reference.gated_activation.backward`, in any strides; `into`
    may have any dtype that kernels take. `tile` overrides the table's choice.
    """
    gate, up, kind = cache
    precision.gradient("dout", dout, gate)
    to = layout.checked_into(into, dgate=tuple(gate.shape), dup=tuple(gate.shape))
    grads = Gradients(*(layout.fresh(gate) if x is None else x for x in to))
    _launch(backward_kernel, (dout, gate, up), grads, kind, tile)
    return grads


def _launch(
    kernel: Any,
    read: tuple[torch.Tensor, ...],
    written: tuple[torch.Tensor, ...],
    kind: str,
    tile: Tile | None,
) -> None:
    """Run a kernel on the rows of tensors of one shape, unless they are empty."""
    if not written[0].numel():
        return
    C = written[0].shape[-1]
    R = written[0].numel() // C
    tile = tile or choose_tile(C)
    rows = [x.reshape(R, C) for x in (*read, *written)]  # views, if their stride is the same
    kernel[(triton.cdiv(R, tile.block_r) * triton.cdiv(C, tile.block_c),)](
        *rows,
        *(x.stride() for x in rows),
        R,
        C,
        KIND=kind,
        BLOCK_R=tile.block_r,
        BLOCK_C=tile.block_c,
    )
    for x, made in zip(written, rows[len(read) :], strict=True):
        if made.data_ptr() != x.data_ptr():
            x.copy_(made.view(x.shape))
