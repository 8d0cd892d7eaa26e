"""Attention's features besides q, k and v, and what they cost."""

import math

import numpy as np
import pytest
import torch
from allocated import Largest
from counted import counting
from far import apart
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twofold.core.verify import attention_bound, claims
from twofold.core.verify.contract import hold
from twofold.core.verify.contracts import attention as contract
from twofold.core.verify.contracts.attention import Case, Scoring
from twofold.core.verify.rounding import machine
from twofold.reference.attention import forward
from twofold.reference.attention_scores import Options, ScoreMod, attended

BATCH, HEADS, LONG, HEAD_DIM = 2, 4, 160, 16
FEATURES = {
    "plain": {},
    "grouped heads": {"groups": 2},
    "one head of keys": {"groups": 4},
    "causal": {"causal": True},
    "causal top-left": {"causal": "top-left"},
    "window": {"window_size": (5, 3)},
    "softcap": {"softcap": 2.0},
    "ALiBi": {"alibi": "H"},
    "bias of a head": {"bias": "1HMN"},
    "bias of a key": {"bias": "11N"},
    "sinks": {"sinks": True},
    "function of scores": {"score_mod": contract.SQUASHED},
    "mask": {"mask": "B1MN"},
    "block mask": {"block_mask": "1HMN", "block_size": (3, 5)},
    "key lengths": {"key_lengths": True},
    "packed": {"packed": True},
    "rotary": {"rotary": "half"},
    "rotary of neighbours": {"rotary": "interleaved"},
    "dropout": {"dropout_p": 0.2},
}


@pytest.mark.parametrize("first", FEATURES)
def test_each_feature_goes_with_each_other(triton, first):
    """Nothing is refused: every pair of features within the bound, forward and backward."""
    for second in list(FEATURES)[list(FEATURES).index(first) :]:
        fields = {**FEATURES[first], **FEATURES[second]}
        case = Case(batch=2, heads=4, seqlen_q=9, seqlen_k=13, head_dim=5, dlse=True, **fields)
        hold(contract.CONTRACT, triton, case, ())


def relative(s, b, h, i, j, args):
    """Add what a table (2·R + 1,) has for the distance, clipped to ±R."""
    table, reach = args
    return s + table[np.clip(j - i, -reach, reach) + reach]


def unchanged(s, b, h, i, j, args):
    return 1.0 + 0.0 * s


def tempered(s, b, h, i, j, args):
    """Divide by a temperature that grows with the head."""
    return s / (1.0 + h)


def tempered_slope(s, b, h, i, j, args):
    return (1.0 + 0.0 * s) / (1.0 + h)


@pytest.mark.parametrize("name", ["relative", "tempered"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_users_function_of_the_scores_has_a_contract(triton, name, dtype):
    """Two worked examples: a table of relative positions, a temperature of each head."""
    import scoring_kernels as kernels

    reach = 3
    table = np.random.default_rng(0).standard_normal(2 * reach + 1).astype(np.float32)
    scoring = {
        "relative": Scoring(
            "relative",
            lambda: ScoreMod(relative, unchanged, (table.astype(np.float64), reach)),
            lambda: ScoreMod(kernels.relative, kernels.unchanged, (triton.asarray(table), reach)),
        ),
        "tempered": Scoring(
            "tempered",
            lambda: ScoreMod(tempered, tempered_slope),
            lambda: ScoreMod(kernels.tempered, kernels.tempered_slope),
        ),
    }[name]
    mine = contract.with_score_mod(scoring)
    for extra in ({}, {"causal": True, "groups": 2, "dropout_p": 0.2}, {"bias": "1HMN"}):
        case = Case(
            dtype=dtype, batch=2, heads=4, seqlen_q=37, seqlen_k=41, dlse=True,
            score_mod=scoring, **extra,
        )  # fmt: skip
        hold(mine, triton, case, ())


@pytest.mark.parametrize("head_dim", [257, 512])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_of_many_features(triton, head_dim, dtype):
    """Backward sums them slice by slice; both passes stay within the bound."""
    case = Case(
        dtype=dtype, heads=2, groups=2, seqlen_q=17, seqlen_k=19, head_dim=head_dim, causal=True,
        dlse=True,
    )  # fmt: skip
    hold(contract.CONTRACT, triton, case, ())


@pytest.mark.parametrize("feature", [f for f in FEATURES if f not in ("bias of a head", "mask")])
def test_nothing_of_queries_times_keys_is_allocated(triton, feature):
    """Neither pass allocates anything of M×N, for one head or for all."""
    case = Case(
        batch=1, heads=4, seqlen_q=LONG, seqlen_k=LONG, head_dim=HEAD_DIM, dlse=True,
        **FEATURES[feature],
    )  # fmt: skip
    given_ = contract.inputs(case)
    with Largest() as largest:
        contract.run(triton, case, given_)
    assert 0 < largest.elements <= 4 * LONG * HEAD_DIM < LONG * LONG


def test_nothing_of_the_longest_sequence_times_all_is_allocated(triton):
    """Short and empty sequences beside a long one take memory for their own lengths only."""
    lengths = [1, 0, LONG, 2, 0, 0, 3, 1]
    starts, rows = np.cumsum([0, *lengths], dtype=np.int32), sum(lengths)
    x = triton.asarray(np.random.default_rng(0).standard_normal((1, 2, rows, HEAD_DIM)), "float32")
    starts = triton.asarray(starts)
    with Largest() as largest:
        out, cache = triton.attention.forward(
            x, x, x, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=LONG, max_seqlen_k=LONG
        )
        triton.attention.backward(x, cache)
    assert 0 < largest.elements <= 2 * rows * HEAD_DIM


@given(
    queries=st.integers(1, 150),
    keys=st.integers(1, 150),
    causal=st.sampled_from([False, True, "top-left"]),
    window=st.one_of(st.none(), st.tuples(*[st.one_of(st.none(), st.integers(0, 90))] * 2)),
)
@settings(max_examples=15)
@example(33, 1, "top-left", (17, None))  # queries whose window begins beyond the last key
@example(65, 1, "top-left", (17, None))
@example(33, 17, "top-left", (3, 0))
def test_tiles_that_nobody_sees_are_not_visited(triton, queries, keys, causal, window):
    """Only the products of tiles that hold a pair are computed."""
    how = {"causal": causal, "window_size": window}
    q, k = (torch.zeros(1, 1, n, 16) for n in (queries, keys))
    assert products(triton, q, k, **how)[0] == 2 * tiles(seen(queries, keys, **how))


@given(
    queries=st.integers(1, 150),
    keys=st.integers(1, 150),
    causal=st.booleans(),
    window=st.sampled_from([None, (9, 20), (0, None)]),
    size=st.tuples(*[st.sampled_from([1, 7, 16, 32, 45, 64, 200])] * 2),
    axes=st.sampled_from([(2, 2), (1, 2), (2, 1)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_tiles_of_no_live_block_are_not_visited(
    triton, queries, keys, causal, window, size, axes, seed
):
    """In every batch and head, only those that hold a pair and touch a live block."""
    how = {"causal": causal, "window_size": window}
    blocks = drawn_blocks(axes, queries, keys, size, seed)
    q, k = torch.zeros(2, 2, queries, 16), torch.zeros(2, 1, keys, 16)
    mask = torch.from_numpy(blocks)
    count = tiles(seen(queries, keys, **how), spread(blocks, queries, keys, size))
    count = count * 4 // math.prod(axes)
    found = products(triton, q, k, block_mask=mask, block_size=size, **how)
    assert found == (2 * count, 7 * count)


@pytest.mark.parametrize("size", [16, (40, 7), (100, 1)])
def test_packed_tiles_of_no_live_block_are_not_visited(triton, size):
    """Blocks are counted in each sequence from its first query and key."""
    lengths, longest = [(33, 70), (0, 5), (70, 31), (7, 0), (100, 100)], 100
    rows, columns = (size, size) if isinstance(size, int) else size
    blocks = drawn_blocks((len(lengths), 1), longest, longest, (rows, columns), 0)
    starts = np.cumsum([(0, 0), *lengths], axis=0, dtype=np.int32)
    q, k = (torch.zeros(1, 1, n, 16) for n in starts[-1])
    packed = {f"cu_seqlens_{end}": torch.tensor(x) for end, x in zip("qk", starts.T, strict=True)}
    there = np.zeros((len(lengths), 1, longest, longest), bool)
    for s, (m, n) in enumerate(lengths):
        if m and n:
            there[s, 0, :m, :n] = seen(m, n, causal=True)
    count = tiles(there, spread(blocks, longest, longest, (rows, columns)))
    found = products(
        triton, q, k, max_seqlen_q=longest, max_seqlen_k=longest, causal=True,
        block_mask=torch.from_numpy(blocks), block_size=size, **packed,
    )  # fmt: skip
    assert found == (2 * count, 7 * count)


@given(
    lengths=st.lists(st.tuples(*[st.sampled_from([0, 0, 1, 16, 31, 33, 70])] * 2), max_size=4),
    causal=st.sampled_from([False, True, "top-left"]),
    window=st.sampled_from([None, (9, 20), (0, None)]),
)
@settings(max_examples=15)
def test_programs_of_packed_sequences_visit_their_own_tiles(triton, lengths, causal, window):
    """Each visits as many as in a call of its own: none of other sequences, padding or nothing."""
    how = {"causal": causal, "window_size": window}
    lengths = [*lengths, (1, 1)]  # not all are empty
    starts = np.cumsum([(0, 0), *lengths], axis=0, dtype=np.int32)
    q, k = (torch.zeros(1, 1, n, 16) for n in starts[-1])
    packed = {f"cu_seqlens_{end}": torch.tensor(x) for end, x in zip("qk", starts.T, strict=True)}
    counts = products(triton, q, k, max_seqlen_q=100, max_seqlen_k=100, **packed, **how)
    alone = [
        products(triton, torch.zeros(1, 1, m, 16), torch.zeros(1, 1, n, 16), **how)
        for m, n in lengths
        if m and n
    ]
    assert counts == tuple(map(sum, zip(*alone, strict=True)))


TILE = (32, 16, 4, 1)


def products(triton, q, k, **how):
    """Return how many products of tiles a call computes forward and backward."""
    tile = triton.attention.Tile(*TILE)
    with counting(triton) as made:
        out, cache = triton.attention.forward(q, k, k, tile=tile, **how)
        forward = len(made)
        triton.attention.backward(out, cache, dk_dv_tile=tile, dq_tile=tile)
    return forward, len(made) - forward


def seen(queries, keys, **how):
    """Return which pairs of query and key take part, (queries, keys)."""
    live = attended((1, 1, queries, keys), Options(**how))
    return np.broadcast_to(True if live is None else live, (queries, keys))


def drawn_blocks(axes, queries, keys, size, seed):
    """Draw a mask of blocks, three of ten live."""
    counts = (math.ceil(n / s) for n, s in zip((queries, keys), size, strict=True))
    return np.random.default_rng(seed).random((*axes, *counts)) < 0.3


def spread(blocks, queries, keys, size):
    """Return a mask of blocks for pairs."""
    rows, columns = size
    return blocks.repeat(rows, -2).repeat(columns, -1)[..., :queries, :keys]


def tiles(*masks):
    """Return how many tiles hold a True in each of these masks of pairs (..., M, N)."""
    m, n, *_ = TILE
    queries, keys = masks[0].shape[-2:]
    return sum(
        math.prod(mask[..., i : i + m, j : j + n].any((-2, -1)) for mask in masks).sum()
        for i in range(0, queries, m)
        for j in range(0, keys, n)
    )


FAR = 2**30 + 16
FAR_ROWS, FAR_FEATURES = 2**25, 2**31 // 15 + 1  # 127 rows of a tile pass 2³¹, and 15 features


@pytest.mark.parametrize(
    "far", [(3 * FAR, FAR, 16, 1), (48, 16, FAR_ROWS, 1), (48, 16, 1, FAR_FEATURES)]
)
def test_offsets_pass_two_to_the_31(triton, far):
    """A third head, rows and features far apart in memory, little of which is touched."""
    x = triton.asarray(np.random.default_rng(0).standard_normal((1, 3, 5, 16)), "float16")
    wide = apart(triton, x, far)
    out, cache = triton.attention.forward(wide, wide, wide)
    same, other = triton.attention.forward(x, x, x)
    assert torch.equal(out, same)
    first, second = (triton.attention.backward(d, c) for d, c in ((wide, cache), (x, other)))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    into = [apart(triton, torch.zeros_like(x), far) for _ in range(3)]
    written = triton.attention.backward(x, other, into=into)
    assert all(a is b for a, b in zip(written[:3], into, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(into, second[:3], strict=True))


def test_lengths_and_starts_may_be_strided(triton):
    """They may be columns of a table."""
    case = Case(batch=3, seqlen_q=9, seqlen_k=13, packed=True, key_lengths=True, causal=True)
    x = contract.inputs(case)
    options = contract.placed(triton, case, x)
    names = ("cu_seqlens_q", "cu_seqlens_k", "key_lengths")
    strided = {n: getattr(options, n).repeat_interleave(2)[::2] for n in names}
    tensors = [contract.place(triton, a, case) for a in (x.q, x.k, x.v)]
    out, _ = triton.attention.forward(*tensors, **options._asdict())
    same, _ = triton.attention.forward(*tensors, **options._replace(**strided)._asdict())
    assert torch.equal(out, same)


def test_grouped_heads_are_repeated_keys(triton):
    """Heads that share keys give the same bits as with a copy of the keys each."""
    case = Case(batch=2, heads=6, groups=3, seqlen_q=37, seqlen_k=41, head_dim=16, causal=True)
    x = contract.inputs(case)
    apart = x._replace(k=np.repeat(x.k, 3, axis=1), v=np.repeat(x.v, 3, axis=1))
    together = contract.run(triton, case, x)
    alone = contract.run(triton, Case(**{**vars(case), "groups": 1}), apart)
    for name in ("out", "lse", "dq"):
        assert np.array_equal(triton.to_numpy(together[name]), triton.to_numpy(alone[name])), name


def test_a_sink_is_a_key_without_a_value():
    """In float64: one more key, whose score is the sink and whose value is 0."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 1, 4, 3))
    sink = 0.7
    out, cache = forward(q, k, v, sinks=np.array([sink]), softmax_scale=1.0)
    wider = np.concatenate((q, np.ones((1, 1, 4, 1))), axis=-1)
    keys = np.concatenate((k, np.zeros((1, 1, 4, 1))), axis=-1)
    keys = np.concatenate((keys, [[[[0, 0, 0, sink]]]]), axis=2)
    values = np.concatenate((v, np.zeros((1, 1, 1, 3))), axis=2)
    values = np.concatenate((values, np.zeros((1, 1, 5, 1))), axis=-1)
    there, other = forward(wider, keys, values, softmax_scale=1.0)
    options = Options(sinks=np.array([sink]), softmax_scale=1.0)
    bound = attention_bound.forward(attention_bound.problem(q, k, v, machine("float64"), options))
    claims.agree("out", out, there[..., :3], bound.out, "with the sink as a key")
    claims.agree("lse", cache.lse, other.lse, bound.lse[..., 0], "with the sink as a key")
    assert bound.out.error.max() < 1e-14 and bound.lse.error.max() < 1e-14


def test_a_table_that_a_function_of_the_scores_returns_is_left_alone(reference):
    table = np.zeros((1, 1, 3, 3))
    table.flags.writeable = False  # so it does not matter that it is read-only
    scoring = ScoreMod(lambda s, b, h, i, j, a: a[0], lambda s, *rest: 0 * s, (table,))
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 3, 4))
    out, _ = reference.attention.forward(q, k, v, score_mod=scoring, causal=True)
    assert np.allclose(out[0, 0, -1], v[0, 0].mean(axis=0))
