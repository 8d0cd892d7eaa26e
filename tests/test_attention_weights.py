"""Attention's weights: the reference against torch and attention; the kernels by contract."""

import dataclasses
import math
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from allocated import Largest
from counted import counting
from far import apart
from faulty import check_seen, kept, plus, scaled
from hypothesis import given

from twofold.core.verify import claims
from twofold.core.verify.contract import Inapplicable, compare, judge, subject
from twofold.core.verify.contracts import attention as whole
from twofold.core.verify.contracts import attention_domain
from twofold.core.verify.contracts import attention_weights as contract
from twofold.core.verify.foreign.operators import Operator
from twofold.core.verify.foreign.subjects import subject as foreign
from twofold.core.verify.rounding import gamma
from twofold.kernels import attention_weights_tiles as tiles
from twofold.reference import attention, attention_weights
from twofold.reference.attention_scores import Options, attended, pack

HEADS, LONG, HEAD_DIM = 4, 200, 16
EVERYTHING = {
    "grouped heads, window": {"groups": 2, "window_size": (70, 20)},
    "causal, sinks": {"causal": True, "sinks": True},
    "softcap, ALiBi, top-left": {"softcap": 2.0, "alibi": "BH", "causal": "top-left"},
    "function of scores": {"score_mod": whole.SQUASHED},
    "bias of a key, key lengths": {"bias": "11N", "key_lengths": True},
}
OF_PAIRS = {"bias and mask of a pair": {"bias": "BHMN", "mask": "B1MN"}}


def test_every_tile_is_pinned_and_chosen():
    pinned = {c.tile for c in contract.CONTRACT.pinned if c.tile is not None}
    assert pinned == set(range(len(tiles.ENTRIES)))
    chosen = {
        tiles.choose_tile(d, size, aligned=aligned)
        for d in range(1, 513)
        for size in (2, 4)
        for aligned in (True, False)
    }
    assert chosen == {tile for _, tile in tiles.ENTRIES}


@given(contract.CONTRACT.cases)
def test_with_its_own_lse_reference_is_the_softmax_of_attention(reference, case):
    """In float64: the weights whose output and gradients are torch's, and their sums.

    Both may err by the bound, the softmax also by its own sum over keys and its lse.
    """
    case = dataclasses.replace(case, dtype="float64", lse="true", allow_tf32=False)
    given_ = contract.inputs(case)
    options = attention_domain.options(case, given_.call)
    call = given_.call
    with np.errstate(all="ignore"):
        cache = attention.forward(call.q, call.k, call.v, **options._asdict())[1]
    rows = case.rows or slice(None)
    theirs = {"weights": cache.p[:, :, rows], "received": pack(cache.p.sum(-2), call.cu_seqlens_k)}
    found, bounds = contract.run(reference, case, given_), contract.truth(case, given_)
    for name, p in theirs.items():
        rounding = gamma(case.seqlen_k + 8, 2.0**-53) * (1 + np.abs(p))
        error = 2 * bounds[name].error + rounding
        bound = dataclasses.replace(bounds[name], value=p, error=error)
        assert compare(name, found[name], bound)[2] == ""


def test_a_weight_is_the_formula_at_high_precision():
    """Scores of 700 and −700, where exp by itself over- and underflows."""
    q, k = [1.0, 700.0], [[0.25, 1.0], [0.5, 1.0], [0.125, -1.0]]
    with mpmath.workdps(60):
        s = [mpmath.fdot(q, row) for row in k]
        lse = mpmath.log(mpmath.fsum(mpmath.exp(x) for x in s))
        held = float(lse)
        p = np.array([float(mpmath.exp(x - held)) for x in s])
    case = contract.Case("float64", seqlen_q=1, seqlen_k=3, head_dim=2, softmax_scale=1.0)
    given_ = contract.inputs(case)
    call = given_.call._replace(q=np.array([[[q]]]), k=np.array([[k]]))
    given_ = contract.Inputs(call, np.array([[[held]]]))
    found = attention_weights.weights(call.q, call.k, given_.lse, softmax_scale=1.0)
    bound = dataclasses.replace(contract.truth(case, given_)["weights"], value=p[None, None, None])
    assert compare("weights", found, bound)[2] == ""


@pytest.mark.parametrize("feature", EVERYTHING | OF_PAIRS)
def test_each_query_by_itself_is_seen_as_among_all(reference, triton, feature):
    """Query numbers, diagonals, biases and masks stay those of the whole call."""
    case = contract.Case(
        batch=2, heads=2, seqlen_q=7, seqlen_k=9, seed=1, **(EVERYTHING | OF_PAIRS)[feature]
    )
    given_ = contract.inputs(case)
    for side in (reference, triton):
        compute = subject(contract.CONTRACT, side).compute
        every = compute(case, given_)["weights"]
        for i in range(7):
            one = dataclasses.replace(case, first_row=i, queries=1)
            bound = contract.truth(one, given_)["weights"]
            found = compute(one, given_)["weights"]
            claims.agree("weights", every[:, :, i : i + 1], found, bound, f"of query {i} alone")


@pytest.mark.parametrize("feature", EVERYTHING)
def test_one_query_and_what_keys_receive_take_no_memory_for_all_weights(triton, feature):
    """Neither allocates anything of M×N, for one head or for all."""
    case = contract.Case(
        heads=HEADS, seqlen_q=LONG, seqlen_k=LONG, head_dim=HEAD_DIM, first_row=-1, queries=1,
        **EVERYTHING[feature],
    )  # fmt: skip
    given_ = contract.inputs(case)
    with Largest() as largest:
        found = contract.run(triton, case, given_)
    assert 0 < largest.elements <= HEADS * LONG * HEAD_DIM < LONG * LONG
    assert found["weights"].shape == (1, HEADS, 1, LONG) and found["received"].shape[2] == LONG


@pytest.mark.parametrize("window", [None, (40, None), (50, 3), (0, 0)])
@pytest.mark.parametrize("causal", [False, True, "top-left"])
def test_tiles_that_nobody_sees_are_not_visited(triton, window, causal):
    """Only the products of tiles that hold a pair are computed."""
    M, N = 75, 101
    how = {"causal": causal, "window_size": window}
    live = attended((M, N), Options(**how))
    live = np.broadcast_to(True if live is None else live, (M, N))
    q, k = torch.zeros(1, 1, M, 16), torch.zeros(1, 1, N, 16)
    lse = torch.zeros(1, 1, M)
    tile = tiles.Tile(32, 16, 4, 1)
    seen = sum(live[m : m + 32, n : n + 16].any() for m in range(0, M, 32) for n in range(0, N, 16))
    counts = []
    for f in (triton.attention_weights.weights, triton.attention_weights.received):
        with counting(triton) as made:
            f(q, k, lse, tile=tile, **how)
        counts.append(len(made))
    assert counts[0] == seen
    # Keys that only queries beyond the last would see look at the last tile in vain.
    beyond = sum(not live[:, n : n + 16].any() for n in range(0, N, 16))
    assert seen <= counts[1] <= seen + beyond


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_attention_saves_is_what_it_takes(reference, triton, dtype):
    """Each side takes the lse as attention returns it; the weights have its dtype."""
    case = contract.Case(dtype, heads=2, alibi="H", bias="1HMN", causal=True)
    call = contract.inputs(case).call
    for side in (reference, triton):
        options = whole.placed(side, case, call)._asdict()
        q, k, v = (side.asarray(x, dtype) for x in (call.q, call.k, call.v))
        out, cache = side.attention.forward(q, k, v, **options)
        assert out.dtype == q.dtype
        kept = {n: options[n] for n in ("causal", "alibi_slopes", "bias")}
        for f in (side.attention_weights.weights, side.attention_weights.received):
            assert f(q, k, cache.lse, **kept).dtype == cache.lse.dtype


def test_offsets_pass_two_to_the_31(triton):
    """A third head beyond 2³¹ elements, in memory little of which is touched."""
    far, shape = 2**30 + 16, (1, 3, 5, 16)
    x = triton.asarray(np.random.default_rng(0).standard_normal(shape), "float16")
    wide = apart(triton, x, (3 * far, far, 16, 1))
    lse = triton.attention.forward(x, x, x)[1].lse
    for f in (triton.attention_weights.weights, triton.attention_weights.received):
        assert torch.equal(f(wide, wide, lse), f(x, x, lse))


def test_an_object_with_both_functions_is_judged_and_need_not_know_of_tf32(triton):
    ours = triton.attention_weights
    theirs = SimpleNamespace(
        weights=lambda q, k, lse, **how: ours.weights(q, k, lse, **told(how)),
        received=lambda q, k, lse, **how: ours.received(q, k, lse, **told(how)),
    )

    def told(how):
        assert "allow_tf32" not in how
        return how

    judged = foreign(theirs, "attention_weights")
    assert isinstance(judged, Operator)
    findings = judge(judged.contract, judged.side, contract.Case(causal=True, allow_tf32=False))
    assert {f.output for f in findings} == {"weights", "received"} == judged.ever
    assert not [f for f in findings if f.fault]
    with pytest.raises(TypeError, match="has no function 'received'"):
        foreign(SimpleNamespace(weights=ours.weights), "attention_weights")


def test_weights_of_packed_sequences_are_those_of_padded_batches(reference, triton):
    """They are 0 where a sequence has no such pair; what keys receive is packed like keys."""
    case = contract.Case(batch=3, heads=2, seqlen_q=7, seqlen_k=9, packed=True, causal=True, seed=1)
    given_ = contract.inputs(case)
    call, bounds = given_.call, contract.truth(case, given_)
    sizes = np.diff(call.cu_seqlens_q), np.diff(call.cu_seqlens_k)
    there = [np.arange(n) < size[:, None] for n, size in zip((7, 9), sizes, strict=True)]
    pairs = there[0][:, None, :, None] & there[1][:, None, None, :]  # (S, 1, M, N)
    assert 0 < pairs.sum() < pairs.size
    for side in (reference, triton):
        found = subject(contract.CONTRACT, side).compute(case, given_)
        assert found["weights"].shape == (3, 2, 7, 9) and not (found["weights"] * ~pairs).any()
        assert found["received"].shape == (1, 2, call.k.shape[2])
        received = found["weights"].astype(np.float64).sum(-2).swapaxes(1, 2)[there[1]]
        bound = bounds["received"]
        claims.agree("received", received.T[None], found["received"], bound, "of padded batches")


Q, K = np.ones((2, 4, 5, 6)), np.ones((2, 2, 7, 6))
LSE = np.ones((2, 4, 5))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"q": Q.astype(int)}, TypeError, "q has dtype int64; it must be one of float16"),
        ({"k": K[:, :, :, :5]}, ValueError, "k.shape is (2, 2, 7, 5); it must be (2, K, N, 6)"),
        ({"k": np.ones((2, 3, 7, 6))}, ValueError, "k.shape[1] is 3; it must be a divisor of q"),
        ({"lse": LSE[0]}, ValueError, "lse.shape is (4, 5); it must be of rank 3, (2, 4, 5)"),
        ({"lse": LSE[:, :, 1:]}, ValueError, "lse.shape is (2, 4, 4); it must be (2, 4, 5)"),
        ({"lse": LSE.astype(int)}, TypeError, "lse has dtype int64; it must be one of float16"),
        ({"lse": 1.0}, TypeError, "lse is a float; it must be an array"),
        ({"softcap": -1.0}, ValueError, "softcap is -1.0; it must be positive"),
        ({"mask": np.ones((5, 6), bool)}, ValueError, "mask.shape is (5, 6); it must be broadcast"),
    ],
)
@pytest.mark.parametrize("function", ["weights", "received"])
def test_bad_input_is_refused(both_refuse, function, changed, error, words):
    given_ = {"q": Q, "k": K, "lse": LSE} | changed
    both_refuse("attention_weights", given_, error, words, function)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (3, TypeError, "rows is a int; it must be a slice or None"),
        (
            slice(5, None),
            ValueError,
            "rows is slice(5, None, None); it must be of ints and step 1",
        ),
        (slice(0, 4, 2), ValueError, "rows is slice(0, 4, 2); it must be of ints and step 1"),
        (
            slice(None, None, -1),
            ValueError,
            "rows is slice(None, None, -1); it must be of ints and step 1",
        ),
        (
            slice(None, None, 0),
            ValueError,
            "rows is slice(None, None, 0); it must be of ints and step 1",
        ),
        (
            slice(0.5, None),
            ValueError,
            "rows is slice(0.5, None, None); it must be of ints and step 1",
        ),
    ],
)
def test_other_rows_than_some_in_a_row_are_refused(both_refuse, rows, error, words):
    given_ = {name: x.astype("float32") for name, x in {"q": Q, "k": K, "lse": LSE}.items()}
    given_["rows"] = rows
    both_refuse("attention_weights", given_, error, words, "weights")


def test_the_kernels_refuse_what_they_cannot_keep(triton):
    q, k, lse = (triton.asarray(x) for x in (Q, K, LSE))
    for f in (triton.attention_weights.weights, triton.attention_weights.received):
        with pytest.raises(ValueError, match=r"q.dtype is 'float64'; it must be one of 'float16'"):
            f(q, k, lse)


PROPERTIES = contract.CONTRACT.claims()
CASE = contract.Case(
    batch=2, heads=2, seqlen_q=7, seqlen_k=9, mask="BHMN", softmax_scale=0.5, logits=3.0, seed=3
)


def next_key_is_seen(found, case, given_):
    found["weights"][found["weights"] == 0] = 1e-3


def depends_on_the_last_key(found, case, given_):
    found["weights"] *= np.float32(1 + 1e-3 * given_.call.k[0, 0, -1, 0])


def base_two(found, case, given_):
    lse = given_.lse[:, :, case.rows or slice(None), None]
    found["weights"] *= np.where(lse > -np.inf, np.exp(lse * (1 - math.log(2.0))), 1.0)


FAULTS = {
    "sums": scaled("weights", 1.001),
    "equal keys": scaled("received", 1.001),
    "unattended": next_key_is_seen,
    "own pair": depends_on_the_last_key,
    "columns": scaled("received", 1.001),
    "some queries": plus("weights", lambda f, c, g: c.queries is None),
    "moved lse": base_two,
    "permuted heads": plus("weights", lambda f, c, g: np.arange(2)[:, None, None]),
    "batch alone": plus("received", lambda f, c, g: c.batch),
    "sequence alone": plus("weights", lambda f, c, g: c.packed),
    "grouped heads": plus("weights", lambda f, c, g: c.groups),
    "powers of two": plus("weights", lambda f, c, g: 0.01 * c.softmax_scale),
    "other strides": plus("received", lambda f, c, g: c.layout != "contiguous"),
    "padding is not read": plus("received", lambda f, c, g: 1e-3 * g.call.k.sum()),
    "same bits again": plus("weights", lambda f, c, g: np.random.default_rng().random()),
    "other calls between": kept("weights"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_property_sees_its_fault(reference, name):
    case = dataclasses.replace(CASE, groups=2) if name == "grouped heads" else CASE
    check_seen(PROPERTIES[name], contract.CONTRACT, reference, case, FAULTS[name])


def test_heads_that_share_keys_have_the_bits_of_heads_with_keys_of_their_own(triton):
    """In the kernels; NumPy's products of other shapes have other bits, so this is no property."""
    alone = dataclasses.replace(CASE, heads=4)
    case = dataclasses.replace(alone, groups=2)
    given = contract.inputs(case)
    own = given._replace(call=given.call._replace(k=given.call.k.repeat(2, axis=1)))
    kernels = subject(contract.CONTRACT, triton)
    shared, apart = kernels.compute(case, given), kernels.compute(alone, own)
    assert shared.keys() == apart.keys()
    for name, x in shared.items():
        np.testing.assert_array_equal(x, apart[name], err_msg=name)


def test_every_property_has_a_fault_here_but_those_of_kernels():
    assert PROPERTIES.keys() - FAULTS.keys() == {"other tiles", "NaN is seen"}  # test_not_numbers


def test_another_tile_is_seen_where_there_are_tiles(reference, triton):
    claim = PROPERTIES["other tiles"]
    with pytest.raises(Inapplicable):
        claim(subject(contract.CONTRACT, reference), CASE)
    fault = plus("received", lambda f, c, g: c.tile is not None)
    check_seen(claim, contract.CONTRACT, triton, CASE, fault, "with Tile")
