"""Softmax: the reference against torch, differences and mpmath; the kernel by contract."""

import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import softmax as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import softmax


def test_every_tile_is_pinned_and_chosen(triton):
    tiles = triton.softmax.TILES
    pinned = [(c.tile, c.columns) for c in contract.CONTRACT.pinned if c.tile is not None]
    assert {tile for tile, _ in pinned} == set(range(len(tiles)))
    for tile, columns in pinned:
        assert triton.softmax.choose_tile(columns) == tiles[tile][1] or tile == len(tiles) - 1
    assert max(columns for _, columns in pinned) > 2 * tiles[-1][1].block_c
    for before, (most, tile) in zip((0, *(most for most, _ in tiles)), tiles, strict=False):
        assert triton.softmax.choose_tile(before + 1) == triton.softmax.choose_tile(most) == tile
    assert triton.softmax.choose_tile(2**31) == tiles[-1][1]


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Torch's softmax, differentiated by torch, is no further off than float64's own bound."""
    case = dataclasses.replace(case, dtype="float64", masked=False)
    given = contract.inputs(case)
    x = torch.tensor(given.x, requires_grad=True)
    y = torch.softmax(x, dim=-1)
    y.backward(torch.tensor(given.dout))
    for name, found in {"out": y.detach(), "dx": x.grad}.items():
        assert compare(name, found.numpy(), contract.truth(case)[name])[2] == ""


def test_gradients_are_slopes():
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 3, 4, 7))
    x[0, 0] = x[..., 3] = -np.inf
    seen = np.where(np.isinf(x), -np.inf, 0.0)
    start = np.where(np.isinf(x), 0.0, x)

    def value(x):
        return float((softmax.forward(x + seen)[0] * dout).sum())

    dx = softmax.backward(dout, softmax.forward(x)[1]).dx
    assert not dx[0, 0].any() and not dx[..., 3].any()
    check_gradients(value, {"x": start}, {"x": dx}, rng)


def test_reference_is_the_formula_at_high_precision():
    x = np.array([[-700.0, 3.0, 2.5, -1e-9], [1000.0, 999.0, -np.inf, 1000.5]])
    with mpmath.workdps(50):
        powers = [[mpmath.exp(mpmath.mpf(a)) for a in row] for row in x]
        truth = np.array([[float(p / sum(row)) for p in row] for row in powers])
    given = contract.Inputs(x, np.ones_like(x))
    bound = contract.truth(contract.Case("float64", 2, 4), given)["out"]
    out, _ = softmax.forward(x)
    assert compare("out", out, dataclasses.replace(bound, value=truth))[2] == ""


def test_the_reference_stays_in_float32():
    y, cache = softmax.forward(np.full((2, 3), -np.inf, np.float32))
    assert y.dtype == softmax.backward(y, cache).dx.dtype == np.float32


@pytest.mark.parametrize("tile", [0, -1])
def test_a_row_of_nothing_is_zero_and_has_no_gradient(reference, triton, tile):
    """As attention's output is for a query without keys; torch has NaN."""
    x = np.array([[-np.inf] * 5, [1.0, -np.inf, 1.0, -np.inf, -np.inf]])
    for side in (reference, triton):
        how = {} if side is reference else {"tile": triton.softmax.TILES[tile][1]}
        y, cache = side.softmax.forward(side.asarray(x, "float32"), **how)
        dx = side.softmax.backward(side.asarray(np.ones_like(x), "float32"), cache, **how).dx
        assert side.to_numpy(y).tolist() == [[0.0] * 5, [0.5, 0.0, 0.5, 0.0, 0.0]]
        assert not side.to_numpy(dx).any()


@pytest.mark.parametrize("tile", [0, -1])
def test_any_strides_are_within_the_bound(triton, tile):
    """Columns of a tensor, every second row, either transposed; results are contiguous rows.

    Compiled for other strides, a row is summed in another order: the bits differ from a copy's.
    """
    how = {"tile": triton.softmax.TILES[tile][1]}
    numbers = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    whole = triton.asarray(numbers)
    for x in (whole[:, 3:12], whole[::2, ::3], whole.T, whole.T[1::2, ::2], whole[:1], whole[0]):
        y, cache = triton.softmax.forward(x, **how)
        found = {"out": y, "dx": triton.softmax.backward(x, cache, **how).dx}
        rows = triton.to_numpy(x).astype(np.float64).reshape(-1, x.shape[-1])
        bounds = contract.truth(contract.Case("float32", *rows.shape), contract.Inputs(rows, rows))
        for name, a in found.items():
            assert a.shape == x.shape and a.is_contiguous()
            assert compare(name, triton.to_numpy(a).reshape(rows.shape), bounds[name])[2] == ""


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (np.ones(3, int), TypeError, "x has dtype int64; it must be one of float16"),
        (1.0, TypeError, "x is a float; it must be an array"),
        (np.ones(()), ValueError, "x.shape is (); it must be of rank 1 or more"),
        (np.ones((2, 0)), ValueError, "x.shape is (2, 0); it must be without an empty dimension"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("softmax", {"x": changed}, error, words)
