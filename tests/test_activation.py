"""Activations: the reference against torch, differences and mpmath; the kernel by contract."""

import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify import rounding
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import activation as contract
from twofold.core.verify.derivatives import check_gradients, ridders
from twofold.reference import activation, normal

SMOOTH = ("gelu", "gelu_tanh", "tanh", "silu")


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64, each as far off as its own formula allows."""
    case = dataclasses.replace(case, dtype="float64")
    given = contract.inputs(case)
    x = torch.tensor(given.x, requires_grad=True)
    bias = torch.tensor(given.bias if case.bias else 0.0, requires_grad=True)
    z = x + bias if case.bias else x
    if case.kind == "relu":
        out = torch.relu(z)
    elif case.kind == "tanh":
        out = torch.tanh(z)
    elif case.kind == "silu":
        out = torch.nn.functional.silu(z)
    else:
        how = "tanh" if case.kind == "gelu_tanh" else "none"
        out = torch.nn.functional.gelu(z, approximate=how)
    out.backward(torch.tensor(given.dout))
    bounds = contract.truth(case)
    errors = {
        "gelu_tanh": torch_gelu_tanh_errors,
        "silu": torch_silu_errors,
        "tanh": torch_tanh_errors,
    }
    if case.kind in errors:
        for name, error in errors[case.kind](given).items():
            total = bounds[name].error + error
            bounds[name] = dataclasses.replace(bounds[name], error=total)
    results = {"out": out.detach(), "dx": x.grad} | ({"dbias": bias.grad} if case.bias else {})
    assert results.keys() == bounds.keys()
    for name, found in results.items():
        assert compare(name, found.numpy(), bounds[name])[2] == ""


def torch_gelu_tanh_errors(given):
    """Bound torch's ½z·(1 + tanh a): absolute in the tail, where our own is relative."""
    z, dout = argument(given)
    a = z * (activation.LINEAR + activation.CUBIC * z * z)
    t = a.function(np.tanh, lambda a: 1 - np.tanh(a) ** 2, 4 / 27**0.5)
    slope = activation.LINEAR + 3 * activation.CUBIC * z * z
    dz = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * slope
    return {"out": (0.5 * z * (1.0 + t)).error, **gradients(dout * dz, given)}


def torch_silu_errors(given):
    """Bound torch's gradient dout·σ·(1 + z·(1 − σ)): 1 − σ cancels where σ is near 1."""
    z, dout = argument(given)
    share = contract._sigmoid(z)[0]
    return gradients(dout * (share * (1.0 + z * (1.0 - share))), given)


def argument(given):
    """Return the activation's argument, and the gradient of its result."""
    on = rounding.machine("float64")
    z = rounding.exact(given.x, on)
    z = z if given.bias is None else z + rounding.exact(given.bias, on)
    return z, rounding.exact(given.dout, on)


def gradients(dx, given):
    return {"dx": dx.error} | ({} if given.bias is None else {"dbias": dx.sum(0).error})


def torch_tanh_errors(given):
    """Bound torch's gradient dout·(1 − tanh²): absolute in the tail, where our own is relative."""
    z, dout = argument(given)
    t = rounding.tanh(z)
    return gradients(dout * (1.0 - t * t), given)


@pytest.mark.parametrize("kind", activation.KINDS)
def test_gradients_are_slopes(kind):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 5, 11))
    x = np.where(np.abs(x) < 0.1, 0.5, x)  # ReLU has no slope at its corner

    def value(x):
        return float((activation.forward(x, kind)[0] * dout).sum())

    dx = activation.backward(dout, activation.forward(x, kind)[1]).dx
    check_gradients(value, {"x": x}, {"x": dx}, rng)


@pytest.mark.parametrize("kind", activation.KINDS)
def test_gradients_of_a_bias_are_slopes(kind):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 3, 4, 5))
    x, bias = np.where(np.abs(x) < 0.1, 0.5, x), 0.05 * rng.random(5)

    def value(x, bias):
        return float((activation.forward(x, kind, bias)[0] * dout).sum())

    found = activation.backward(dout, activation.forward(x, kind, bias)[1])
    check_gradients(value, {"x": x, "bias": bias}, {"x": found.dx, "bias": found.dbias}, rng)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4), (3, 0)])
def test_a_bias_goes_with_any_leading_axes(reference, triton, shape):
    """For one row, nested rows, or none; without a bias there is no dbias."""
    rng = np.random.default_rng(0)
    x, dout, bias = rng.random(shape), rng.random(shape), rng.random(shape[-1])
    for side in (reference, triton):
        given = [side.asarray(a, "float32") for a in (x, dout, bias)]
        out, cache = side.activation.forward(given[0], "relu", given[2])
        found = side.activation.backward(given[1], cache)
        total = given[0] + given[2]
        assert np.array_equal(side.to_numpy(out), side.to_numpy(total))  # all of it is positive
        assert np.array_equal(side.to_numpy(found.dx), side.to_numpy(given[1]))
        assert found.dbias.shape == bias.shape
        if x.ndim == 1:
            assert np.array_equal(side.to_numpy(found.dbias), side.to_numpy(given[1]))
        if x.size == 0:
            assert not side.to_numpy(found.dbias).any()
        without = side.activation.forward(given[0], "relu")[1]
        assert side.activation.backward(given[1], without).dbias is None


def test_gelu_is_the_formula_at_high_precision_down_to_its_tail():
    """The error is relative everywhere, and no larger than Φ's rounded exponent explains."""
    z = np.array([-37.0, -12.5, -5.7, -5.6, -1.0, -0.6, -1e-9, 0.3, 0.7, 4.0, 6.0, 50.0])
    with mpmath.workdps(50):
        truth = np.array([float(mpmath.mpf(a) * mpmath.ncdf(mpmath.mpf(a))) for a in z])
    out, _ = activation.forward(z, "gelu")
    on = rounding.machine("float64")
    # Φ(z) is exp(−½s²)·exp(−½(z − s)(z + s))·R: relative errors only, none that grows with z
    factors = rounding.exp(rounding.exact(-1.0 * np.ones_like(z), on))
    relative = 4 * factors.error / factors.value
    bound = rounding.Approx(truth, relative * np.abs(truth), on)
    assert compare("out", out, bound)[2] == ""


def test_gelu_tanh_is_the_formula_at_high_precision():
    z = np.array([-9.0, -3.0, -1.0, -1e-9, 0.3, 2.0, 9.0])
    with mpmath.workdps(60):
        root = mpmath.sqrt(2 / mpmath.pi)
        truth = np.array(
            [
                float(a / 2 * (1 + mpmath.tanh(root * (a + mpmath.mpf("0.044715") * a**3))))
                for a in map(mpmath.mpf, z)
            ]
        )
    bound = contract.activate(rounding.exact(z, rounding.machine("float64")), "gelu_tanh")
    out, _ = activation.forward(z, "gelu_tanh")
    assert compare("out", out, dataclasses.replace(bound, value=truth))[2] == ""


def test_tanh_and_its_slope_are_the_formulas_at_high_precision():
    z = np.array([-30.0, -9.0, -1.0, -1e-9, 0.0, 0.3, 2.0, 9.0, 30.0])
    with mpmath.workdps(60):
        exact = [mpmath.tanh(mpmath.mpf(a)) for a in z]
        truth = np.array([float(t) for t in exact]), np.array([float(1 - t * t) for t in exact])
    on = rounding.machine("float64")
    out, cache = activation.forward(z, "tanh")
    dx = activation.backward(np.ones_like(z), cache).dx
    bounds = (contract.activate, contract.activate_grad)
    for name, found, right, bound in zip(("out", "dx"), (out, dx), truth, bounds, strict=True):
        held = dataclasses.replace(bound(rounding.exact(z, on), "tanh"), value=right)
        assert compare(name, found, held)[2] == ""


def test_silu_and_its_slope_are_the_formulas_at_high_precision():
    z = np.array(
        [-700.0, -90.0, -9.0, -1.2784645, -1e-9, 0.0, 0.3, 2.0, 14.3, 23.1, 31.7, 40.0, 1e15]
    )
    with mpmath.workdps(60):
        exact = [mpmath.mpf(a) for a in z]
        share = [1 / (1 + mpmath.exp(-a)) for a in exact]
        out = np.array([float(a * s) for a, s in zip(exact, share, strict=True)])
        dx = np.array([float(s + a * s * (1 - s)) for a, s in zip(exact, share, strict=True)])
    on = rounding.machine("float64")
    found, cache = activation.forward(z, "silu")
    gradient = activation.backward(np.ones_like(z), cache).dx
    for name, a, truth, bound in (
        ("out", found, out, contract.activate), ("dx", gradient, dx, contract.activate_grad)
    ):  # fmt: skip
        held = dataclasses.replace(bound(rounding.exact(z, on), "silu"), value=truth)
        assert compare(name, a, held)[2] == ""


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_silu_saturates_without_a_warning(reference, dtype):
    """e⁻ᶻ would overflow: warnings are errors here."""
    z = np.array([-6e4, -1e3, -60.0, 60.0, 6e4, np.inf], dtype)
    out, _ = reference.activation.forward(z, "silu")
    assert np.array_equal(out[3:], z[3:]) and np.array_equal(out[:2], [0.0, 0.0])
    finite = z[:-1]
    _, cache = reference.activation.forward(finite, "silu")
    dx = reference.activation.backward(np.ones_like(finite), cache).dx
    assert np.array_equal(dx[[0, 1, 4]], [0.0, 0.0, 1.0])


def test_normal_distribution_in_float32_is_as_close_as_it_says():
    z = np.linspace(-6, 6, 200_001).astype(np.float32)
    distance = np.abs(normal.cdf(z).astype(np.float64) - normal.cdf(z.astype(np.float64)))
    assert distance.max() <= 2.5 * 2.0**-24
    far = np.array([5.75, 9.0, 1e9, np.inf], np.float32)
    assert (normal.cdf(far) == 1).all() and (normal.cdf(-far) == 0).all()


@pytest.mark.parametrize("kind", SMOOTH)
def test_derivatives_of_the_bound_are_slopes_and_no_steeper_than_it_says(kind):
    z = np.linspace(-12, 12, 24_001)
    first, second = contract.derivatives(z, kind)
    third = np.diff(second) / np.diff(z)
    for found, most in zip((first, second, third), contract.STEEPEST[kind], strict=True):
        assert 0.9999 * most <= np.abs(found).max() <= most
    for at in (-3.0, -0.7, 0.1, 2.5):
        here = np.array(at)
        for order, f in enumerate(
            (
                lambda z: activation.forward(z, kind)[0],
                lambda z: contract.derivatives(z, kind)[0],
            )
        ):
            slope, error = ridders(lambda t, f=f, here=here: float(f(here + t)))
            assert abs(contract.derivatives(here, kind)[order] - slope) <= 10 * error


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slopes_fall_beyond_where_the_bound_takes_them_to(kind, sign):
    z = sign * np.linspace(contract.FLAT, 40, 37_001)
    for slope in contract.derivatives(z, kind):
        assert (np.diff(np.abs(slope)) <= np.finfo(float).eps).all()


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("formula", [contract._formula, contract._formula_grad])
def test_what_the_formulas_round_grows_no_faster_than_the_bound_says(kind, formula):
    on = rounding.machine("float32")
    z = np.linspace(-60, 60, 240_001)
    error = formula(rounding.exact(z, on), kind).error
    growth = np.abs(np.diff(error)).max() / (z[1] - z[0])
    assert growth <= contract.GROWTH * on.u


@pytest.mark.parametrize("kind", activation.KINDS)
def test_not_a_number_stays_one_both_ways(reference, triton, kind):
    for side in (reference, triton):
        x = side.asarray(np.array([1.0, np.nan, -1.0]), "float32")
        out, cache = side.activation.forward(x, kind)
        assert np.isnan(side.to_numpy(out)).tolist() == [False, True, False]
        dx = side.activation.backward(side.asarray(np.ones(3), "float32"), cache).dx
        # ReLU's derivative is a comparison, which is false for NaN
        assert np.isnan(side.to_numpy(dx)).tolist() == [False, kind != "relu", False]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(x=np.ones(3, int)), TypeError, "x has dtype int64; it must be one of float16"),
        (dict(x=1.0), TypeError, "x is a float; it must be an array"),
        (dict(bias=np.ones(2)), ValueError, "bias.shape is (2,); it must be (3,)"),
        (dict(bias=np.ones((1, 3))), ValueError, "bias.shape is (1, 3); it must be of rank 1"),
        (dict(bias=np.ones(3, "f4")), TypeError, "bias has dtype float32; it must have the dtype"),
        (
            dict(x=np.ones(()), bias=np.ones(1)),
            ValueError,
            "x.shape is (); it must be of rank 1 or more, as bias",
        ),
        (dict(kind="swish"), ValueError, "kind is 'swish'; it must be one of 'gelu', 'gelu_tanh'"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("activation", {"x": np.ones(3), "kind": "gelu"} | changed, error, words)


@pytest.mark.parametrize(("split", "error"), [(0, ValueError), (-1, ValueError), ("a", TypeError)])
def test_a_split_is_a_number_of_shares(triton, split, error):
    _, cache = triton.activation.forward(triton.zeros((2, 3)), "relu", triton.zeros(3))
    with pytest.raises(error, match="^split is "):
        triton.activation.backward(triton.zeros((2, 3)), cache, split=split)


def test_where_nothing_is_known_relu_of_it_is_not_decided():
    """As for a sum of products that may exceed the largest float32."""
    unknown = rounding.Approx(np.array([1.0]), np.array([np.inf]), rounding.machine("float32"))
    found = contract.activate(unknown, "relu")
    assert found.value == 1 and found.error == np.inf
