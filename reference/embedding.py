r"""Embedding look-up: out[…] = table[ids[…]].

`V` rows of the table, `D` columns. The steps are numbered; the kernel carries the same numbers
where it does the same thing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """The ids, and the table's rows and columns."""

    ids: Array
    rows: int
    columns: int


class Gradients(NamedTuple):
    """Gradient of the table, (V, D)."""

    dtable: Array


def check(ids: Any, table: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("ids", ids)
    checks.integer(ids=ids)
    checks.floating(table=table)
    checks.shape("table", table, ("V", "D"))
    checks.require(0 not in ids.shape, "ids.shape", tuple(ids.shape), "without an empty dimension")
    checks.same_device(ids=ids, table=table)


def forward(ids: Array, table: Array) -> tuple[Array, Cache]:
    """Look up a row of the table for every id.

    Args:
        ids: (...), int32 or int64, each at least 0 and below V.
        table: (V, D), floating.

    Returns:
        out (..., D) and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
        IndexError: an id outside the table, naming its place. (The kernel, which cannot look at
            values without waiting for the GPU, gives NaN there.)
    """
    check(ids, table)
    checks.in_range("ids", ids, len(table))
    # (1) look up
    return table.take(ids, axis=0), Cache(ids, *table.shape)


def backward(dout: Array, cache: Cache, *, into: checks.Into = None) -> Gradients:
    """Return dtable: each row the sum of the gradients of the places that looked it up.

    Args:
        dout: (..., D), floating.
        cache: from `forward`.
        into: (dtable,), an array (V, D) to write to and return instead of a new one.

    Returns:
        dtable (V, D), of dout's dtype if it is new.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.gradient("dout", dout, (*cache.ids.shape, cache.columns))
    (dtable,) = checks.into(into, dtable=(cache.rows, cache.columns))
    return Gradients(scatter_add(dout, cache.ids, cache.rows, dtable))


def scatter_add(dout: Array, ids: Array, rows: int, dtable: Array | None = None) -> Array:
    """Return the sums of dout's rows by id, (rows, D), in the order of the places."""
    D = dout.shape[-1]
    flat, dout = ids.reshape(-1), dout.reshape(-1, D)
    if dtable is None:
        dtable = np.empty((rows, D), dout.dtype)
    dtable[...] = 0
    # (2) the places in the order of their ids
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))  # where each distinct id begins
    # (3) the sum over the places of each id
    dtable[ordered[starts]] = np.add.reduceat(widened(dout[order]), starts, axis=0)
    return dtable
