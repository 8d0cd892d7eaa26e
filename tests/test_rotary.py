"""Rotary positions: reference against torch, slopes and mpmath; kernel by contract."""

import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import rotary as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import rotary


def test_every_tile_is_pinned(triton):
    assert {c.tile for c in contract.CONTRACT.pinned} - {None} == set(
        range(len(triton.rotary.TILES))
    )


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Products of complex numbers, in float64: no further off than float64's own bound."""
    case = dataclasses.replace(case, dtype="float64")
    x = contract.inputs(case)
    angle = torch.complex(torch.tensor(x.cos), torch.tensor(x.sin))
    angle = angle.reshape(-1, 1, case.length, case.pairs)
    theirs = {}
    for name, value, dout in (("q", x.q, x.dq_out), ("k", x.k, x.dk_out)):
        leaf = torch.tensor(value, requires_grad=True)
        turning, rest = leaf.split([2 * case.pairs, case.head_dim - 2 * case.pairs], -1)
        halves = (case.pairs, 2) if case.interleaved else (2, case.pairs)
        pairs = turning.unflatten(-1, halves)
        one, two = pairs.unbind(-1 if case.interleaved else -2)
        turned = torch.complex(one, two) * angle
        dim = -1 if case.interleaved else -2
        out = torch.cat([torch.stack([turned.real, turned.imag], dim).flatten(-2), rest], -1)
        (out * torch.tensor(dout)).sum().backward()
        theirs |= {name: out.detach(), f"d{name}": leaf.grad}
    bounds = contract.truth(case)
    for name, value in theirs.items():
        assert compare(name, value.numpy(), bounds[name])[2] == ""


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_are_slopes(interleaved):
    rng = np.random.default_rng(0)
    q, dq_out = rng.standard_normal((2, 2, 3, 4, 7))
    k, dk_out = rng.standard_normal((2, 2, 1, 4, 7))
    cos, sin = rotary.tables(rng.integers(0, 9, (2, 4)), 6)

    def value(q, k):
        out = rotary.forward(q, k, cos, sin, interleaved=interleaved)[0]
        return float((out[0] * dq_out).sum() + (out[1] * dk_out).sum())

    cache = rotary.forward(q, k, cos, sin, interleaved=interleaved)[1]
    gradients = rotary.backward(dq_out, dk_out, cache)
    arguments = {"q": q, "k": k}
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


@pytest.mark.parametrize("base", [10000.0, 500000.0, 0.5])
def test_tables_are_the_formula_at_high_precision(side, base):
    """In float32, up to position 10⁶: one rounding, and the angle's error in float64."""
    case = contract.Case(length=3, pairs=7, base=base, first=10**6 - 2)
    positions = case.first + np.arange(case.length)
    with mpmath.workdps(40):
        angle = [
            [int(p) / mpmath.mpf(base) ** (mpmath.mpf(f) / case.pairs) for f in range(case.pairs)]
            for p in positions
        ]
        truth = [
            np.array([[float(f(a)) for a in row] for row in angle])
            for f in (mpmath.cos, mpmath.sin)
        ]
    found = side.rotary.tables(side.asarray(positions), 14, base=base, dtype="float32")
    on = contract.machine("float32")
    for value, table, bound in zip(truth, found, contract.tables(case, positions), strict=True):
        bound = contract.cast(bound, on)
        assert compare("t", side.to_numpy(table), dataclasses.replace(bound, value=value))[2] == ""


def turned(side, case, given):
    """Run forward on a case's inputs."""
    cos, sin = (side.asarray(x, contract.table_dtype(case)) for x in (given.cos, given.sin))
    q, k = contract.place(side, given.q, given.k, case)
    return side.rotary.forward(q, k, cos, sin, interleaved=case.interleaved)


def test_backward_writes_into_views_of_a_packed_gradient(triton):
    """Even in place; the rest of the array stays as it was."""
    case = contract.Case(batch=2, heads=3, key_heads=2, length=37, head_dim=11, interleaved=True)
    given = contract.inputs(case)
    _, cache = turned(triton, case, given)
    dout = contract.place(triton, given.dq_out, given.dk_out, case)
    expected = triton.rotary.backward(*dout, cache)
    packed = triton.zeros((2, 37, 7, 11)) + 5.0
    views = [packed[:, :, heads].swapaxes(1, 2) for heads in (slice(3), slice(3, 5))]
    for placed in (dout, views):
        for view, d in zip(views, dout, strict=True):
            view.copy_(d)
        grads = triton.rotary.backward(*placed, cache, into=tuple(views))
        for found, view, want in zip(grads, views, expected, strict=True):
            assert found.data_ptr() == view.data_ptr()
            assert np.array_equal(triton.to_numpy(view), triton.to_numpy(want))
        assert (triton.to_numpy(packed)[:, :, 5:] == 5.0).all()


def test_numpy_writes_into_what_it_is_given(reference):
    case = contract.Case(batch=2, heads=3, key_heads=2, length=5, head_dim=6, pairs=2)
    given = contract.inputs(case)
    _, cache = turned(reference, case, given)
    dout = (given.dq_out, given.dk_out)
    expected = reference.rotary.backward(*dout, cache)
    in_place, views = [x.copy() for x in dout], [np.empty((*x.shape, 2))[..., 1] for x in dout]
    for of, into in ((in_place, in_place), (dout, views)):
        for found, to, want in zip(
            reference.rotary.backward(*of, cache, into=into), into, expected, strict=True
        ):
            assert found is to and np.array_equal(to, want)


def test_results_lie_with_the_heads_of_a_position_side_by_side(triton):
    case = contract.Case(batch=2, heads=3, key_heads=1, length=5)
    (q, k), _ = turned(triton, case, contract.inputs(case))
    assert q.transpose(1, 2).is_contiguous() and k.transpose(1, 2).is_contiguous()


Q, K, T = np.ones((2, 3, 4, 6)), np.ones((2, 1, 4, 6)), np.ones((4, 3))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(q=Q.astype(int)), TypeError, "q has dtype int64; it must be one of float16"),
        (dict(k=K.astype("f4")), TypeError, "k has dtype float32; it must have the dtype of q"),
        (dict(q=Q[0]), ValueError, "q.shape is (3, 4, 6); it must be of rank 4, (B, H, L, D)"),
        (dict(k=K[:1]), ValueError, "k.shape is (1, 1, 4, 6); it must be (2, K, 4, 6)"),
        (dict(sin=T.astype("f4")), TypeError, "sin has dtype float32; it must have the dtype of c"),
        (
            dict(cos=T.astype("f2"), sin=T.astype("f2")),
            TypeError,
            "cos has dtype float16; it must be float32 or float64",
        ),
        (dict(cos=T[:3]), ValueError, "cos.shape is (3, 3); it must be (4, F)"),
        (dict(cos=np.ones((3, 4, 3))), ValueError, "cos.shape is (3, 4, 3); it must be (2, 4, F)"),
        (dict(sin=T[:, :2]), ValueError, "sin.shape is (4, 2); it must be (4, 3)"),
        (
            dict(cos=np.ones((4, 4)), sin=np.ones((4, 4))),
            ValueError,
            "cos.shape[-1] is 4; it must be at most half of head_dim 6",
        ),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("rotary", {"q": Q, "k": K, "cos": T, "sin": T} | changed, error, words)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(positions=np.ones(3)), TypeError, "positions has dtype float64; it must be int32"),
        (dict(positions=np.array(1)), ValueError, "positions.shape is (); it must be (L,) or"),
        (dict(rotary_dim=4.0), ValueError, "rotary_dim is 4.0; it must be even and at least 2"),
        (dict(rotary_dim=5), ValueError, "rotary_dim is 5; it must be even and at least 2"),
        (dict(base=0.0), ValueError, "base is 0.0; it must be positive"),
        (dict(base=np.inf), ValueError, "base is inf; it must be finite"),
    ],
)
def test_bad_tables_are_refused(both_refuse, changed, error, words):
    both_refuse(
        "rotary", {"positions": np.arange(3), "rotary_dim": 4} | changed, error, words, "tables"
    )
