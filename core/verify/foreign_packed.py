"""Attention of packed sequences: q (total, heads, head_dim), and where each sequence begins.

Such a function is told `cu_seqlens_q` and `cu_seqlens_k`, mostly also the longest of both. The
plain call it is made has q (1, heads, total, head_dim) and an option of all four. Without it
batches are sequences of the same length, so that it is asked for all that attention is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any, NamedTuple

from twofold.core.verify.foreign_kinds import EITHER, parameters, showing

SHAPE = "(total, heads, head_dim)"
NAMES = {
    "cu_seqlens_q": ("cu_seqlens_q", "cu_seq_q", "cu_seqlen_q"),
    "cu_seqlens_k": ("cu_seqlens_k", "cu_seqlens_kv", "cu_seq_k", "cu_seqlen_k"),
    "max_seqlen_q": ("max_seqlen_q", "max_q"),
    "max_seqlen_k": ("max_seqlen_k", "max_seqlen_kv", "max_k"),
}
OPTION = "packed_sequences"  # of the plain call: all four


class Sequences(NamedTuple):
    """Where sequences begin and the last ends, (sequences + 1,) int32, and the longest."""

    cu_seqlens_q: Any
    cu_seqlens_k: Any
    max_seqlen_q: int
    max_seqlen_k: int


def of_packed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that insists on packed sequences as a plain call; any other as it is."""
    taken = parameters(function)
    names = {ours: name for ours, known in NAMES.items() for name in known if name in taken}
    starts = [names.get(name) for name in ("cu_seqlens_q", "cu_seqlens_k")]
    if any(name is None or taken[name].default is not Parameter.empty for name in starts):
        return function

    def packed(
        q: Any, k: Any, v: Any, *, packed_sequences: Sequences | None = None, **options: Any
    ) -> Any:
        batches, heads, length = q.shape[:3]
        told = packed_sequences or _batches(q, k)
        where = {name: getattr(told, ours) for ours, name in names.items()}
        given = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        found = function(*given, **where, **options)
        out, *rest = found if isinstance(found, tuple) else (found,)
        if getattr(out, "ndim", 0) == 3:
            out = out.unflatten(0, (batches, length)).transpose(1, 2)
        rest = [
            x.unflatten(1, (batches, length)).transpose(0, 1)  # lse (heads, total)
            if tuple(getattr(x, "shape", ())) == (heads, batches * length)
            else x
            for x in rest
        ]
        return (out, *rest) if isinstance(found, tuple) else out

    first = [Parameter(n, EITHER) for n in ("q", "k", "v")]
    tensors = [n for n in taken if n not in names.values()][:3]
    rest = [
        p if p.kind is Parameter.VAR_KEYWORD else p.replace(kind=Parameter.KEYWORD_ONLY)
        for n, p in taken.items()
        if n not in (*names.values(), *tensors) and p.kind is not Parameter.VAR_POSITIONAL
    ]
    option = Parameter(OPTION, Parameter.KEYWORD_ONLY, default=None)
    return showing(packed, inspect.Signature([*first, option, *rest]))


def _batches(q: Any, k: Any) -> Sequences:
    """Return batches as sequences, all of the same lengths."""
    import torch

    starts = (
        torch.arange(len(x) + 1, dtype=torch.int32, device=x.device) * x.shape[2] for x in (q, k)
    )
    return Sequences(next(starts), next(starts), q.shape[2], k.shape[2])
