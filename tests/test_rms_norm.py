"""RMSNorm: the reference against torch, differences and mpmath; the kernel by contract."""

import dataclasses

import mpmath
import norms
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify import rounding
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import rms_norm as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import layer_norm, rms_norm


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64: each may be as far from the mathematics as float64's own bound."""
    case = dataclasses.replace(case, dtype="float64")
    given = contract.inputs(case)
    x, weight, residual = norms.leaves(given, "x", "weight", "residual")
    h = x + (0.0 if residual is None else residual)
    out = torch.nn.functional.rms_norm(h, h.shape[-1:], weight + case.offset, case.eps)
    norms.check_torch(contract, case, given, out, h, dx=x, dweight=weight, dresidual=residual)


def test_gradients_are_slopes():
    rng = np.random.default_rng(0)
    x, residual, dout, dh = rng.standard_normal((4, 3, 5, 11))
    arguments = {"x": x, "weight": rng.standard_normal(11), "residual": residual}
    how = {"eps": 1e-3, "offset": 1.0}

    def value(**arguments):
        out, cache = rms_norm.forward(**arguments, **how)
        return float((out * dout).sum() + (cache.h * dh).sum())

    gradients = rms_norm.backward(dout, rms_norm.forward(**arguments, **how)[1], dh)
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


@pytest.mark.parametrize(("offset", "eps"), [(0.0, 1e-12), (1.0, 1e-6), (1.0, 30.0)])
def test_forward_is_the_formula_at_high_precision(offset, eps):
    x, weight = [3.0, -4e-3, 5e3], [0.5, -1.25, 3.0]
    with mpmath.workdps(50):
        mean_square = mpmath.fsum(mpmath.mpf(a) ** 2 for a in x) / 3
        root = mpmath.sqrt(mean_square + mpmath.mpf(eps))
        truth = [
            float(mpmath.mpf(a) / root * (mpmath.mpf(w) + offset))
            for a, w in zip(x, weight, strict=True)
        ]
    out, _ = rms_norm.forward(np.array([x]), np.array(weight), eps=eps, offset=offset)
    case = contract.Case(dtype="float64", rows=1, columns=3, eps=eps, offset=offset)
    on = rounding.machine(case.dtype)
    normed, _ = contract.normalised(rounding.exact(np.array([x]), on), eps)
    bound = normed * (rounding.exact(np.array(weight), on) + offset)
    assert compare("out", out, dataclasses.replace(bound, value=np.array([truth])))[2] == ""


def test_gradients_are_orthogonal_to_the_stream():
    """RMSNorm ignores a row's scale, so no gradient points along the row."""
    case = contract.Case(dtype="float64", rows=7, columns=13, eps=1e-37, seed=1)
    given = contract.inputs(case)
    out, cache = rms_norm.forward(given.x, given.weight, eps=case.eps)
    dx = rms_norm.backward(given.dout, cache).dx
    bound = contract.truth(case, given)["dx"]
    along = (bound * rounding.exact(given.x, bound.on)).sum(1)
    assert (np.abs((dx * given.x).sum(1)) <= along.error).all()


def test_it_is_layer_norm_where_the_mean_is_zero(reference):
    """With rows beside their negatives, the subtracted mean is 0 in any order of the sum."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((5, 8))
    x, weight = np.concatenate([half, -half], axis=1), rng.standard_normal(16)
    ours, _ = rms_norm.forward(x, weight, eps=1e-5)
    theirs, _ = layer_norm.forward(x, weight, np.zeros(16), eps=1e-5)
    case = contract.Case(dtype="float64", rows=5, columns=16, eps=1e-5)
    given = contract.inputs(case)._replace(x=x, weight=weight)
    bound = contract.truth(case, given)["out"]
    for out in (ours, theirs):
        assert compare("out", out, bound)[2] == ""


def test_a_residual_has_the_gradient_of_x(reference, triton):
    for side in (reference, triton):
        x, residual = (side.asarray(np.ones((2, 3)), "float32") for _ in range(2))
        _, cache = side.rms_norm.forward(x, side.asarray(np.ones(3), "float32"), residual=residual)
        found = side.rms_norm.backward(x, cache)
        assert found.dresidual is found.dx
        _, cache = side.rms_norm.forward(x, side.asarray(np.ones(3), "float32"))
        assert side.rms_norm.backward(x, cache).dresidual is None and cache.h is x


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        *norms.REFUSED,
        (dict(weight=None), TypeError, "weight is a NoneType; it must be an array"),
        (dict(residual=3), TypeError, "residual is a int; it must be an array"),
        (dict(eps=None), TypeError, "eps is a NoneType; it must be a number"),
        (dict(offset="1"), TypeError, "offset is a str; it must be a number"),
        (dict(offset=float("nan")), ValueError, "offset is nan; it must be finite"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("rms_norm", norms.ARGUMENTS | changed, error, words)


def test_bad_gradients_are_refused(side):
    def ones(*shape):
        return side.asarray(np.ones(shape), "float32")

    _, cache = side.rms_norm.forward(ones(2, 3), ones(3))
    with pytest.raises(ValueError, match=r"^dh\.shape is \(3, 2\); it must be \(2, 3\)"):
        side.rms_norm.backward(ones(2, 3), cache, ones(3, 2))
    for into, words in (
        ((ones(4),), r"^into's dweight\.shape is \(4,\); it must be \(3,\)"),
        ((ones(3), ones(3)), r"^into is a tuple of 2; it must be \(dweight\), or None"),
    ):
        with pytest.raises(ValueError, match=words):
            side.rms_norm.backward(ones(2, 3), cache, into=into)


def test_rows_that_no_tile_holds_are_refused(triton):
    x, w = (triton.asarray(np.ones(65537), "float32") for _ in range(2))
    with pytest.raises(ValueError, match=r"^x\.shape\[-1\] is 65537; it must be at most 65536"):
        triton.rms_norm.forward(x, w)
