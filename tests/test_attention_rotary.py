"""Rotary positions in attention are those of `rotary`, forward and backward."""

import numpy as np
import pytest

from twofold.core.verify.contract import hold
from twofold.core.verify.contracts import attention as contract
from twofold.core.verify.contracts.attention import Case
from twofold.reference import attention, rotary
from twofold.reference.rotary import Rotary

FORMS = ("half", "interleaved")


@pytest.mark.parametrize("interleaved", [False, True])
def test_reference_turns_then_attends(interleaved):
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((2, 3, 7, 10)) for _ in range(4))
    tables = rotary.tables(np.arange(7), 6)
    (turned_q, turned_k), turns = rotary.forward(q, k, *tables, interleaved=interleaved)
    out, cache = attention.forward(turned_q, turned_k, v, causal=True)
    fused, fused_cache = attention.forward(
        q, k, v, causal=True, rotary=Rotary(*tables, interleaved=interleaved)
    )
    assert np.array_equal(out, fused) and np.array_equal(cache.lse, fused_cache.lse)
    dq, dk, dv, *_ = attention.backward(dout, cache)
    dq, dk = rotary.backward(dq, dk, turns)
    for one, two in zip((dq, dk, dv), attention.backward(dout, fused_cache), strict=False):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("seed", range(3))
def test_angles_of_each_row_of_a_batch_or_of_all(triton, form, dtype, seed):
    """Keys with other angles than queries, some features or all, packed or not: see the domain."""
    for packed in (False, True):
        case = Case(
            dtype=dtype, batch=2, heads=2, groups=2, seqlen_q=9, seqlen_k=19, head_dim=6,
            rotary=form, packed=packed, seed=seed,
        )  # fmt: skip
        hold(contract.CONTRACT, triton, case, ())


def test_only_the_distance_of_positions_counts(reference):
    """If queries and keys move by the same distance, they attend as before."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, 2, 5, 8)) for _ in range(3))
    first, second = (
        reference.attention.forward(q, k, v, rotary=Rotary(*rotary.tables(start + places, 8)))[0]
        for places in [np.arange(5)]
        for start in (0, 1000)
    )
    bound = 2.0**-53 * 1000 * 8 * 8 * np.abs(q).max() * np.abs(k).max() * np.abs(v).max()
    assert np.abs(first - second).max() <= bound
    plain = reference.attention.forward(q, k, v)[0]
    assert np.abs(first - plain).max() > bound


ANGLES = np.ones((4, 2))
LONG = np.ones((7, 2))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((ANGLES, ANGLES), TypeError, "rotary is a tuple; it must be a Rotary"),
        (
            Rotary(ANGLES, ANGLES),
            ValueError,
            "rotary.k_cos is None; it must be (7, F), the angles of k's rows, as q has 4",
        ),
        (
            Rotary(ANGLES, ANGLES, LONG),
            ValueError,
            "rotary.k_sin is None; it must be given if rotary.k_cos is, and only then",
        ),
        (
            Rotary(ANGLES, LONG, LONG, LONG),
            ValueError,
            "rotary.sin.shape is (7, 2); it must be (4, 2)",
        ),
        (
            Rotary(ANGLES, ANGLES, np.ones((3, 7, 2)), np.ones((3, 7, 2))),
            ValueError,
            "rotary.k_cos.shape is (3, 7, 2); it must be (2, 7, F)",
        ),
        (
            Rotary(ANGLES, ANGLES, np.ones((7, 1)), np.ones((7, 1))),
            ValueError,
            "rotary.k_cos.shape[-1] is 1; it must be that of rotary.cos, 2",
        ),
        (
            Rotary(np.ones((4, 3)), np.ones((4, 3)), LONG, LONG),
            ValueError,
            "rotary.cos.shape[-1] is 3; it must be at most half of head_dim 5",
        ),
        (
            Rotary(ANGLES.astype(int), ANGLES, LONG, LONG),
            TypeError,
            "rotary.cos has dtype int64; it must be",
        ),
        (
            Rotary(ANGLES, ANGLES, LONG.astype("f2"), LONG.astype("f2")),
            TypeError,
            "rotary.k_cos has dtype float16; it must be float32 or float64",
        ),
    ],
    ids=str,
)
def test_both_sides_refuse_bad_angles(both_refuse, given, error, words):
    q, kv = np.ones((2, 3, 4, 5)), np.ones((2, 3, 7, 5))
    both_refuse("attention", {"q": q, "k": kv, "v": kv, "rotary": given}, error, words)
