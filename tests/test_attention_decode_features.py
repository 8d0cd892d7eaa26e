"""Decoding's features, in any combination, and what they cost."""

import dataclasses

import numpy as np
import pytest
from allocated import Largest
from counted import counting

from twofold.core.verify import claims
from twofold.core.verify.contract import hold
from twofold.core.verify.contracts import attention as whole
from twofold.core.verify.contracts import attention_decode as contract
from twofold.kernels import attention_decode_tiles
from twofold.reference import attention, rotary

FEATURES = {
    "plain": {},
    "window": {"window_size": (5, 0)},
    "softcap, ALiBi": {"softcap": 2.0, "alibi": "BH"},
    "sinks": {"sinks": True},
    "function of scores": {"score_mod": contract.SQUASHED},
    "bias, mask": {"bias": "BHMN", "mask": "1HMN"},
    "bias and mask of keys": {"bias": "N", "mask": "B11N"},
    "mask of blocks": {"block_mask": "BHMN", "block_size": (1, 3)},
    "rotary": {"rotary": "half"},
    "dropout": {"dropout_p": 0.4},
}


def rows(x, last):
    """Return a bias's or mask's rows for the last queries."""
    return x if x is None or x.ndim < 2 or x.shape[-2] == 1 else x[..., -last:, :]


@pytest.mark.parametrize("feature", [f for f in FEATURES if f != "dropout"])
def test_the_last_queries_of_a_causal_call_are_a_decoding(reference, feature):
    """Positions, slopes and functions mean the same as in training.

    In float64, with full caches, in pages.
    """
    case = contract.Case(
        "float64", 2, 4, 2, 3, 14, 4, full=True, causal=True, seed=2, **FEATURES[feature]
    )
    training = dataclasses.replace(contract.whole(case), seqlen_q=case.capacity)
    x, turned = whole.inputs(training), {}
    if x.rotary is not None:  # keys lie in the cache already rotated, by the queries' angles
        x = x._replace(rotary=x.rotary._replace(k_cos=None, k_sin=None))
        # Whole pages have angles, too.
        cos, sin = (np.pad(a, (*[(0, 0)] * (a.ndim - 2), (0, 2), (0, 0))) for a in x.rotary[:2])
        turned["k"] = rotary.turn(x.k, *x.rotary.of_k)
        turned["rotary"] = x.rotary._replace(cos=cos, sin=sin)
    out, cache = attention.forward(
        x.q, x.k, x.v, **whole.placed(reference, training, x)._replace(key_lengths=None)._asdict()
    )
    made = contract.inputs(case)
    masks = {name: rows(getattr(x, name), 3) for name in ("bias", "mask", "block_mask")}
    turned |= {"q": x.q[:, :, -3:], "key_lengths": made.lengths, **masks}
    last = made.having(**(x._asdict() | turned))
    found, bounds = contract.run(reference, case, last), contract.truth(case, last)
    for name, theirs in (("out", out), ("lse", cache.lse)):
        mine, bound = theirs[:, :, -3:], bounds[name]
        claims.agree(name, mine, found[name], bound, "of the last queries")


PAIRED = {
    **FEATURES,
    "grouped heads": {"groups": 2},
    "causal": {"causal": True},
    "pages": {"page_size": 3},
    "parts": {"split": 5},
    "packed": {"packed": True},
    "rotary of neighbours": {"rotary": "interleaved"},
}


@pytest.mark.parametrize("first", PAIRED)
def test_each_feature_goes_with_each_other(triton, first):
    """Nothing is refused: every pair of features within the bound."""
    for second in list(PAIRED)[list(PAIRED).index(first) :]:
        fields = {**PAIRED[first], **PAIRED[second]}
        case = contract.Case("float32", 3, 4, queries=5, capacity=13, seed=1, **fields)
        hold(contract.CONTRACT, triton, case, ())


PACKED = {k: v for k, v in FEATURES.items() if k not in ("function of scores", "rotary")}


@pytest.mark.parametrize("feature", PACKED)
def test_packed_queries_are_those_of_packed_attention(reference, feature):
    """Where keys are packed, too, instead of cached: the same alignment, bias and masks.

    In float64, without what counts positions in one and rows in the other.
    """
    case = contract.Case(
        "float64", 5, 4, 2, 6, 14, 4, causal=True, packed=True, seed=4, **FEATURES[feature]
    )
    x = contract.inputs(case)
    starts, there = (np.concatenate(([0], n.cumsum())).astype(np.int32) for n in (
        np.diff(x.starts), x.lengths
    ))  # fmt: skip
    k, v = (
        np.concatenate([a[b, :, :n] for b, n in enumerate(x.lengths)], 1)[None]
        for a in (x.call.k, x.call.v)
    )
    options = whole.placed(reference, contract.whole(case), x.call)._replace(
        key_lengths=None, cu_seqlens_q=starts, cu_seqlens_k=there,
        max_seqlen_q=case.queries, max_seqlen_k=case.capacity,
    )  # fmt: skip
    out, cache = attention.forward(x.call.q, k, v, **options._asdict())
    found, bounds = contract.run(reference, case, x), contract.truth(case, x)
    for name, theirs in (("out", out), ("lse", cache.lse)):
        claims.agree(name, theirs, found[name], bounds[name], "of packed attention")


def test_dropout_is_that_of_attention(triton):
    """With full caches the same weights are dropped, whatever the parts; lse counts all weights."""
    case = contract.Case(
        "float32", 3, 4, 2, 3, 40, 4, full=True, split=9, head_dim=40, dropout_p=0.4, seed=5
    )
    x = contract.inputs(case)
    x = x.having(v=np.broadcast_to(np.eye(40), x.call.v.shape))  # the output is the weights
    theirs = whole.run(triton, contract.whole(case), x.call._replace(key_lengths=None))
    found = contract.run(triton, case, x)
    out, other = (triton.to_numpy(y["out"]) for y in (found, theirs))
    assert ((out == 0) == (other == 0)).all() and (out == 0).mean() > 0.3
    plain = contract.run(triton, dataclasses.replace(case, dropout_p=0.0, split=16), x)
    assert (triton.to_numpy(found["lse"]) == triton.to_numpy(plain["lse"])).all()


@pytest.mark.parametrize(("more", "parts"), [(0, 3), (1, 1)])
def test_many_queries_have_no_parts_of_keys(triton, monkeypatch, more, parts):
    """They would take memory for the cache's capacity times all queries."""
    monkeypatch.setattr(attention_decode_tiles, "SPLIT", 8)
    rows = attention_decode_tiles.MOST_SPLIT + more
    q = triton.asarray(np.ones((1, 1, rows, 8)), "float32")
    cache = triton.asarray(np.ones((1, 1, 17, 8)), "float32")
    with Largest() as largest:
        lengths = triton.asarray(np.full(1, 17))
        triton.attention_decode.forward(q, cache, cache, key_lengths=lengths)
    assert largest.elements == parts * q.numel()


def test_nothing_of_the_longest_times_all_is_allocated(triton):
    """A prompt beside single tokens takes memory for its own queries only, for every part."""
    queries, keys, head_dim = [1, 0, 90, 1, 0, 0, 1, 1], 32, 16
    rows = sum(queries)
    q = triton.asarray(np.ones((1, 2, rows, head_dim)), "float32")
    cache = triton.asarray(np.ones((len(queries), 1, keys, head_dim)), "float32")
    with Largest() as largest:
        triton.attention_decode.forward(
            q, cache, cache, split=16, max_seqlen_q=90,
            key_lengths=triton.asarray(np.full(len(queries), keys)),
            cu_seqlens_q=triton.asarray(np.cumsum([0, *queries], dtype=np.int32)),
        )  # fmt: skip
    assert 0 < largest.elements <= 2 * (2 * rows * head_dim)


TILE = (16, 16, 4, 1)


def products(triton, case, given):
    """Return how many products of tiles a call computes."""
    tile = triton.attention_decode.Tile(*TILE)
    with counting(triton) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.attention_decode, "choose_tile", lambda *_, **__: tile)
        contract.run(triton, case, given)
    return len(made)


def tiles(case, given):
    """Return how many tiles of all sequences hold a pair of the band and touch a live block."""
    left, right = (999 if end is None else end for end in case.window_size or (None, None))
    count, every = 0, (case.batch, case.heads, case.queries, case.capacity)
    blocks = np.ones(every, bool)
    if given.call.block_mask is not None:
        rows, columns = case.block_size
        blocks = given.call.block_mask.repeat(rows, -2).repeat(columns, -1)
        blocks = np.broadcast_to(blocks[..., : case.queries, : case.capacity], every)
    for b, length in enumerate(given.lengths):
        M = given.queries(b)
        position = length - M + np.arange(M)[:, None]
        j = np.arange(length)
        band = (j >= position - left) & (j <= position + right)  # (M, N)
        for own in np.split(blocks[b, :, :M, :length], case.heads // case.groups):
            own = own.swapaxes(0, 1).reshape(M * case.groups, -1)  # query by query
            live = band.repeat(case.groups, 0)
            count += sum(
                live[r : r + 16, n : n + 16].any() and own[r : r + 16, n : n + 16].any()
                for r in range(0, len(live), 16)
                for n in range(0, int(length), 16)
            )
    return count


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("page_size", [0, 3])
def test_what_nobody_sees_is_not_visited(triton, page_size, packed):
    """Only tiles that hold a pair, within lengths, parts and window, are multiplied.

    With packed queries, none are those of other sequences.
    """
    for queries, window in ((1, None), (3, (20, 0)), (40, (10, 5))):
        case = contract.Case(
            batch=3, heads=1, queries=queries, capacity=150, page_size=page_size, seed=3,
            window_size=window, split=32, packed=packed,
        )  # fmt: skip
        given = contract.inputs(case)
        assert products(triton, case, given) == 2 * tiles(case, given) > 0


@pytest.mark.parametrize("block_size", [(1, 32), (2, 7), (40, 16), (3, 50)])
@pytest.mark.parametrize(("axes", "packed"), [("BHMN", False), ("BHMN", True), ("11MN", False)])
def test_tiles_of_no_live_block_are_not_decoded(triton, block_size, axes, packed):
    """Only tiles that touch a live block of any of their heads' rows are multiplied."""
    visited = 0
    for queries, window in ((1, None), (9, (40, 5))):
        case = contract.Case(
            batch=3, heads=4, groups=2, queries=queries, capacity=150, page_size=4, seed=3,
            window_size=window, split=64, block_mask=axes, block_size=block_size, packed=packed,
        )  # fmt: skip
        given = contract.inputs(case)
        few = np.random.default_rng(0).random(given.call.block_mask.shape) < 0.2
        given = given.having(block_mask=few)
        count, plain = tiles(case, given), tiles(case, given.having(block_mask=None))
        assert products(triton, case, given) == 2 * count
        visited += count
        assert count < plain
    assert visited > 0


PAGED_Q, POOL = np.ones((2, 2, 1, 4), "float32"), np.ones((3, 1, 4, 4), "float32")


@pytest.mark.parametrize("page", [-1, 3])
def test_a_page_that_is_not_there_is_refused_or_gives_nan(reference, triton, page):
    """If a sequence's own keys would lie on it and a query attends to them."""
    q, lengths = np.concatenate([PAGED_Q, PAGED_Q], 2), np.array([8, 3])
    bad = np.array([[0, page], [1, page]])  # the second sequence has no key on its second page
    words = rf"^block_table\[0, 1\] is {page}; it must be at least 0 and below 3$"
    with pytest.raises(IndexError, match=words):
        reference.attention_decode.forward(
            q, POOL, POOL, key_lengths=lengths, block_table=bad, causal=True
        )
    for window, split in ((None, 512), (None, 4), ((3, 0), 512)):
        out, lse = triton.attention_decode.forward(
            *(triton.asarray(x) for x in (q, POOL, POOL)), key_lengths=triton.asarray(lengths),
            block_table=triton.asarray(bad), causal=True, window_size=window, split=split,
        )  # fmt: skip
        for found in (out, lse):
            nan = np.isnan(triton.to_numpy(found))
            assert nan[0].all() and not nan[1].any()


def test_only_queries_that_attend_to_a_page_see_that_it_is_not_there(triton):
    """Of two tokens, on the page before and on the bad one, the first has a result."""
    q, table = np.concatenate([PAGED_Q, PAGED_Q], 2), np.array([[0, 3], [1, 2]])
    out, lse = triton.attention_decode.forward(
        *(triton.asarray(x) for x in (q, POOL, POOL)), key_lengths=triton.asarray(np.array([5, 5])),
        block_table=triton.asarray(table), causal=True,
    )  # fmt: skip
    for found in (triton.to_numpy(out), triton.to_numpy(lse)):
        assert np.isnan(found[0, :, 1]).all() and np.isfinite(found[0, :, 0]).all()
        assert np.isfinite(found[1]).all()


def test_a_sequence_without_queries_needs_no_page(reference):
    """When packed, it reads nothing, and its pages may have gone to others."""
    out, _ = reference.attention_decode.forward(
        PAGED_Q[:1], POOL, POOL, key_lengths=np.array([4, 4]), block_table=np.array([[0], [7]]),
        cu_seqlens_q=np.array([0, 1, 1], "int32"), max_seqlen_q=1,
    )  # fmt: skip
    assert np.isfinite(out).all()
