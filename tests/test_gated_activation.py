"""Gated activation: the reference against torch, differences and mpmath; the kernel by contract."""

import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify import rounding
from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import gated_activation as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import gated_activation
from twofold.reference.activation import KINDS

TORCHS = {  # those whose formulas in torch err as ours do
    "silu": lambda x: x * torch.exp(torch.nn.functional.logsigmoid(x)),
    "gelu": torch.nn.functional.gelu,
    "relu": torch.relu,
}


def three(side, shape=(2, 3, 5), dtype="float32"):
    rng = np.random.default_rng(0)
    return [side.asarray(rng.standard_normal(shape), dtype) for _ in range(3)]


def halves(x):
    C = x.shape[-1] // 2
    return x[..., :C], x[..., C:]


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64, each as far off as its own formula allows."""
    kind = case.kind if case.kind in TORCHS else "silu"
    case = dataclasses.replace(case, dtype="float64", kind=kind)
    x = contract.inputs(case)
    gate, up = (torch.tensor(a, requires_grad=True) for a in x[:2])
    out = TORCHS[kind](gate) * up
    out.backward(torch.tensor(x.dout))
    theirs = {"out": out.detach(), "dgate": gate.grad, "dup": up.grad}
    for name, bound in contract.truth(case).items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_slopes(kind):
    rng = np.random.default_rng(0)
    gate, up, dout = rng.standard_normal((3, 5, 11))
    gate = np.where(np.abs(gate) < 0.1, 0.5, gate)  # ReLU has no slope at its corner

    def value(gate, up):
        return float((gated_activation.forward(gate, up, kind)[0] * dout).sum())

    found = gated_activation.backward(dout, gated_activation.forward(gate, up, kind)[1])
    check_gradients(value, {"gate": gate, "up": up}, {"gate": found.dgate, "up": found.dup}, rng)


def test_swiglu_is_the_formula_at_high_precision():
    gate = np.array([-300.0, -9.0, -1.2784645, -1e-9, 0.0, 0.3, 2.0, 40.0])
    up = np.array([3.0, -0.1, 7.0, 1e9, 2.0, 0.7, 1e-9, -5.0])
    with mpmath.workdps(60):
        x, y = ([mpmath.mpf(a) for a in given] for given in (gate, up))
        share = [1 / (1 + mpmath.exp(-a)) for a in x]
        f = [a * s for a, s in zip(x, share, strict=True)]
        slope = [s + a * s * (1 - s) for a, s in zip(x, share, strict=True)]
        values = {"out": (f, y), "dgate": (slope, y), "dup": (f, [1] * len(f))}
        truth = {n: [float(a * b) for a, b in zip(*of, strict=True)] for n, of in values.items()}
    case = contract.Case(dtype="float64")
    bounds = contract.truth(case, contract.Inputs(gate, up, np.ones_like(gate)))
    out, cache = gated_activation.forward(gate, up)
    found = {"out": out, **gated_activation.backward(np.ones_like(gate), cache)._asdict()}
    for name, a in found.items():
        held = dataclasses.replace(bounds[name], value=np.array(truth[name]))
        assert compare(name, a, held)[2] == ""
    on = rounding.machine("float64")
    assert all(bounds[n].on == on for n in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_with_ones_for_up_it_is_the_activation(reference, triton, kind, dtype):
    """A product with 1 is exact: the bits are the same, and dgate is the activation's dx."""
    for side in (reference, triton):
        gate, _, dout = three(side, dtype=dtype)
        out, cache = side.gated_activation.forward(
            gate, side.asarray(np.ones((2, 3, 5)), dtype), kind
        )
        expected, other = side.activation.forward(gate, kind)
        assert np.array_equal(side.to_numpy(out), side.to_numpy(expected))
        if side is triton or dtype == "float32":  # float16's slope is rounded in NumPy's activation
            dgate = side.gated_activation.backward(dout, cache).dgate
            dx = side.activation.backward(dout, other).dx
            assert np.array_equal(side.to_numpy(dgate), side.to_numpy(dx))


def test_float16_is_float32_rounded_once(reference):
    gate, up, dout = three(reference, dtype="float16")
    single = [a.astype(np.float32) for a in (gate, up, dout)]
    half_out, half = reference.gated_activation.forward(gate, up)
    out, cache = reference.gated_activation.forward(*single[:2])
    assert np.array_equal(half_out, out.astype(np.float16)) and half_out.dtype == np.float16
    ours = reference.gated_activation.backward(dout, half)
    for a, b in zip(ours, reference.gated_activation.backward(single[2], cache), strict=True):
        assert a.dtype == np.float16 and np.array_equal(a, b.astype(np.float16))


def test_halves_of_one_projection_are_read_where_they_lie(triton, monkeypatch):
    """And gradients are written in place: no tensor is allocated but out."""
    both = triton.asarray(np.random.default_rng(0).standard_normal((2, 3, 10)), "float32")
    packed = triton.zeros((2, 3, 10))
    expected = [triton.gated_activation.forward(*(x.contiguous() for x in halves(both)))]
    dout = expected[0][0]
    apart = triton.gated_activation.backward(dout, expected[0][1])
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    monkeypatch.setattr(torch.Tensor, "copy_", None)
    monkeypatch.setattr(torch.Tensor, "clone", None)
    out, cache = triton.gated_activation.forward(*halves(both))
    found = triton.gated_activation.backward(dout, cache, into=halves(packed))
    assert torch.equal(out, dout)
    for a, b, half in zip(found, apart, halves(packed), strict=True):
        assert a.data_ptr() == half.data_ptr() and torch.equal(half, b)


def test_gradients_may_take_the_place_of_gate_and_up(side):
    gate, up, dout = three(side)
    expected = side.gated_activation.backward(dout, side.gated_activation.forward(gate, up)[1])
    _, cache = side.gated_activation.forward(gate, up)
    found = side.gated_activation.backward(dout, cache, into=(gate, up))
    assert found.dgate is gate and found.dup is up
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(side.to_numpy(a), side.to_numpy(b))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4), (0,)])
def test_of_nothing_there_is_nothing(reference, triton, shape):
    for side in (reference, triton):
        gate, up, dout = three(side, shape)
        out, cache = side.gated_activation.forward(gate, up)
        found = side.gated_activation.backward(dout, cache)
        assert tuple(out.shape) == tuple(found.dgate.shape) == tuple(found.dup.shape) == shape


@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number_stays_one_both_ways(reference, triton, kind):
    for side in (reference, triton):
        gate = side.asarray(np.array([1.0, np.nan, -1.0, 2.0]), "float32")
        up = side.asarray(np.array([1.0, 1.0, np.nan, 2.0]), "float32")
        out, cache = side.gated_activation.forward(gate, up, kind)
        assert np.isnan(side.to_numpy(out)).tolist() == [False, True, True, False]
        found = side.gated_activation.backward(side.asarray(np.ones(4), "float32"), cache)
        # ReLU's derivative is a comparison, which is false for NaN
        of_gate = np.isnan(side.to_numpy(found.dgate)).tolist()
        assert of_gate == [False, kind != "relu", True, False]
        assert np.isnan(side.to_numpy(found.dup)).tolist() == [False, True, False, False]


def test_every_tile_is_chosen(triton):
    kernels = triton.gated_activation
    assert {kernels.choose_tile(C) for C in (1, 256, 257, 10**6)} == {t for _, t in kernels.TILES}


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(gate=np.ones(3, int)), TypeError, "gate has dtype int64; it must be one of float16"),
        (dict(gate=1.0), TypeError, "gate is a float; it must be an array"),
        (
            dict(gate=np.ones(()), up=np.ones(())),
            ValueError,
            "gate.shape is (); it must be of rank",
        ),
        (dict(up=np.ones(2)), ValueError, "up.shape is (2,); it must be (3,)"),
        (dict(up=np.ones((1, 3))), ValueError, "up.shape is (1, 3); it must be of rank 1"),
        (dict(up=np.ones(3, "f4")), TypeError, "up has dtype float32; it must have the dtype of"),
        (dict(up=None), TypeError, "up is a NoneType; it must be an array"),
        (dict(kind="swiglu"), ValueError, "kind is 'swiglu'; it must be one of 'gelu'"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("gated_activation", {"gate": np.ones(3), "up": np.ones(3)} | changed, error, words)


def test_what_gradients_cannot_be_written_into_is_refused(side):
    gate, up, dout = three(side)
    _, cache = side.gated_activation.forward(gate, up)
    for into, words in (
        ((gate[..., :-1], up), r"into's dgate\.shape is \(2, 3, 4\); it must be \(2, 3, 5\)"),
        ((None, up[0]), r"into's dup\.shape is \(3, 5\); it must be of rank 3"),
        ((gate,), r"into is a tuple of 1; it must be \(dgate, dup\), or None"),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            side.gated_activation.backward(dout, cache, into=into)
