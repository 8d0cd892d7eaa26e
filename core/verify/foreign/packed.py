"""Attention of packed sequences: q (total, heads, head_dim), and where each sequence begins.

Such a function takes `cu_seqlens_q` and `cu_seqlens_k`, usually also the longest of both; or
`cu_seqlens`, where queries and keys have the same sequences. As a plain call it has q
(1, heads, total, head_dim) and one option for all four. Without that option batches are passed as
sequences of equal length, so that it is tried on every case of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any, NamedTuple

from twofold.core.verify.foreign.kinds import Seen, parameters, taking
from twofold.core.verify.foreign.orders import each_output

TENSORS = ("q", "k", "v")
SHAPE = "(total, heads, head_dim)"
OF_Q, OF_K = ("cu_seqlens_q", "max_seqlen_q"), ("cu_seqlens_k", "max_seqlen_k")
# What a function may call each of them, or both at once.
NAMES = {
    OF_Q[:1]: ("cu_seqlens_q", "cu_seq_q", "cu_seqlen_q"),
    OF_K[:1]: ("cu_seqlens_k", "cu_seqlens_kv", "cu_seq_k", "cu_seqlen_k"),
    OF_Q[1:]: ("max_seqlen_q", "max_q"),
    OF_K[1:]: ("max_seqlen_k", "max_seqlen_kv", "max_k"),
    (OF_Q[0], OF_K[0]): ("cu_seqlens", "cu_seq_lens", "cu_seqlen"),
    (OF_Q[1], OF_K[1]): ("max_seqlen", "max_s"),
}
OPTION = "packed_sequences"  # of the plain call: all four


class Sequences(NamedTuple):
    """Where sequences begin and the last ends, (sequences + 1,) int32, and the longest."""

    cu_seqlens_q: Any
    cu_seqlens_k: Any
    max_seqlen_q: int
    max_seqlen_k: int


def of_packed(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a function that requires packed sequences as a plain call; others as they are.

    This is noted in `seen`.
    """
    taken = parameters(function)
    names = {name: ours for ours, known in NAMES.items() for name in known if name in taken}
    insisted = {x for n, ours in names.items() if taken[n].default is Parameter.empty for x in ours}
    if not {OF_Q[0], OF_K[0]} <= insisted:
        return function
    seen.order = SHAPE

    def packed(
        q: Any, k: Any, v: Any, *, packed_sequences: Sequences | None = None, **options: Any
    ) -> Any:
        batches, heads, length = q.shape[:3]
        told = packed_sequences or _batches(q, k)
        where = {name: _of(told, ours) for name, ours in names.items()}
        given = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))

        def apart(x: Any) -> Any:
            if getattr(x, "ndim", 0) == 3:
                return x.unflatten(0, (batches, length)).transpose(1, 2)
            if tuple(getattr(x, "shape", ())) == (heads, batches * length):  # lse
                return x.unflatten(1, (batches, length)).transpose(0, 1)
            return x

        return each_output(function(*given, **where, **options), apart)

    option = Parameter(OPTION, Parameter.KEYWORD_ONLY, default=None)
    _q, _k, _v, *rest = [p for n, p in taken.items() if n not in names]
    return taking(packed, TENSORS, [option, *rest])


def _of(told: Sequences, names: Sequence[str]) -> Any:
    """Return one of these, or one that stands for both: starts must agree, the longest counts.

    Raises:
        NotImplementedError: the starts differ, which the function has no way to take.
    """
    import torch

    first, *others = found = [getattr(told, name) for name in names]
    if not isinstance(first, torch.Tensor):
        return max(found)
    if not all(torch.equal(first, x) for x in others):
        raise NotImplementedError("queries and keys are of the same sequences, told once")
    return first


def _batches(q: Any, k: Any) -> Sequences:
    """Return batches as sequences of equal length."""
    import torch

    starts = (
        torch.arange(len(x) + 1, dtype=torch.int32, device=x.device) * x.shape[2] for x in (q, k)
    )
    return Sequences(next(starts), next(starts), q.shape[2], k.shape[2])
