"""Embedding, scale, position and dropout in one pass; one pass for each table's gradient.

Bytes: forward reads a row of each table per place and writes the sum: 3·N·D·b, where four kernels
would move 9·N·D·b. Backward reads dout once for each table, in the order of that table's ids (see
`embedding`), and draws the mask anew each time: drawing twice costs less than writing dropout's
gradient and reading it back, and nothing is rounded in between. Default positions need no sort.
Saved: ids and positions.

`B` batch, `L` length, `N` = B·L places, `V` rows of the table, `P` rows of the position table, `D`
d_model. Steps (1)–(3) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import dropout, layout, precision
from twofold.kernels.embedding import (
    TILES,
    Places,
    Tile,
    choose_tile,
    look_up,
    sort_places,
    sum_places,
)
from twofold.reference import checks
from twofold.reference.positional_encoding import check, check_sinusoidal

__all__ = ["TILES", "Cache", "Gradients", "backward", "forward", "sinusoidal"]


class Cache(NamedTuple):
    """What `backward` needs; `positions` is None if they are 0 … L − 1."""

    ids: torch.Tensor
    positions: torch.Tensor | None
    rows: int
    columns: int
    position_rows: int  # 0 if the position table is not learned
    scale: float
    dropout_p: float
    seed: int | torch.Tensor


class Gradients(NamedTuple):
    """Gradients of the tables; `dposition_table` is None where it is not learned."""

    dtable: torch.Tensor
    dposition_table: torch.Tensor | None


def sinusoidal(
    positions: torch.Tensor, d_model: int, dtype: str | torch.dtype = "float32"
) -> torch.Tensor:
    """Return the sinusoids of each position, (L, d_model), as `reference` does.

    A constant of the model, computed once, so torch will do. Angles are float64 throughout: in
    float32 those of position 10⁶ would be off by up to 1/32. The result is float32 by default, as
    the kernels take it.
    """
    check_sinusoidal(positions, d_model)
    to = getattr(torch, checks.floating_dtype("dtype", dtype))
    columns = torch.arange(d_model, device=positions.device)
    pair = columns // 2
    divisor = 10000.0 ** (2 * pair.double() / d_model)
    angle = positions[:, None].double() / divisor  # (L, d_model)
    x = torch.where(columns % 2 == 0, angle.sin(), angle.cos())
    return x.to(to)


@triton.jit(do_not_specialize=["threshold"])
def forward_kernel(
    ids_ptr,  # (N,)
    table_ptr,  # (V, D)
    position_table_ptr,  # (P, D) if HAS_POSITIONS
    positions_ptr,  # (N,) unless COUNTED
    out_ptr,  # (N, D)
    seed_ptr,  # () int64 if DROPOUT
    table_strides,
    position_strides,
    N: tl.int64,
    L,
    V: tl.int64,
    P: tl.int64,
    D,
    scale: tl.float32,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    HAS_POSITIONS: tl.constexpr,
    COUNTED: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Embed BLOCK_N places; a place whose id or position is out of range is NaN."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at = n[:, None] * D + columns[None, :]
    # (1) look up and scale
    ids = tl.load(ids_ptr + n, mask=n < N, other=0).to(tl.int64)
    x, known = look_up(table_ptr, table_strides, ids, columns, V, D)
    x = x.to(tl.float32) * scale
    # (2) add the position
    if HAS_POSITIONS:
        if COUNTED:
            t = n % L
        else:
            t = tl.load(positions_ptr + n, mask=n < N, other=0).to(tl.int64)
        p, placed = look_up(position_table_ptr, position_strides, t, columns, P, D)
        x += p.to(tl.float32)
        known = known & placed
    # (3) drop out
    if DROPOUT:
        x = tl.where(dropout.keep(tl.load(seed_ptr), at, threshold), x * dropout_scale, 0.0)
    x = tl.where(known[:, None], x, float("nan"))
    inside = (n < N)[:, None] & (columns < D)[None, :]
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=inside)


def forward(
    ids: torch.Tensor,
    table: torch.Tensor,
    position_table: torch.Tensor | None,
    *,
    positions: torch.Tensor | None = None,
    learned: bool = True,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor = 0,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Look up embeddings and positions, add, drop out; an id or position outside gives NaN.

    Arguments and results are those of `reference.positional_encoding.forward`, tables in any
    strides, sums in float32. `tile` overrides the table's choice.
    """
    check(ids, table, position_table, positions, learned, scale, dropout_p, seed)
    precision.supported("table", table)
    (V, D), (B, L), scale = table.shape, ids.shape, float(scale)
    P = 0 if position_table is None else len(position_table)
    ids = ids.contiguous()
    if positions is not None:
        positions = positions.contiguous()
    tile = tile or choose_tile(D)
    out = torch.empty((B, L, D), dtype=table.dtype, device=table.device)
    where = table if position_table is None else position_table
    forward_kernel[(triton.cdiv(B * L, tile.block_n), triton.cdiv(D, tile.block_d))](
        ids, table, where, ids if positions is None else positions, out,
        dropout.in_memory(dropout_p, seed, table),
        table.stride(), where.stride(),
        B * L, L, V, P, D,
        scale, dropout.threshold(dropout_p), dropout.scale(dropout_p),
        HAS_POSITIONS=position_table is not None,
        COUNTED=positions is None,
        DROPOUT=dropout_p > 0.0,
        BLOCK_N=tile.block_n,
        BLOCK_D=tile.block_d,
        num_warps=tile.num_warps,
    )  # fmt: skip
    return out, Cache(ids, positions, V, D, P if learned else 0, scale, dropout_p, seed)


def backward(
    dout: torch.Tensor,
    cache: Cache,
    *,
    into: checks.Into = None,
    tile: Tile | None = None,
) -> Gradients:
    """Return the gradients of both tables: sums over the places that looked a row up.

    Arguments and results are those of `reference.positional_encoding.backward`; `into` may have any
    strides and any dtype that kernels take. `tile` overrides the table's choice.
    """
    checks.gradient("dout", dout, (*cache.ids.shape, cache.columns))
    precision.supported("dout", dout)
    learned = (cache.position_rows, cache.columns) if cache.position_rows else None
    dtable, dposition_table = layout.checked_into(
        into, dtable=(cache.rows, cache.columns), dposition_table=learned
    )
    dout = dout.contiguous()
    # (3) drop out: both sums draw the mask again
    scale, drawn = cache.scale, (cache.dropout_p, cache.seed)
    # (2) add the position
    if rows := cache.position_rows:
        if cache.positions is None:
            places = count_places(cache.ids, rows)
        else:
            places = sort_places(cache.positions, rows)
        dposition_table = sum_places(dout, places, 1.0, *drawn, into=dposition_table, tile=tile)
    # (1) look up and scale
    places = sort_places(cache.ids, cache.rows)
    dtable = sum_places(dout, places, scale, *drawn, into=dtable, tile=tile)
    return Gradients(dtable, dposition_table)


def count_places(ids: torch.Tensor, rows: int) -> Places:
    """Return the places of positions 0 … L − 1, B of each: their order is known."""
    B, L = ids.shape
    order = torch.arange(B * L, device=ids.device).reshape(B, L).T.reshape(-1)
    starts = torch.arange(rows + 1, device=ids.device).clamp(max=L) * B
    return Places(order, order % L, starts)
