"""How far decoding with a cache may be from the mathematics: a bound, derived.

The bound is that of the two steps, one after the other. A part of a sequence is a call of attention
(`attention_bound`) with its keys lo … hi: what looks at positions (the band, ALiBi, a function of
the scores) is told where the part begins, and only the first part has a sink. The part's output is
not cast, so its bound is the one before `stored`; output and log-sum-exp, in float32, go into the
merge (`merge_attention_domain.merge`) as parts known up to an error. Only what the merge returns is
cast.

Log-sum-exps err by u of themselves, besides the errors of the sums, and weigh whole parts: where
they are large the bound is wider than attention's, which rounds none in between. The reference has
no parts, and neither have its cases (`contract.fitting`), except for a pinned one of `SPLIT` keys
and one more: merging that key rounds more often than adding it.

Queries are rotated to their positions as attention's are (`attention_rotary`).

`B` batch, `H` heads, `K` heads of keys and values, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.verify import attention_bound
from twofold.core.verify.attention_bound import partnered
from twofold.core.verify.contracts import attention_domain as attention
from twofold.core.verify.contracts import attention_rotary
from twofold.core.verify.contracts.attention_decode_domain import Case, Inputs, inputs, whole
from twofold.core.verify.contracts.merge_attention_domain import Merged, merge
from twofold.core.verify.domains import Array
from twofold.core.verify.rounding import Approx, concatenate, exact, machine, stack
from twofold.kernels.attention_decode_tiles import choose_split
from twofold.reference import dropout
from twofold.reference.attention_scores import Options, ScoreMod, attended, blocks
from twofold.reference.rotary import Rotary


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given = given or inputs(case)
    numbers = [b for b in range(case.batch) if given.queries(b)]
    found = [sequence(case, given, b) for b in numbers]
    statistics = attention.statistics(whole(case))
    return {
        "out": beside([x.out for x in found], given).returned(case.dtype),
        "lse": beside([x.lse for x in found], given).returned(statistics),
    }


def beside(sequences: list[Approx], given: Inputs) -> Approx:
    """Join the sequences' arrays, (1, H, M, …) each, into batches, or one after the other."""
    if given.starts is None:
        return concatenate(sequences)
    moved = [x.moved(lambda a: a.swapaxes(0, 2)) for x in sequences]  # (M, H, 1, …)
    return concatenate(moved).moved(lambda a: a.swapaxes(0, 2))


def sequence(case: Case, given: Inputs, b: int) -> Merged:
    """Return the merged parts of one sequence, before anything is cast."""
    length = int(given.lengths[b])
    size = case.split or choose_split(case.groups * case.queries, case.capacity)
    if case.dropout_p > 0.0:
        size = -(-size // 8) * 8  # dropout draws 8 neighbours together
    on = machine(attention.statistics(whole(case)))
    outs, lses = zip(
        *(part(case, given, b, lo, min(lo + size, length)) for lo in range(0, length or 1, size)),
        strict=True,
    )
    return merge(*(stack([replace(x, on=on) for x in parts]) for parts in (outs, lses)))


def part(case: Case, given: Inputs, b: int, lo: int, hi: int) -> tuple[Approx, Approx]:
    """Return attention to keys lo … hi of one sequence: out (1, H, M, D) and lse (1, H, M).

    A sequence without keys is given one that no query may attend.
    """
    call, x, M, length = whole(case), given.call, given.queries(b), int(given.lengths[b])
    on, pairs = machine(case.dtype, case.allow_tf32), (1, case.heads, M, max(length, 1))
    options = own(case, given, b, M)
    live = attended(pairs, options)
    assert live is not None  # there are lengths
    live = np.broadcast_to(live, pairs)[..., lo : max(hi, 1)]
    q = exact(given.of(x.q, b), on)
    if x.rotary is not None:
        turns = at_positions(x.rotary, b, length - M, M)
        q = attention_rotary.turned(given.of(x.q, b), turns, on)
    k, v = (exact(np.nan_to_num(a[b : b + 1, :, lo : max(hi, 1)]), on) for a in (x.k, x.v))
    weights = np.ones(live.shape)
    if case.dropout_p > 0.0:
        kept = dropout.attention_keep_mask(pairs, case.dropout_p, case.seed, b)
        weights = kept[..., lo : max(hi, 1)] * dropout.scale(case.dropout_p)
    problem = attention_bound.Problem(
        q, k, v, live, weights, attention.scale(call), there(options, M, b, lo, hi),
        # The diagonal of `attention_problem` ends at the last key, here the part's.
        np.arange(M) + length - hi, M,
    )  # fmt: skip
    forward = attention_bound.forward(problem)
    out = attention_bound.output(problem, forward.weights, forward.t).where(partnered(problem.kept))
    return out, forward.lse[..., 0]


def own(case: Case, given: Inputs, b: int, queries: int) -> Options:
    """Return the options of a sequence's queries and keys, or of one key where it has none."""
    options = attention.options(whole(case), given.call)
    every = (case.queries, case.capacity)
    here = (queries, max(int(given.lengths[b]), 1))

    def cut(x: Array | None, every: tuple[int, ...], here: tuple[int, ...]) -> Array | None:
        if x is None:
            return None
        mine = (slice(b, b + 1), slice(None), *map(slice, here))
        return np.broadcast_to(x, (case.batch, case.heads, *every))[mine]

    live = options.block_mask
    if live is not None:
        live = cut(live, blocks(options, *every), blocks(options, *here))
    return options._replace(
        alibi_slopes=cut(options.alibi_slopes, (), ()),
        bias=cut(options.bias, every, here),
        mask=cut(options.mask, every, here),
        block_mask=live,
        key_lengths=given.lengths[b : b + 1],
        rotary=None,
    )


def at_positions(rotary: Rotary, b: int, first: int, M: int) -> attention_rotary.Turns:
    """Return the angles of M positions of a sequence, those below 0 being 0."""
    position = np.arange(first, first + M)
    cos, sin = (
        np.where((position < 0)[:, None], still, (x if x.ndim == 2 else x[b])[position.clip(0)])
        for x, still in ((rotary.cos, 1.0), (rotary.sin, 0.0))
    )
    return cos, sin, rotary.interleaved


def there(options: Options, M: int, b: int, lo: int, hi: int) -> Options:
    """Return the options of keys lo … hi of one sequence, with positions counted from lo."""
    mod = options.score_mod

    def function(s: Any, one: Array, h: Array, i: Array, j: Array, args: tuple[Any, ...]) -> Any:
        assert mod is not None
        return mod.function(s, one + b, h, i + hi - M, j + lo, args)

    return options._replace(
        bias=None if options.bias is None else options.bias[..., lo : max(hi, 1)],
        score_mod=None if mod is None else ScoreMod(function, lambda s, *_: s, mod.args),
        sinks=options.sinks if lo == 0 else None,
    )
