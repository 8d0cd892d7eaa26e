"""Embedding look-up as a gather; its gradient as sums over sorted places, without atomics.

Bytes: forward reads N·D·b of the table and writes as much. Backward sorts the N ids (8 bytes each,
and as many for their places), reads N·D·b of dout once, writes V·D·b, zeros included. Nothing is
saved but the ids.

Backward: after a stable sort, the places that looked up the same row are adjacent, and one program
adds them up in that order. A frequent id would keep its program busy for long, so the sorted places
are cut into chunks of `CHUNK`; a chunk that holds a single id is summed by a program of its own, in
float32, and the row's program reads that sum instead: N/CHUNK·D·4 bytes more, written and read, and
a row takes n/CHUNK steps instead of n. Every sum is in the order of the places: the same bits in
every run. Dropout after the look-up is drawn again here, in registers.

`N` places, `V` rows of the table, `D` columns. Steps (1)–(3) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import dropout, layout, precision
from twofold.reference import checks
from twofold.reference.embedding import check

CHUNK = tl.constexpr(64)  # sorted places that are summed beforehand if all have one id


class Tile(NamedTuple):
    """Places and columns a program works on at a time, and with how many warps."""

    block_n: int
    block_d: int
    num_warps: int


# (widest row, tile): narrow rows leave registers for more places; the last entry takes all wider
# rows. With these numbers of warps the draws of dropout do not spill.
TILES = (
    (32, Tile(32, 32, 2)),
    (128, Tile(16, 128, 8)),
    (None, Tile(16, 256, 8)),
)


class Cache(NamedTuple):
    """The ids, and the table's rows and columns."""

    ids: torch.Tensor
    rows: int
    columns: int


class Gradients(NamedTuple):
    """Gradient of the table, (V, D)."""

    dtable: torch.Tensor


class Places(NamedTuple):
    """The places in the order of their ids; row v was looked up at order[starts[v]:starts[v+1]]."""

    order: torch.Tensor  # (N,) int64
    ordered: torch.Tensor  # (N,), the ids in that order
    starts: torch.Tensor  # (V + 1,) int64


def choose_tile(columns: int) -> Tile:
    """Return the table's tile for rows of this many columns."""
    return next(tile for widest, tile in TILES if widest is None or columns <= widest)


def row_tile(columns: int) -> Tile:
    """Return the tile that sums one row: few places at a time, as most rows have one or none.

    One program takes all columns, up to 1,024, with enough warps that the draws of dropout do not
    spill.
    """
    block_d = min(1024, max(16, triton.next_power_of_2(columns)))
    return Tile(2, block_d, max(1, block_d // 256))


@triton.jit
def look_up(table_ptr, strides, rows, columns, V, D):
    """Return the rows of a table (V, D) as a tile, and which of them exist."""
    known = (rows >= 0) & (rows < V)
    at = rows[:, None] * strides[0] + columns[None, :].to(tl.int64) * strides[1]
    mask = known[:, None] & (columns < D)[None, :]
    return tl.load(table_ptr + at, mask=mask, other=0.0), known


@triton.jit
def forward_kernel(
    ids_ptr,  # (N,)
    table_ptr,  # (V, D)
    out_ptr,  # (N, D)
    table_strides,
    N: tl.int64,
    V: tl.int64,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Look up BLOCK_N rows; a row outside the table is NaN."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    ids = tl.load(ids_ptr + n, mask=n < N, other=0).to(tl.int64)
    # (1) look up
    x, known = look_up(table_ptr, table_strides, ids, columns, V, D)
    at = n[:, None] * D + columns[None, :]
    inside = (n < N)[:, None] & (columns < D)[None, :]
    tl.store(out_ptr + at, tl.where(known[:, None], x, float("nan")).to(x.dtype), mask=inside)


@triton.jit
def add_places(
    acc, dout_ptr, order_ptr, seed_ptr, start, stop, columns, D, threshold, dropout_scale,
    DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the rows of dout at the sorted places [start, stop) to `acc` (BLOCK_N, BLOCK_D)."""
    if DROPOUT:
        seed = tl.load(seed_ptr)
    for first in range(start, stop, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        place = tl.load(order_ptr + i, mask=i < stop, other=0)
        at = place[:, None] * D + columns[None, :]
        inside = (i < stop)[:, None] & (columns < D)[None, :]
        x = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if DROPOUT:
            x = tl.where(dropout.keep(seed, at, threshold), x * dropout_scale, 0.0)
        acc += x
    return acc


@triton.jit(do_not_specialize=["threshold"])
def chunk_kernel(
    dout_ptr,  # (N, D)
    order_ptr,  # (N,)
    ordered_ptr,  # (N,)
    partial_ptr,  # (N // CHUNK, D) float32
    seed_ptr,  # () int64 if DROPOUT
    D,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    DROPOUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(3) Sum one chunk of the sorted places if all of them looked up the same row."""
    chunk = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = chunk * CHUNK
    stop = start + CHUNK
    if tl.load(ordered_ptr + start) == tl.load(ordered_ptr + stop - 1):
        acc = add_places(
            tl.zeros([BLOCK_N, BLOCK_D], tl.float32), dout_ptr, order_ptr, seed_ptr,
            start, stop, columns, D, threshold, dropout_scale, DROPOUT, BLOCK_N,
        )  # fmt: skip
        tl.store(partial_ptr + chunk * D + columns, tl.sum(acc, axis=0), mask=columns < D)


@triton.jit(do_not_specialize=["threshold"])
def row_kernel(
    dout_ptr,  # (N, D)
    order_ptr,  # (N,)
    starts_ptr,  # (V + 1,)
    partial_ptr,  # (N // CHUNK, D) float32
    dtable_ptr,  # (V, D)
    seed_ptr,  # () int64 if DROPOUT
    D,
    scale: tl.float32,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    DROPOUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(3) Sum the places of one row: those before its whole chunks, these chunks, those after."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start, stop = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    first, last = tl.cdiv(start, CHUNK), stop // CHUNK  # whole chunks are [first, last)
    head = tl.minimum(first * CHUNK, stop)
    tail = tl.maximum(last * CHUNK, head)
    acc = add_places(
        tl.zeros([BLOCK_N, BLOCK_D], tl.float32), dout_ptr, order_ptr, seed_ptr,
        start, head, columns, D, threshold, dropout_scale, DROPOUT, BLOCK_N,
    )  # fmt: skip
    for chunk in range(first, last, BLOCK_N):
        i = chunk + tl.arange(0, BLOCK_N)
        inside = (i < last)[:, None] & (columns < D)[None, :]
        acc += tl.load(partial_ptr + i[:, None] * D + columns[None, :], mask=inside, other=0.0)
    acc = add_places(
        acc, dout_ptr, order_ptr, seed_ptr,
        tail, stop, columns, D, threshold, dropout_scale, DROPOUT, BLOCK_N,
    )  # fmt: skip
    total = (tl.sum(acc, axis=0) * scale).to(dtable_ptr.dtype.element_ty)
    tl.store(dtable_ptr + row * D + columns, total, mask=columns < D)


def forward(
    ids: torch.Tensor, table: torch.Tensor, *, tile: Tile | None = None
) -> tuple[torch.Tensor, Cache]:
    """Look up a row of the table, of any strides, for every id; an id outside it gives NaN.

    Arguments and results are those of `reference.embedding.forward`. `tile` overrides the table's
    choice.
    """
    check(ids, table)
    precision.supported("table", table)
    V, D = table.shape
    tile = tile or choose_tile(D)
    N = ids.numel()
    out = torch.empty((*ids.shape, D), dtype=table.dtype, device=table.device)
    forward_kernel[(triton.cdiv(N, tile.block_n), triton.cdiv(D, tile.block_d))](
        ids.contiguous(), table, out, table.stride(), N, V, D,
        BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, num_warps=tile.num_warps,
    )  # fmt: skip
    return out, Cache(ids, V, D)


def backward(
    dout: torch.Tensor,
    cache: Cache,
    *,
    into: checks.Into = None,
    tile: Tile | None = None,
) -> Gradients:
    """Return dtable: each row the sum of the gradients of the places that looked it up.

    Arguments and results are those of `reference.embedding.backward`; `into` may have any strides
    and any dtype that kernels take. `tile` overrides the table's choice.
    """
    checks.gradient("dout", dout, (*cache.ids.shape, cache.columns))
    precision.supported("dout", dout)
    (dtable,) = layout.checked_into(into, dtable=(cache.rows, cache.columns))
    return Gradients(scatter_add(dout, cache.ids, cache.rows, dtable, tile=tile))


def scatter_add(
    dout: torch.Tensor,
    ids: torch.Tensor,
    rows: int,
    dtable: torch.Tensor | None = None,
    *,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Return the sums of dout's rows by id, (rows, D); an id out of range adds nothing."""
    return sum_places(dout, sort_places(ids, rows), into=dtable, tile=tile)


def sort_places(ids: torch.Tensor, rows: int) -> Places:
    """Sort the places by id; ids outside the table lie before the first start or after the last."""
    # (2) the places in the order of their ids
    ordered, order = torch.sort(ids.reshape(-1), stable=True)
    each = torch.arange(rows + 1, dtype=ordered.dtype, device=ordered.device)
    return Places(order, ordered, torch.searchsorted(ordered, each))


def sum_places(
    dout: torch.Tensor,
    places: Places,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor = 0,
    *,
    into: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Return scale times the sums of dropout(dout)'s rows by id, (V, D).

    `into` receives them instead of a new tensor. `tile` overrides the choice for chunks and for
    rows.
    """
    D = dout.shape[-1]
    dout = dout.contiguous()
    V, chunks = len(places.starts) - 1, len(places.order) // CHUNK.value
    chunk_tile, own = tile or choose_tile(D), tile or row_tile(D)
    partial = torch.empty((chunks, D), dtype=torch.float32, device=dout.device)
    dtable = layout.straight(into, dout.new_empty(1).expand(V, D))
    seed_at = dropout.in_memory(dropout_p, seed, dout)
    drawn = (dropout.threshold(dropout_p), dropout.scale(dropout_p))
    if chunks:
        chunk_kernel[(chunks, triton.cdiv(D, chunk_tile.block_d))](
            dout, places.order, places.ordered, partial, seed_at, D, *drawn,
            DROPOUT=dropout_p > 0.0, BLOCK_N=chunk_tile.block_n, BLOCK_D=chunk_tile.block_d,
            num_warps=chunk_tile.num_warps,
        )  # fmt: skip
    row_kernel[(V, triton.cdiv(D, own.block_d))](
        dout, places.order, places.starts, partial, dtable, seed_at, D, scale, *drawn,
        DROPOUT=dropout_p > 0.0, BLOCK_N=own.block_n, BLOCK_D=own.block_d,
        num_warps=own.num_warps,
    )  # fmt: skip
    return layout.copied_into(dtable, into)
