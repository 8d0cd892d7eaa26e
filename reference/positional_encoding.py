r"""Positions added to embeddings, fused with the look-up, scale and dropout around them.

    out[b, t] = dropout(scale · table[ids[b, t]] + position_table[positions[b, t]])

The position table is learned, or holds the sinusoids of Vaswani et al. 2017, "Attention Is All You
Need", section 3.5:

    PE(pos, 2i)     = sin(pos / 10000^(2i/d_model))
    PE(pos, 2i + 1) = cos(pos / 10000^(2i/d_model))

`B` batch, `L` length, `V` rows of the table, `P` rows of the position table, `D` d_model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks, dropout
from twofold.reference.embedding import scatter_add
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """What `backward` needs; `positions` is None if the position table is not learned."""

    ids: Array
    positions: Array | None
    rows: int
    columns: int
    position_rows: int
    scale: float
    scaled_mask: Array | None  # dropout's; the kernel draws it again instead


class Gradients(NamedTuple):
    """Gradients of the tables; `dposition_table` is None where it is not learned."""

    dtable: Array
    dposition_table: Array | None


def check(
    ids: Any,
    table: Any,
    position_table: Any,
    positions: Any,
    learned: Any,
    scale: float,
    dropout_p: float,
    seed: Any,
) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.integer(ids=ids, positions=positions)
    checks.floating(table=table, position_table=position_table)
    checks.shape("ids", ids, ("B", "L"))
    checks.shape("table", table, ("V", "D"))
    checks.same_device(ids=ids, table=table, position_table=position_table, positions=positions)
    if position_table is not None:
        checks.shape("position_table", position_table, ("P", int(table.shape[1])))
        if positions is not None:
            checks.shape("positions", positions, tuple(ids.shape))
        else:
            rows, length = int(position_table.shape[0]), int(ids.shape[1])
            checks.require(
                rows >= length, "position_table.shape[0]", rows, f"at least ids.shape[1], {length}"
            )
    elif positions is not None:
        checks.require(False, "positions", "given", "None without position_table")
    checks.flag("learned", learned)
    checks.number("scale", scale)
    checks.probability("dropout_p", dropout_p)
    checks.seed(seed, ids)


def check_sinusoidal(positions: Any, d_model: int) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.integer(positions=positions)
    checks.shape("positions", positions, ("L",))
    checks.count("d_model", d_model, 1)


def sinusoidal(positions: Array, d_model: int, dtype: Any = "float64") -> Array:
    """Return the sinusoids of each position.

    Args:
        positions: (L,), int32 or int64.
        d_model: number of columns; an odd one ends with a sine.
        dtype: of the result. Angles are float64 throughout: at positions up to a million, results
            are off by their own rounding and at most 4e-10, many units in the last place near a
            zero.

    Returns:
        the sinusoids, (L, d_model), of this dtype.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check_sinusoidal(positions, d_model)
    checks.floating_dtype("dtype", dtype, checks.NUMPY_FLOATING)
    columns = np.arange(d_model)
    angle = positions[:, None] / 10000.0 ** (2 * (columns // 2) / d_model)  # (L, d_model)
    return np.where(columns % 2 == 0, np.sin(angle), np.cos(angle)).astype(dtype)


def forward(
    ids: Array,
    table: Array,
    position_table: Array | None,
    *,
    positions: Array | None = None,
    learned: bool = True,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Array, Cache]:
    """Look up embeddings and positions, add, drop out.

    Args:
        ids: (B, L), int32 or int64, each at least 0 and below V.
        table: (V, D), floating.
        position_table: (P, D), of table's dtype, or None for no positions.
        positions: (B, L), int32 or int64, rows of the position table, each at least 0 and below P,
            if there is one; by default 0 … L − 1, which needs P ≥ L.
        learned: whether the position table gets a gradient.
        scale: multiplies the embedding (√d_model in the paper).
        dropout_p: probability of dropping an element of the sum.
        seed: determines the dropout mask: a number, or a 0-d int64 array that holds it.

    Returns:
        out (B, L, D), of the table's dtype, and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
        IndexError: an id or position outside its table, naming its place (the kernel gives NaN).
    """
    check(ids, table, position_table, positions, learned, scale, dropout_p, seed)
    checks.in_range("ids", ids, len(table))
    # (1) look up and scale
    out = widened(table.take(ids, axis=0))  # (B, L, D)
    if scale != 1.0:
        out *= out.dtype.type(scale)
    # (2) add the position
    position_rows = 0
    if position_table is not None:
        position_rows = len(position_table)
        if positions is None:
            positions = np.arange(ids.shape[1])
        checks.in_range("positions", positions, position_rows)
        out += position_table[positions]
    # (3) drop out
    scaled_mask = None
    if dropout_p > 0.0:
        scaled_mask = dropout.scaled_mask(out.shape, dropout_p, seed, out.dtype)
        out *= scaled_mask
    kept = positions if learned and position_table is not None else None
    cache = Cache(ids, kept, len(table), table.shape[1], position_rows, scale, scaled_mask)
    return rounded(out, table.dtype), cache


def backward(dout: Array, cache: Cache, *, into: checks.Into = None) -> Gradients:
    """Return the gradients of both tables: sums over the places that looked a row up.

    Args:
        dout: (B, L, D), floating.
        cache: from `forward`.
        into: (dtable, dposition_table), arrays (V, D) and (P, D) to write to instead of new ones;
            None for a new one, and for positions that are not learned.

    Returns:
        dtable (V, D), and dposition_table (P, D) or None if positions are not learned; of dout's
        dtype if they are new.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.gradient("dout", dout, (*cache.ids.shape, cache.columns))
    learned = None if cache.positions is None else (cache.position_rows, cache.columns)
    dtable, dposition_table = checks.into(
        into, dtable=(cache.rows, cache.columns), dposition_table=learned
    )
    if dtable is None:
        dtable = np.empty((cache.rows, cache.columns), dout.dtype)
    if dposition_table is None and learned is not None:
        dposition_table = np.empty(learned, dout.dtype)
    # (3) drop out
    if cache.scaled_mask is not None:
        dout = widened(dout) * cache.scaled_mask
    # (2) add the position
    if cache.positions is not None:
        positions = np.broadcast_to(cache.positions, dout.shape[:-1])
        dposition_table = scatter_add(dout, positions, cache.position_rows, dposition_table)
    # (1) look up and scale
    dout = widened(dout)
    own = dtable if dtable.dtype == dout.dtype else None
    sums = scatter_add(dout, cache.ids, cache.rows, own)
    if cache.scale != 1.0:
        sums *= sums.dtype.type(cache.scale)
    return Gradients(rounded(sums, dtable.dtype, dtable), dposition_table)
