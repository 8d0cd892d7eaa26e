"""Layer norm: the reference against torch, differences and mpmath; the kernel by contract."""

import dataclasses

import mpmath
import norms
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify import rounding
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import layer_norm as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import dropout, layer_norm, linear, rms_norm


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64: each may be as far from the mathematics as float64's own bound."""
    case = dataclasses.replace(case, dtype="float64")
    given = contract.inputs(case)
    x, weight, bias, residual = norms.leaves(given, "x", "weight", "bias", "residual")
    keep = torch.tensor(dropout.scaled_mask(x.shape, case.dropout_p, case.seed, "float64"))
    h = x * keep + (0.0 if residual is None else residual)
    out = torch.nn.functional.layer_norm(h, h.shape[-1:], weight, bias, case.eps)
    norms.check_torch(
        contract, case, given, out, h, dx=x, dweight=weight, dbias=bias, dresidual=residual
    )


def test_gradients_are_slopes():
    rng = np.random.default_rng(0)
    x, residual, dout, dh = rng.standard_normal((4, 3, 5, 11))
    weight, bias = rng.standard_normal((2, 11))
    arguments = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    how = {"dropout_p": 0.3, "seed": 5, "eps": 1e-3}

    def value(**arguments):
        out, cache = layer_norm.forward(**arguments, **how)
        return float((out * dout).sum() + (cache.h * dh).sum())

    gradients = layer_norm.backward(dout, layer_norm.forward(**arguments, **how)[1], dh)
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


def test_forward_is_the_formula_at_high_precision():
    x = [1e4 + 1e-3, 1e4 - 2e-3, 1e4 + 5e-4]
    with mpmath.workdps(50):
        mean = mpmath.fsum(x) / 3
        variance = mpmath.fsum((mpmath.mpf(a) - mean) ** 2 for a in x) / 3
        truth = [float((mpmath.mpf(a) - mean) / mpmath.sqrt(variance + 1e-12)) for a in x]
    out, _ = layer_norm.forward(np.array([x]), np.ones(3), np.zeros(3), eps=1e-12)
    case = contract.Case(dtype="float64", rows=1, columns=3, eps=1e-12)
    on = rounding.machine(case.dtype)
    h = rounding.exact(np.array([x]), on)
    centred = h - h.mean(-1, keepdims=True)
    rstd = 1.0 / rounding.sqrt((centred * centred).mean(-1, keepdims=True) + case.eps)
    bound = centred * rstd
    assert compare("out", out, dataclasses.replace(bound, value=np.array([truth])))[2] == ""


def test_sums_of_float16_are_in_float32():
    """Squares of ±20 sum to more than float16 holds, and so do as many ones."""
    x = np.tile(np.array([20, -20], np.float16), 1 << 16)[None]
    one, signs = np.ones(x.shape[1], np.float16), np.sign(x)
    for norm, more in ((layer_norm, [0 * one]), (rms_norm, [])):
        out, cache = norm.forward(x, one, *more)
        grads = norm.backward(signs, cache)
        assert out.dtype == grads.dx.dtype == grads.dweight.dtype == np.float16
        assert np.array_equal(out, signs)
        assert not grads.dx.any()
        assert np.array_equal(grads.dweight, one)


@pytest.mark.parametrize("to", ["float16", "float32", "float64"])
def test_gradients_are_written_into_arrays_of_any_dtype(to):
    """By both norms as by a linear layer: summed in the inputs' dtype, then cast."""
    x, one = np.random.default_rng(0).standard_normal((3, 3)), np.ones(3)
    for operator, arguments in (
        (layer_norm, (x, one, one)),
        (rms_norm, (x, one)),
        (linear, (x, x, one)),
    ):
        _, cache = operator.forward(*arguments)
        made = operator.backward(x, cache)
        into = tuple(np.empty(a.shape, to) for a in arguments[1:])
        found = operator.backward(x, cache, into=into)
        assert found.dweight is into[0]
        assert np.array_equal(found.dweight, made.dweight.astype(to))
        if operator is not rms_norm:
            assert found.dbias is into[1]
            assert np.array_equal(found.dbias, made.dbias.astype(to))


def test_gradients_are_orthogonal_to_ones_and_to_xhat():
    """Layer norm ignores a row's shift and scale, so no gradient points along them."""
    case = contract.Case(dtype="float64", rows=7, columns=13, eps=1e-37, seed=1)
    ones = np.ones(13)
    given = contract.inputs(case)._replace(weight=ones, bias=0 * ones)
    out, cache = layer_norm.forward(given.x, ones, 0 * ones, eps=case.eps)
    dx = layer_norm.backward(given.dout, cache).dx
    bounds = contract.truth(case, given)
    assert (np.abs(dx.sum(1)) <= bounds["dx"].sum(1).error).all()
    assert (np.abs((dx * out).sum(1)) <= (bounds["dx"] * bounds["out"]).sum(1).error).all()


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        *norms.REFUSED,
        (dict(bias=np.ones((1, 3))), ValueError, "bias.shape is (1, 3); it must be of rank 1"),
        (dict(dropout_p=-0.1), ValueError, "dropout_p is -0.1; it must be at least 0 and below 1"),
        (dict(dropout_p=1.0), ValueError, "dropout_p is 1.0; it must be at least 0 and below 1"),
        (dict(seed=-1), ValueError, "seed is -1; it must be at least 0 and below 2**63"),
        (dict(seed=1.5), TypeError, "seed is a float; it must be an int"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("layer_norm", norms.ARGUMENTS | {"bias": np.ones(3)} | changed, error, words)
