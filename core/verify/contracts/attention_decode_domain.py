"""The domain of decoding with a cache; `attention_decode` makes the contract.

The bound is `attention_decode_bound`. Packed queries are drawn as those of a batch for each
sequence and packed; the bound takes each sequence's own.

Keys after a sequence's last, and pages that no sequence has, hold NaN; the table's entries after a
sequence's last page are −1, and a bias is NaN past the capacity. So whatever reads there shows.

`B` batch, `H` heads, `K` heads of keys and values, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import domains
from twofold.core.verify.contracts import attention_domain as attention
from twofold.core.verify.contracts import attention_rotary
from twofold.core.verify.contracts.attention_packed import starts
from twofold.core.verify.contracts.attention_scoring import Scoring
from twofold.kernels.attention_decode_tiles import ENTRIES
from twofold.reference.attention_scores import BlockSize, Options, Window, pack
from twofold.reference.rotary import Rotary

Array = domains.Array

LAYOUTS = attention.LAYOUTS
# Values need not be laid out as keys are.
OF_VALUES = {"transposed": "padded", "padded": "strided", "strided": "transposed"}
SPARE = 2  # pages that no sequence has, where there are several
OPTIONS = (
    "softmax_scale", "causal", "window_size", "softcap", "score_mod", "alibi_slopes", "bias",
    "sinks", "mask", "key_lengths", "block_mask", "block_size", "rotary", "dropout_p", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Lengths, and everything that varies about a call.

    `capacity` is how many keys a sequence has room for, in pages of `page_size`, or in one piece
    where that is 0; how many it has is drawn, unless `full`. `split` is how many keys make a part,
    None for as many as the kernel chooses. If `packed`, no sequence has more than `queries`
    queries. The rest is attention's.
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
    packed: bool = False
    dropout_p: float = 0.0
    allow_tf32: bool = False
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """A call of attention to all keys that there is room for, and where things are.

    `table` (B, pages) says where the pages are, `starts` (B + 1,) where each sequence's queries
    begin if they are packed in the call.
    """

    call: attention.Inputs
    table: Array | None
    starts: Array | None = None

    def having(self, **changed: Any) -> Inputs:
        """Return the inputs with other arrays of the call."""
        return self._replace(call=self.call._replace(**changed))

    @property
    def lengths(self) -> Array:
        """How many keys each sequence has, (B,)."""
        assert self.call.key_lengths is not None
        return self.call.key_lengths

    def rows(self, b: int) -> tuple[int, slice]:
        """Return the batch of q, out and lse that sequence b is in, and its rows there."""
        if self.starts is None:
            return b, slice(0, self.call.q.shape[2])
        return 0, slice(int(self.starts[b]), int(self.starts[b + 1]))

    def of(self, x: Array, b: int) -> Array:
        """Return sequence b's part of q, out or lse: (1, H, M, …)."""
        batch, rows = self.rows(b)
        return x[batch, :, rows][None]

    def queries(self, b: int) -> int:
        """Return how many queries sequence b has."""
        return int(self.of(self.call.q, b).shape[2])


def whole(case: Case) -> attention.Case:
    """Return the call of attention to all keys that there is room for."""
    return attention.call_within(
        case,
        seqlen_q=case.queries,
        seqlen_k=case.capacity,
        key_lengths=not case.full,
        packed=False,
        tile=None,
    )


def inputs(case: Case) -> Inputs:
    """Make a case's arrays: NaN after every sequence's last key."""
    call = attention.inputs(replace(whole(case), rotary=None))
    lengths = np.full(case.batch, case.capacity) if call.key_lengths is None else call.key_lengths
    absent = np.arange(case.capacity)[:, None] >= lengths[:, None, None, None]  # (B, 1, N, 1)
    k, v = (np.where(absent, np.nan, x) for x in (call.k, call.v))
    pages = table(case, lengths, case.seed)
    call = call._replace(k=k, v=v, key_lengths=lengths, rotary=angles(case))
    if not case.packed:
        return Inputs(call, pages)
    drawn = starts(np.random.default_rng(case.seed), case.batch, case.queries)
    return Inputs(call._replace(q=pack(call.q, drawn)), pages, drawn)


def angles(case: Case) -> Rotary | None:
    """Draw the angles of all positions that there is room for, and sometimes of a few more."""
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
    places = np.random.default_rng(seed).permutation(case.batch * pages + spare(case))
    drawn = places[: case.batch * pages].reshape(case.batch, pages)
    return np.where(np.arange(pages) * case.page_size < lengths[:, None], drawn, -1)


def spare(case: Case) -> int:
    """Return how many pages no sequence has: none if there is only one sequence."""
    return SPARE if case.batch > 1 else 0


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    call, how = whole(case), domains.entry(side, case, ENTRIES)
    if side.name != "reference":
        how["allow_tf32"] = case.allow_tf32
        if case.split is not None:
            how["split"] = case.split
    placed = attention.placed(side, call, roomy(case, given.call))._asdict()
    of_values = replace(call, layout=OF_VALUES.get(case.layout, case.layout))
    out, lse = side.attention_decode.forward(
        attention.place(side, given.call.q, call),
        attention.place(side, paged(given.call.k, case, given), call),
        attention.place(side, paged(given.call.v, case, given), of_values),
        block_table=domains.beside(side, given.table, case, "int32"),
        cu_seqlens_q=domains.beside(side, given.starts, case),
        max_seqlen_q=None if given.starts is None else case.queries,
        **{name: placed[name] for name in OPTIONS},
        **how,
    )
    return {"out": out, "lse": lse}


def roomy(case: Case, call: attention.Inputs) -> attention.Inputs:
    """Return the call with bias and masks widened to all keys that there is room for."""

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
    """Put (B, K, N, D) into pages (P, K, page_size, D), with NaN where nothing belongs."""
    if given.table is None:
        return x
    B, K, N, D = x.shape
    size, pages = case.page_size, given.table.shape[1]
    room = np.full((B, K, pages * size, D), np.nan)
    room[:, :, :N] = x
    pool = np.full((B * pages + spare(case), K, size, D), np.nan)
    used = (given.table >= 0) & (given.table < len(pool))
    pool[given.table[used]] = room.reshape(B, K, pages, size, D).swapaxes(1, 2)[used]
    return pool


def of_nothing(case: Case) -> tuple[str, ...]:
    """Name the inputs that may divide a mean of no values: sinks, where there may be no keys."""
    return () if case.full else ("sinks",)


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
    """Return the operator's domain: plain calls, and ones with all that may be done to scores."""
    causal = st.sampled_from([False, True, "bottom-right"])
    return st.one_of(
        calls(causal=st.booleans()),
        calls(
            **(attention.features() | {"causal": causal}),
            mask=attention.maybe_axes(),
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
        precision=st.sampled_from(domains.PRECISIONS),
        batch=st.integers(1, 3),
        heads=st.sampled_from(((1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (5, 5))),
        queries=st.sampled_from((1, 1, 1, 2, 3, 5, 9, 17)),
        capacity=domains.lengths(130),
        page_size=st.sampled_from((0, 0, 1, 5, 16, 64)),
        full=st.booleans(),
        packed=st.sampled_from([False, False, True]),
        dropout_p=st.sampled_from([0.0, 0.0, 0.1, 0.5]),
        split=st.sampled_from((None, 1, 7, 16, 37, 64)),
        head_dim=st.one_of(domains.lengths(40), domains.lengths(256)),
        logits=st.sampled_from(attention.LOGITS),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(LAYOUTS),
        softmax_scale=st.sampled_from([None, 1.0, 0.01]),
        seed=domains.seeds(),
        **features,
    )
