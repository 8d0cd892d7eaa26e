"""The domain of decoding with a cache, and its bound; `attention_decode` makes the contract.

The bound is that of the two steps, one after the other. A part of a sequence's keys is a call of
attention (`attention_bound`) with keys lo … hi of it: what looks at positions (the band, ALiBi, a
function of the scores) is told where it begins, and a sink is in the first part alone. Its output
is not cast, so that the bound is that before `stored`, and it and the log-sum-exp are in float32
what the merge (`merge_attention_domain.merge`) takes for parts known up to an error. Only what the
merge returns is cast.

Log-sum-exps err by u of themselves beside the errors of the sums, and weigh whole parts: where they
are large the bound is wider than attention's, which never rounds one in between. The reference has
no parts, nor have its cases (`contract.fitting`), but for a pinned one of `SPLIT` keys and another:
to merge that key rounds more often than to add it.

Queries are turned to their positions as attention's are (`attention_rotary`).

Keys after a sequence's last, and pages that no sequence has, hold NaN; the table's entries after
its last page are −1, and a bias is NaN past the capacity. So whatever looks there is seen.

`B` batch, `H` heads, `K` heads of keys and values, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.attention_bound import partnered
from twofold.core.verify.contracts import attention_domain as attention
from twofold.core.verify.contracts import attention_rotary
from twofold.core.verify.contracts.attention_scoring import SQUASHED, Scoring
from twofold.core.verify.contracts.merge_attention_domain import Merged, cast, merge
from twofold.core.verify.contracts.merge_attention_properties import concatenate, stack
from twofold.core.verify.rounding import Approx, exact, machine
from twofold.kernels.attention_decode_tiles import ENTRIES, SPLIT
from twofold.reference.attention_scores import (
    BlockSize,
    Options,
    ScoreMod,
    Window,
    attended,
    blocks,
)
from twofold.reference.rotary import Rotary

Array = domains.Array

LAYOUTS = attention.LAYOUTS
# Values need not lie as keys do.
OF_VALUES = {"transposed": "padded", "padded": "strided", "strided": "transposed"}
SPARE = 2  # pages that no sequence has
OPTIONS = (
    "softmax_scale", "causal", "window_size", "softcap", "score_mod", "alibi_slopes", "bias",
    "sinks", "mask", "key_lengths", "block_mask", "block_size", "rotary",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Lengths, and everything that varies about a call.

    `capacity` is how many keys a sequence has room for, in pages of `page_size`, in one piece where
    that is 0; how many it has is drawn, unless `full`. `split` is how many keys make a part, None
    for as many as the kernel chooses. The rest is attention's.
    """

    dtype: str = "float32"
    batch: int = 2
    heads: int = 2
    groups: int = 1
    queries: int = 1
    capacity: int = 5
    page_size: int = 0
    full: bool = False
    split: int | None = None
    head_dim: int = 8
    logits: float = 1.0
    magnitude: str = "unit"
    layout: str = "contiguous"
    softmax_scale: float | None = None
    causal: bool | str = False
    window_size: Window | None = None
    softcap: float | None = None
    score_mod: Scoring | None = None
    alibi: str | None = None
    bias: str | None = None
    sinks: bool = False
    mask: str | None = None
    block_mask: str | None = None
    block_size: BlockSize | None = None
    rotary: str | None = None
    allow_tf32: bool = False
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """A call of attention to all that there is room for, and the table of pages (B, pages)."""

    call: attention.Inputs
    table: Array | None

    def having(self, **changed: Any) -> Inputs:
        """Return the inputs with other arrays of the call."""
        return self._replace(call=self.call._replace(**changed))

    @property
    def lengths(self) -> Array:
        """How many keys each sequence has, (B,)."""
        assert self.call.key_lengths is not None
        return self.call.key_lengths


def whole(case: Case) -> attention.Case:
    """Return the call of attention to all that there is room for."""
    shared = {f.name for f in fields(Case)} & {f.name for f in fields(attention.Case)} - {"tile"}
    return attention.Case(
        seqlen_q=case.queries,
        seqlen_k=case.capacity,
        key_lengths=not case.full,
        **{name: getattr(case, name) for name in shared},
    )


def inputs(case: Case) -> Inputs:
    """Make a case's arrays: NaN after every sequence's last key."""
    call = attention.inputs(replace(whole(case), rotary=None))
    lengths = np.full(case.batch, case.capacity) if call.key_lengths is None else call.key_lengths
    absent = np.arange(case.capacity)[:, None] >= lengths[:, None, None, None]  # (B, 1, N, 1)
    k, v = (np.where(absent, np.nan, x) for x in (call.k, call.v))
    pages = table(case, lengths, case.seed)
    call = call._replace(k=k, v=v, key_lengths=lengths, rotary=angles(case))
    return Inputs(call, pages)


def angles(case: Case) -> Rotary | None:
    """Draw the angles of all positions that there is room for, and sometimes of some more."""
    rng = np.random.default_rng(case.seed)
    rows = np.zeros((case.batch, 1, room(case) + case.seed % 3, case.head_dim))
    all_alike = attention.Inputs(rows, rows, rows, rows, None, None, None)
    drawn = attention_rotary.drawn(rng, whole(case), all_alike)
    return None if drawn is None else drawn._replace(k_cos=None, k_sin=None)


def room(case: Case) -> int:
    """Return how many keys a sequence has room for: those of whole pages."""
    size = case.page_size or 1
    return -(-case.capacity // size) * size


def table(case: Case, lengths: Array, seed: int) -> Array | None:
    """Draw where the pages of every sequence are, (B, pages): −1 after its last."""
    if not case.page_size:
        return None
    pages = -(-case.capacity // case.page_size)
    places = np.random.default_rng(seed).permutation(case.batch * pages + SPARE)
    drawn = places[: case.batch * pages].reshape(case.batch, pages)
    return np.where(np.arange(pages) * case.page_size < lengths[:, None], drawn, -1)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, from `given` where the inputs are not the case's own."""
    given = given or inputs(case)
    call, how = whole(case), dict[str, Any]()
    if side.name != "reference":
        how["allow_tf32"] = case.allow_tf32
        if case.split is not None:
            how["split"] = case.split
        if case.tile is not None:
            how["tile"] = ENTRIES[case.tile][1]
    placed = attention.placed(side, call, roomy(case, given.call))._asdict()
    of_values = replace(call, layout=OF_VALUES.get(case.layout, case.layout))
    out, lse = side.attention_decode.forward(
        attention.place(side, given.call.q, call),
        attention.place(side, paged(given.call.k, case, given), call),
        attention.place(side, paged(given.call.v, case, given), of_values),
        block_table=None if given.table is None else side.asarray(given.table, "int32"),
        **{name: placed[name] for name in OPTIONS},
        **how,
    )
    return {"out": out, "lse": lse}


def roomy(case: Case, call: attention.Inputs) -> attention.Inputs:
    """Return a call whose bias and masks have all keys that there is room for."""

    def more(x: Array | None, size: int, filling: Any) -> Array | None:
        keys, wanted = (-(-n // size) for n in (case.capacity, room(case)))
        if x is None or x.ndim == 0 or x.shape[-1] != keys or keys == wanted:
            return x
        return np.pad(x, (*[(0, 0)] * (x.ndim - 1), (0, wanted - keys)), constant_values=filling)

    return call._replace(
        bias=more(call.bias, 1, np.nan),
        mask=more(call.mask, 1, True),
        block_mask=more(call.block_mask, Options(block_size=case.block_size or 1).block[1], True),
    )


def paged(x: Array, case: Case, given: Inputs) -> Array:
    """Put (B, K, N, D) into pages (P, K, page_size, D), NaN where nothing belongs."""
    if given.table is None:
        return x
    B, K, N, D = x.shape
    size, pages = case.page_size, given.table.shape[1]
    room = np.full((B, K, pages * size, D), np.nan)
    room[:, :, :N] = x
    pool = np.full((B * pages + SPARE, K, size, D), np.nan)
    used = given.table >= 0
    pool[given.table[used]] = room.reshape(B, K, pages, size, D).swapaxes(1, 2)[used]
    return pool


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given = given or inputs(case)
    found = [sequence(case, given, b) for b in range(case.batch)]
    return {
        "out": cast(concatenate([x.out for x in found]), case.dtype),
        "lse": cast(concatenate([x.lse for x in found]), attention.statistics(whole(case))),
    }


def sequence(case: Case, given: Inputs, b: int) -> Merged:
    """Return the merged parts of one sequence, before anything is cast."""
    length, size = int(given.lengths[b]), case.split or SPLIT
    on = machine(attention.statistics(whole(case)))
    outs, lses = zip(
        *(part(case, given, b, lo, min(lo + size, length)) for lo in range(0, length or 1, size)),
        strict=True,
    )
    return merge(*(stack([replace(x, on=on) for x in parts]) for parts in (outs, lses)))


def part(case: Case, given: Inputs, b: int, lo: int, hi: int) -> tuple[Approx, Approx]:
    """Return what keys lo … hi make of one sequence: out (1, H, M, D) and lse (1, H, M).

    A sequence without keys is taken to have one that nobody may attend.
    """
    call, x, M, length = whole(case), given.call, case.queries, int(given.lengths[b])
    on, pairs = machine(case.dtype, case.allow_tf32), (1, case.heads, M, max(length, 1))
    options = own(case, given, b)
    live = attended(pairs, options)
    assert live is not None  # there are lengths
    live = np.broadcast_to(live, pairs)[..., lo : max(hi, 1)]
    q = exact(x.q[b : b + 1], on)
    if x.rotary is not None:
        q = attention_rotary.turned(x.q[b : b + 1], at_positions(x.rotary, b, length - M, M), on)
    k, v = (exact(np.nan_to_num(a[b : b + 1, :, lo : max(hi, 1)]), on) for a in (x.k, x.v))
    problem = attention_bound.Problem(
        q, k, v, live, np.ones(live.shape), attention.scale(call), there(options, case, b, lo, hi),
        # The diagonal of `attention_problem` ends at the last key, here that of the part.
        np.arange(M) + length - hi, M,
    )  # fmt: skip
    forward = attention_bound.forward(problem)
    out = attention_bound.output(problem, forward.weights).where(partnered(problem.kept))
    return out, forward.lse[..., 0]


def own(case: Case, given: Inputs, b: int) -> Options:
    """Return the options of one sequence and its keys, or a key that it does not have."""
    options, M = attention.options(whole(case), given.call), case.queries
    every, here = case.capacity, max(int(given.lengths[b]), 1)

    def cut(x: Array | None, sizes: tuple[int, ...], keys: int | None = None) -> Array | None:
        if x is None:
            return None
        return np.broadcast_to(x, (case.batch, case.heads, *sizes))[b : b + 1, ..., :keys]

    live = options.block_mask
    if live is not None:
        live = cut(live, blocks(options, M, every), blocks(options, M, here)[1])
    return options._replace(
        alibi_slopes=cut(options.alibi_slopes, ()),
        bias=cut(options.bias, (M, every), here),
        mask=cut(options.mask, (M, every), here),
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


def there(options: Options, case: Case, b: int, lo: int, hi: int) -> Options:
    """Return the options of keys lo … hi of one sequence, which count from where those begin."""
    mod = options.score_mod

    def function(s: Any, one: Array, h: Array, i: Array, j: Array, args: tuple[Any, ...]) -> Any:
        assert mod is not None
        return mod.function(s, one + b, h, i + hi - case.queries, j + lo, args)

    return options._replace(
        bias=None if options.bias is None else options.bias[..., lo : max(hi, 1)],
        score_mod=None if mod is None else ScoreMod(function, lambda s, *_: s, mod.args),
        sinks=options.sinks if lo == 0 else None,
    )


def small(case: Case) -> Case:
    """Return the case cut down to a size at which properties cost little."""
    heads = min(case.heads, 4)
    return replace(
        case,
        batch=min(case.batch, 2),
        heads=heads,
        groups=case.groups if heads % case.groups == 0 else heads,
        queries=min(case.queries, 7),
        capacity=min(case.capacity, 41),
        head_dim=min(case.head_dim, 17),
    )


def cases() -> st.SearchStrategy[Case]:
    """The operator's domain: plain calls, and calls with everything that may be done to scores."""
    window = st.tuples(*[st.one_of(st.none(), domains.lengths(40))] * 2)
    maybe_axes = st.sampled_from([None, None, *attention.MASKS])
    return st.one_of(
        calls(causal=st.booleans()),
        calls(
            causal=st.sampled_from([False, True, "bottom-right"]),
            window_size=st.one_of(st.none(), window),
            softcap=st.sampled_from([None, None, 1.0, 30.0]),
            score_mod=st.sampled_from([None, None, SQUASHED]),
            alibi=st.sampled_from([None, None, "H", "BH", "B1"]),
            bias=maybe_axes,
            sinks=st.booleans(),
            mask=maybe_axes,
            blocks=attention.maybe_blocks(),
            rotary=st.sampled_from([None, *attention_rotary.FORMS]),
        ),
    )


def calls(**features: st.SearchStrategy[Any]) -> st.SearchStrategy[Case]:
    """Return cases with these features."""

    def build(
        precision: tuple[str, bool],
        heads: tuple[int, int],
        blocks: tuple[str, BlockSize] | None = None,
        **rest: Any,
    ) -> Case:
        (dtype, allow_tf32), (heads_, groups) = precision, heads
        axes, size = blocks or (None, None)
        return Case(
            dtype=dtype, allow_tf32=allow_tf32, heads=heads_, groups=groups,
            block_mask=axes, block_size=size, **rest,
        )  # fmt: skip

    return st.builds(
        build,
        precision=st.sampled_from(attention.PRECISIONS),
        batch=st.integers(1, 3),
        heads=st.sampled_from(((1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (5, 5))),
        queries=st.sampled_from((1, 1, 1, 2, 3, 5, 9, 17)),
        capacity=domains.lengths(130),
        page_size=st.sampled_from((0, 0, 1, 5, 16, 64)),
        full=st.booleans(),
        split=st.sampled_from((None, 1, 7, 16, 37, 64)),
        head_dim=st.one_of(domains.lengths(40), domains.lengths(256)),
        logits=st.sampled_from(attention.LOGITS),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(LAYOUTS),
        softmax_scale=st.sampled_from([None, 1.0, 0.01]),
        seed=domains.seeds(),
        **features,
    )
