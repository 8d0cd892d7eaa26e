"""Pooling: the reference against torch and differences; the kernel by contract."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import pooling as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import pooling


def test_every_tile_is_pinned(triton):
    pinned = {c.tile for c in contract.CONTRACT.pinned} - {None}
    assert pinned == set(range(len(triton.pooling.TILES)))


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64: each may be as far from the mathematics as float64's own bound.

    Torch gives a maximum's gradient to any position that attains it: values are made distinct.
    """
    case = dataclasses.replace(case, dtype="float64", magnitude="unit")
    x = contract.inputs(case)
    leaf = torch.tensor(x.x, requires_grad=True)
    rows = []
    for sequence, n in zip(leaf, x.lengths, strict=True):
        parts = {"first": sequence[0], "mean": sequence[:n].mean(0), "max": sequence[:n].amax(0)}
        rows.append(torch.cat([parts[name] for name in case.kind.split("_")]))
    out = torch.stack(rows)
    (out * torch.tensor(x.dout)).sum().backward()
    theirs = {"out": out.detach(), "dx": leaf.grad}
    for name, bound in contract.truth(case).items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


@pytest.mark.parametrize("kind", pooling.KINDS)
def test_gradient_is_the_slope(kind):
    """With maxima ahead by 1/2, so that no step changes which element attains them."""
    rng = np.random.default_rng(0)
    x = rng.permuted(np.arange(3 * 7 * 5).reshape(3, 7, 5) / 2, axis=1)
    lengths = np.array([1, 4, 7])
    out, cache = pooling.forward(x, lengths, kind)
    dout = rng.standard_normal(out.shape)

    def value(x):
        return float((pooling.forward(x, lengths, kind)[0] * dout).sum())

    check_gradients(value, {"x": x}, {"x": pooling.backward(dout, cache).dx}, rng)


@pytest.mark.parametrize("kind", ["max", "mean_max"])
def test_the_first_position_that_attains_a_maximum_gets_its_gradient(reference, triton, kind):
    """In every lane of a tile and across tiles; 0 and −0 are the same maximum, −∞ may be one."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (40, 150, 3)).astype("float32")
    x[:20] = np.where(x[:20] == 0, -0.0, 0.0)
    x[20:24] = -np.inf
    lengths = rng.integers(1, 151, 40)
    first = np.array([row[:n].argmax(0) for row, n in zip(x, lengths, strict=True)])
    x[np.arange(150) >= lengths[:, None]] = 5.0  # padding is larger than the tokens
    for side in (reference, triton):
        out, cache = side.pooling.forward(side.asarray(x), side.asarray(lengths), kind)
        dout = np.zeros(out.shape, "float32")
        dout[:, -3:] = 1.0  # of the maximum
        dx = side.to_numpy(side.pooling.backward(side.asarray(dout), cache).dx)
        assert np.array_equal(dx.argmax(1), first)
        assert np.array_equal(dx.sum(1), np.ones((40, 3)))


def test_argmax_takes_four_bytes(triton):
    cache = triton.pooling.forward(triton.zeros((2, 3, 4)), triton.asarray(np.array([1, 3])), "max")
    assert cache[1].argmax.element_size() == 4


@pytest.mark.parametrize("lengths", [[0, 3], [4, 1]])
def test_the_reference_refuses_lengths_out_of_range(lengths):
    with pytest.raises(ValueError, match=r"it must be at least 1 and at most x.shape\[1\], 3"):
        pooling.forward(np.ones((2, 3, 4)), np.array(lengths))


X, LENGTHS = np.ones((2, 3, 4)), np.array([1, 3])


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(x=X.astype(int)), TypeError, "x has dtype int64; it must be one of float16"),
        (dict(x=X[0]), ValueError, "x.shape is (3, 4); it must be of rank 3, (B, L, D)"),
        (dict(x=X[:, :0]), ValueError, "x.shape is (2, 0, 4); it must be (B, L, D) with no"),
        (dict(lengths=X), TypeError, "lengths has dtype float64; it must be int32 or int64"),
        (dict(lengths=LENGTHS[:1]), ValueError, "lengths.shape is (1,); it must be (2,)"),
        (dict(kind="sum"), ValueError, "kind is 'sum'; it must be one of 'first', 'mean', 'max'"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("pooling", {"x": X, "lengths": LENGTHS} | changed, error, words)


@pytest.mark.parametrize("kind", ["mean", "mean_max"])
def test_padding_has_no_gradient_even_where_there_is_no_number(reference, triton, kind):
    x, lengths = np.ones((2, 3, 2), "float32"), np.array([1, 3])
    for side in (reference, triton):
        out, cache = side.pooling.forward(side.asarray(x), side.asarray(lengths), kind)
        dout = np.full(out.shape, np.inf, "float32")
        dout[:, 1] = np.nan
        dx = side.to_numpy(side.pooling.backward(side.asarray(dout), cache).dx)
        assert np.array_equal(dx[0, 1:], np.zeros((2, 2)))
