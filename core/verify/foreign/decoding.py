"""Decoding with a cache as a plain call: f(q, k_cache, v_cache, options…) -> out, or out and lse.

What lies after a sequence's last key is finite, like earlier contents of a cache, and entries of
the table after its last page name an existing page. Every query has a key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core import ops
from twofold.core.verify.contract import Inapplicable
from twofold.core.verify.contracts import attention_decode_domain as domain
from twofold.core.verify.contracts import attention_domain as attention
from twofold.core.verify.contracts.attention_decode_properties import live
from twofold.core.verify.foreign.calls import STALE, Call, with_stale
from twofold.core.verify.foreign.kinds import showing
from twofold.core.verify.foreign.orders import each_output, heads_inside, stacked
from twofold.core.verify.foreign.plain import Plain, names_of

TOLD = ("key_heads", "page_size", "longest", "max_seqlen_q")  # for functions that require them
OPTIONS = ("softmax_scale", "causal", "window_size", "softcap", "alibi_slopes", "sinks")


def inputs(case: domain.Case) -> domain.Inputs:
    """Return the contract's inputs, changed so that every query has a key."""
    drawn = domain.inputs(case).lengths
    lengths = np.maximum(drawn, case.queries if _aligned(case) else 1)
    made = domain.inputs(replace(case, full=True)).having(key_lengths=lengths)
    return made._replace(table=domain.table(case, lengths, case.seed))


def call(side: ops.Side, case: domain.Case, given: domain.Inputs) -> Call:
    """Return decoding as a plain call.

    Raises:
        Inapplicable: a query has no key.
    """
    if not live(case, given).all():
        raise Inapplicable("a query without keys is what its conventions make it")
    whole = domain.whole(case)
    of_values = replace(whole, layout=domain.OF_VALUES.get(case.layout, case.layout))
    k, v = (finite(x, case, given) for x in (given.call.k, given.call.v))
    tensors = {
        "q": attention.place(side, given.call.q, whole),
        "k_cache": attention.place(side, k, whole),
        "v_cache": attention.place(side, v, of_values),
    }
    placed = attention.placed(side, whole, domain.roomy(case, given.call))._asdict()
    options = {name: placed[name] for name in OPTIONS}
    table = None if given.table is None else np.maximum(given.table, 0)
    options |= {
        "key_lengths": side.asarray(given.lengths, "int32"),
        "block_table": None if table is None else side.asarray(table, "int32"),
        "enable_gqa": case.groups > 1,
        "causal": bool(case.causal),
        **dict.fromkeys(TOLD),
        "cu_seqlens_q": None if given.starts is None else side.asarray(given.starts, "int32"),
        "max_seqlen_q": None if given.starts is None else case.queries,
    }
    sizes = (k.shape[1], k.shape[2], int(given.lengths.max()), case.queries)
    insisted = {"softmax_scale": attention.scale(whole), **dict(zip(TOLD, sizes, strict=True))}
    return Call(tensors, options, {}, insisted)


def finite(x: domain.Array, case: domain.Case, given: domain.Inputs) -> domain.Array:
    """Return x as a cache holds it, with a stale number wherever no sequence has a key."""
    there = np.arange(case.capacity)[:, None] < given.lengths[:, None, None, None]  # (B, 1, N, 1)
    nowhere = np.isnan(domain.paged(np.zeros_like(x), case, given))
    return np.where(nowhere, STALE, domain.paged(with_stale(x, there), case, given))


def narrowed(case: domain.Case, size: int | None) -> domain.Case:
    """Give causal queries, and windowed ones, as many keys; `size` is a head_dim."""
    case = case if size is None else replace(case, head_dim=size)
    case = replace(case, causal=bool(case.causal))
    return replace(case, capacity=max(case.capacity, case.queries)) if _aligned(case) else case


def _aligned(case: domain.Case) -> bool:
    return bool(case.causal) or case.window_size is not None


def inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors with heads inside as one of the usual order.

    Packed queries are (total, heads, head_dim) then.
    """
    usual = heads_inside(function)

    def turned(q: Any, k_cache: Any, v_cache: Any, **options: Any) -> Any:
        if all(options.get(name) is None for name in names_of("cu_seqlens_q")):
            return usual(q, k_cache, v_cache, **options)
        caches = (x.transpose(1, 2) for x in (k_cache, v_cache))
        found = function(q[0].transpose(0, 1), *caches, **options)
        return each_output(found, lambda x: (x.transpose(0, 1) if x.ndim == 3 else x)[None])

    return showing(turned, function)


def one_query(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of q (batch, heads, head_dim) as one of the usual order, for one query."""

    def single(q: Any, k_cache: Any, v_cache: Any, **options: Any) -> Any:
        if q.shape[2] != 1:
            raise NotImplementedError("several queries of a sequence, where q has one")
        found = function(q[:, :, 0], k_cache, v_cache, **options)
        return each_output(found, lambda x: x.unsqueeze(2))

    return showing(single, function)


def one_query_heads_inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of q (batch, heads, head_dim), caches with heads inside as the usual."""

    def turned(q: Any, k_cache: Any, v_cache: Any, **options: Any) -> Any:
        return function(q, k_cache.transpose(1, 2), v_cache.transpose(1, 2), **options)

    return one_query(showing(turned, function))


def one_sequence(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of q (heads, head_dim), caches (heads, seqlen, head_dim) as the usual."""

    def each(q: Any, k_cache: Any, v_cache: Any, **options: Any) -> Any:
        if any(hasattr(x, "shape") for x in options.values()):
            raise NotImplementedError("an option is a tensor, where each sequence is a call")
        found = [function(q[b], k_cache[b], v_cache[b], **options) for b in range(len(q))]
        return stacked(found)

    return one_query(showing(each, function))


def one_sequence_heads_inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of q (heads, head_dim), caches (seqlen, heads, head_dim) as the usual."""

    def turned(q: Any, k_cache: Any, v_cache: Any, **options: Any) -> Any:
        return function(q, k_cache.transpose(0, 1), v_cache.transpose(0, 1), **options)

    return one_sequence(showing(turned, function))


CACHE: dict[str, Any] = {"heads": 2, "capacity": 70, "head_dim": 16}
INSIDE = "caches (batch, seqlen, heads, head_dim) or (pages, page_size, heads, head_dim)"
OF_ONE_QUERY = {"queries": 1}
OF_ONE_SEQUENCE = {**OF_ONE_QUERY, "page_size": 0, "full": True, "alibi": None, "sinks": False}
PLAIN = Plain(
    call=call,
    shapes="q (batch, heads, queries, head_dim), caches (batch, heads, seqlen, head_dim) or, "
    "with a block_table, (pages, heads, page_size, head_dim)",
    outputs=("out", "lse"),
    options={
        "key_lengths": {"full": True},
        "block_table": {"page_size": 0},
        "cu_seqlens_q": {"packed": False},
        "softmax_scale": {"softmax_scale": None},
        "causal": {"causal": False},
        "window_size": {"window_size": None},
        "softcap": {"softcap": None},
        "alibi_slopes": {"alibi": None},
        "sinks": {"sinks": False},
        "enable_gqa": {"groups": 1},
    },
    told=TOLD,
    always={
        "dropout_p": 0.0,
        "score_mod": None,
        "bias": None,
        "mask": None,
        "block_mask": None,
        "block_size": None,
        "rotary": None,
        "split": None,
        "tile": None,
    },
    pinned=(
        {"heads": 3, "capacity": 67, "head_dim": 16, "full": True},
        {"queries": 5, "capacity": 131, "head_dim": 64, "full": True},
        {"batch": 1, "heads": 1, "capacity": 1027, "head_dim": 16, "full": True},
        {"batch": 1, "heads": 1, "capacity": 512, "head_dim": 64, "full": True},
    ),
    exercised={
        "key_lengths": ({**CACHE, "batch": 5},),
        "block_table": ({**CACHE, "page_size": 16}, {**CACHE, "page_size": 64, "full": True}),
        "cu_seqlens_q": (
            {**CACHE, "batch": 5, "queries": 7, "packed": True},
            {**CACHE, "batch": 5, "queries": 7, "packed": True, "causal": True, "full": True},
        ),
        "softmax_scale": ({**CACHE, "softmax_scale": 0.1},),
        "causal": ({**CACHE, "queries": 5, "causal": True},),
        "window_size": ({**CACHE, "window_size": (16, 0), "full": True},),
        "softcap": ({**CACHE, "softcap": 1.0, "logits": 10.0},),
        "alibi_slopes": ({**CACHE, "alibi": "H"},),
        "sinks": ({**CACHE, "sinks": True},),
        "enable_gqa": ({**CACHE, "heads": 4, "groups": 2},),
    },
    implied={"enable_gqa": {**CACHE, "heads": 4, "groups": 2, "full": True}},
    arranged={
        f"q (batch, queries, heads, head_dim), packed (total, heads, head_dim), {INSIDE}": inside,
    },
    fewer={
        "q (batch, heads, head_dim)": (one_query, OF_ONE_QUERY),
        f"q (batch, heads, head_dim), {INSIDE}": (one_query_heads_inside, OF_ONE_QUERY),
        "q (heads, head_dim), caches (heads, seqlen, head_dim)": (one_sequence, OF_ONE_SEQUENCE),
        "q (heads, head_dim), caches (seqlen, heads, head_dim)": (
            one_sequence_heads_inside,
            OF_ONE_SEQUENCE,
        ),
    },
    arranged_case={
        "heads": 5,
        "capacity": 5,
        "page_size": 3,
        "head_dim": 16,
        "full": True,
    },
    insisted={"block_table": {"page_size": 16}, "cu_seqlens_q": {"packed": True}},
    outside={"out": "queries without keys; a cache with numbers that are not finite"},
    narrowed=narrowed,
    inputs=inputs,
    conventions=("nothing attended", "clipped lengths", "pages outside"),
)
