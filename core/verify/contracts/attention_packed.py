"""Packed sequences in attention's contract: drawn, padded to batches, or taken one by one.

What is true of packed sequences is what is true of a batch for each, followed by padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from twofold.core.verify.domains import Array
from twofold.core.verify.rounding import Approx
from twofold.reference.attention_scores import BlockSize, Options, blocks, pack, unpack

if TYPE_CHECKING:  # it imports this
    from twofold.core.verify.contracts.attention_domain import Case, Inputs

T = TypeVar("T")


def starts(rng: np.random.Generator, sequences: int, longest: int) -> Array:
    """Draw where sequences begin, and where the last ends: any lengths, but not all empty."""
    lengths = rng.integers(1, longest + 1, sequences) * (rng.random(sequences) < 0.8)
    lengths[rng.integers(sequences)] = rng.integers(1, longest + 1)
    return _starts(lengths)


def _starts(lengths: Array) -> Array:
    return np.concatenate(([0], lengths.cumsum())).astype(np.int32)


def packed(given: Inputs, queries: Array, keys: Array) -> Inputs:
    """Return inputs of batches as packed ones, with so many queries and keys in each."""
    q, k = _starts(queries), _starts(keys)
    made = along(given, lambda a: pack(a, q), lambda a: pack(a, k))
    return made._replace(cu_seqlens_q=q, cu_seqlens_k=k)


def along(
    given: Inputs, queries: Callable[[Array], Array], keys: Callable[[Array], Array]
) -> Inputs:
    """Return the inputs with every array changed that has an axis of queries, or one of keys."""
    return given._replace(
        q=queries(given.q),
        k=keys(given.k),
        v=keys(given.v),
        dout=queries(given.dout),
        dlse=None if given.dlse is None else queries(given.dlse),
    )


def padded(case: Case, given: Inputs) -> Inputs:
    """Return the inputs with a batch for each packed sequence, zeros after it."""
    batches = along(
        given,
        lambda a: unpack(a, given.cu_seqlens_q, case.seqlen_q),
        lambda a: unpack(a, given.cu_seqlens_k, case.seqlen_k),
    )
    return batches._replace(cu_seqlens_q=None, cu_seqlens_k=None)


def places(given: Inputs, s: int) -> tuple[slice, slice]:
    """Return the rows of q and of k that are packed sequence s."""
    (i, m), (j, n) = (
        (int(x[s]), int(x[s + 1]))
        for x in (given.cu_seqlens_q, given.cu_seqlens_k)
        if x is not None
    )
    return slice(i, m), slice(j, n)


def alone(case: Case, given: Inputs, s: int) -> tuple[Case, Inputs]:
    """Return packed sequence s as a call of its own."""
    rows, keys = places(given, s)
    one = replace(
        case,
        packed=False,
        batch=1,
        seqlen_q=rows.stop - rows.start,
        seqlen_k=keys.stop - keys.start,
    )

    def cut(x: Array | None, axes: int, size: BlockSize = 1) -> Array | None:
        if x is None:
            return None
        every, here = (
            blocks(Options(block_size=size), c.seqlen_q, c.seqlen_k) for c in (case, one)
        )
        mine = (slice(s, s + 1), slice(None), *map(slice, here))
        return np.broadcast_to(x, (case.batch, case.heads, *every)[:axes])[mine[:axes]]

    own = along(given, lambda a: a[:, :, rows], lambda a: a[:, :, keys])
    return one, own._replace(
        mask=cut(given.mask, 4),
        bias=cut(given.bias, 4),
        alibi_slopes=cut(given.alibi_slopes, 2),
        key_lengths=cut(given.key_lengths, 1),
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        block_mask=cut(given.block_mask, 4, case.block_size or 1),
    )


def pack_approx(x: Approx, starts: Array | None) -> Approx:
    """Pack an `Approx` of batches, as `pack` does an array of them."""
    return x.moved(lambda a: pack(a, starts))


def unpack_approx(x: Approx, starts: Array | None, longest: int | None) -> Approx:
    """Unpack an `Approx` of packed sequences, as `unpack` does an array of them."""
    return x.moved(lambda a: unpack(a, starts, longest))


def repacked(found: Mapping[str, T], given: Inputs, move: Callable[[T, Any], T]) -> dict[str, T]:
    """Return outputs of batches as those of packed sequences; `move` packs one as `pack` does."""
    starts = dict.fromkeys(("out", "lse", "dq", "ddout", "ddlse"), given.cu_seqlens_q)
    starts |= dict.fromkeys(("dk", "dv"), given.cu_seqlens_k)
    return {name: move(x, starts.get(name)) for name, x in found.items()}
