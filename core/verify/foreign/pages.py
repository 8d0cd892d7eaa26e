"""Decoding whose cache is laid out differently: pages in one list, or k and v in one tensor.

- The pages of all sequences in one list, as in FlashInfer: those of sequence b are
  `kv_indices[kv_indptr[b]:kv_indptr[b + 1]]`, and the function is told how many keys each sequence
  has, or its last page has. A function told neither takes a list of keys, like SGLang's kernels,
  with caches (slots, heads, head_dim) and one query per sequence.
- Caches in one tensor, (pages, 2, …) or (2, pages, …): which of the two is found by trial.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any

from twofold.core.verify.foreign.decoding import OF_ONE_QUERY, one_query
from twofold.core.verify.foreign.kinds import Seen, parameters, taking
from twofold.core.verify.foreign.plain import names_of

TENSORS = ("q", "k_cache", "v_cache")
CACHES = ("kv_cache", "paged_kv_cache", "kv_caches", "kv_data", "kv")
JOINED = {1: "k and v in one tensor (pages, 2, …)", 0: "k and v in one tensor (2, pages, …)"}
STARTS = ("kv_indptr", "paged_kv_indptr", "kv_page_indptr")
PAGES = ("kv_indices", "paged_kv_indices", "kv_page_indices")
LAST = ("kv_last_page_len", "paged_kv_last_page_len", "kv_last_page_lens", "last_page_len")
OF_SLOTS = "q (batch, heads, head_dim), caches (slots, heads, head_dim)"
# Options of the plain call that the function's own are made from.
MADE_OF = [Parameter(n, Parameter.KEYWORD_ONLY) for n in ("key_lengths", "block_table")]
SIZE = Parameter("page_size", Parameter.KEYWORD_ONLY)


def of_one_cache(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a function of one cache holding k and v as one of two caches; others as they are.

    `seen` notes the ways in which the cache may hold them.
    """
    import torch

    taken = parameters(function)
    _, cache, *_ = [*taken, "", ""]
    if cache not in CACHES:
        return function

    def stacked(axis: int) -> Callable[..., Any]:
        def call(q: Any, k_cache: Any, v_cache: Any, **options: Any) -> Any:
            return function(q, torch.stack((k_cache, v_cache), dim=axis), **options)

        return taking(call, TENSORS, list(taken.values())[2:])

    seen.ways = {words: stacked(axis) for axis, words in JOINED.items()}
    return next(iter(seen.ways.values()))


def of_listed(function: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """Return a function of a list of pages, or of keys, as one of a page table; others as they are.

    `seen` notes the order of axes where this leaves none to be found.
    """
    taken = parameters(function)
    starts, pages, last, lengths, size = (
        next((n for n in known if n in taken), "")
        for known in (STARTS, PAGES, LAST, names_of("key_lengths"), names_of("page_size"))
    )
    if not starts or not pages:
        return function
    of_keys = not last and not lengths
    rest = [p for n, p in taken.items() if n not in (starts, pages, last, lengths, size)][3:]

    def listed(
        q: Any, k: Any, v: Any, *, key_lengths: Any, block_table: Any, page_size: int, **how: Any
    ) -> Any:
        counts = key_lengths if of_keys else -(-key_lengths // page_size)
        how[starts] = _sums(counts)
        how[pages] = _listed(block_table, counts, page_size if of_keys else 1)
        how |= {last: (key_lengths - 1) % page_size + 1} if last else {}
        how |= {lengths: key_lengths} if lengths else {}
        how |= {size: 1 if of_keys else page_size} if size else {}
        if of_keys:  # (pages, heads, page_size, head_dim) to (slots, heads, head_dim)
            k, v = (x.transpose(1, 2).flatten(0, 1) for x in (k, v))
        return function(q, k, v, **how)

    call = taking(listed, TENSORS, [*MADE_OF, SIZE, *rest])
    if not of_keys:
        return call
    seen.order, seen.fields = OF_SLOTS, OF_ONE_QUERY
    return one_query(call)


def _sums(counts: Any) -> Any:
    """Return where each sequence begins and the last ends, (B + 1,) int32."""
    import torch

    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def _listed(table: Any, counts: Any, page_size: int) -> Any:
    """Return the first `counts` pages, or slots of keys, of each sequence's row, int32."""
    import torch

    within = torch.arange(page_size, device=table.device, dtype=table.dtype)
    rows = (table[..., None] * page_size + within).flatten(1)
    return torch.cat([row[:n] for row, n in zip(rows, counts.tolist(), strict=True)])
