"""Linear: the reference against torch, differences and mpmath; the kernel by contract."""

import dataclasses
import itertools

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import linear as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.kernels import linear_tiles as tiles_of
from twofold.reference import linear
from twofold.reference.activation import KINDS


def test_the_contract_has_every_tile():
    tiles = {c.tile for c in contract.CONTRACT.pinned if c.tile is not None}
    assert tiles == set(range(len(tiles_of.ENTRIES)))


@pytest.mark.parametrize("size", [2, 4])
def test_every_tile_of_the_table_is_chosen_for_some_product(size):
    sizes = (1, 30, 100, 768, 3072, 16384)
    chosen = {tiles_of.choose(m, n, 768, size).tile for m in sizes for n in sizes}
    assert chosen == {tile for bytes_, tile in tiles_of.TILES if bytes_ == size}


@pytest.mark.parametrize(
    "m, n, k, whole, tile, splits",
    [
        (16384, 3072, 768, True, (128, 256), 1), (16384, 768, 3072, False, (128, 256), 1),
        (768, 3072, 16384, False, (128, 256), 3), (768, 2304, 16384, False, (128, 128), 1),
        (768, 768, 16384, False, (128, 256), 7), (1536, 128, 128, False, (32, 32), 1),
        (128, 128, 1536, False, (32, 32), 12), (1, 1, 1, True, (32, 32), 1),
    ],
)  # fmt: skip
def test_on_hopper_a_product_keeps_it_busy(m, n, k, whole, tile, splits):
    """With many tiles they are large; with few, features are split."""
    chosen = tiles_of.choose(m, n, k, 2, whole=whole, architecture="sm_90")
    assert (chosen.tile.block_m, chosen.tile.block_n) == tile and chosen.splits == splits
    assert tiles_of.choose_splits(m, n, k, chosen.tile, 2, whole=whole) == chosen
    beside_gelu = tiles_of.choose(m, n, k, 2, activated=True, architecture="sm_90")
    assert beside_gelu.tile != tiles_of.HOPPER and beside_gelu.splits == 1


def test_split_features_are_all_multiplied_once(triton):
    """More splits than steps, and an incomplete last one, give the same sums."""
    rng = np.random.default_rng(0)
    x, dout = (
        triton.asarray(rng.integers(-3, 4, (n, 9)).astype("f4"), "float32") for n in (230, 230)
    )
    tile = tiles_of.TILES[-1][1]
    for splits in (2, 3, 7, 8, 13):
        got = triton.empty((9, 9))
        triton.linear.product(dout.mT, x, got, False, tile, splits=splits)
        want = triton.to_numpy(dout).T @ triton.to_numpy(x)
        np.testing.assert_array_equal(triton.to_numpy(got), want)


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64: each may be as far from the mathematics as float64's own bound.

    tanh and the tanh form of GELU are left to the activation's own test: torch's err differently.
    """
    activation = None if case.activation in ("gelu_tanh", "tanh") else case.activation
    case = dataclasses.replace(case, dtype="float64", allow_tf32=False, activation=activation)
    x = contract.inputs(case)
    leaves = [None if a is None else torch.tensor(a, requires_grad=True) for a in x[:3]]
    f = {None: torch.nn.Identity(), "relu": torch.relu}
    f |= {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}
    z = leaves[0] @ leaves[1].mT  # torch's own `linear` starts its sum at the bias
    out = f[case.activation](z if leaves[2] is None else z + leaves[2])
    out.backward(torch.tensor(x.dout))
    theirs = {"out": out.detach()}
    names = ("dx", "dweight", "dbias")
    theirs |= {n: a.grad for n, a in zip(names, leaves, strict=True) if a is not None}
    for name, bound in contract.truth(case).items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "tanh", "silu"])
def test_gradients_are_slopes(activation):
    rng = np.random.default_rng(0)
    arguments = {
        "x": rng.standard_normal((2, 3, 7)),
        "weight": rng.standard_normal((5, 7)),
        "bias": rng.standard_normal(5),
    }
    dout = rng.standard_normal((2, 3, 5))

    def value(**arguments):
        return float((linear.forward(**arguments, activation=activation)[0] * dout).sum())

    gradients = linear.backward(dout, linear.forward(**arguments, activation=activation)[1])
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


def test_forward_is_the_formula_at_high_precision():
    """Terms of 1e8 that cancel to about 1."""
    x, w, b = [1e8, 3.0, -1e8, 0.1], [1.25, -0.7, 1.25, 11.0], -0.3
    with mpmath.workdps(50):
        z = mpmath.fdot(map(mpmath.mpf, x), map(mpmath.mpf, w)) + mpmath.mpf(b)
        truth = float(z * mpmath.ncdf(z))
    arrays = np.array([[x]]), np.array([w]), np.array([b])
    case = contract.Case(dtype="float64", rows=1, features_in=4, features_out=1, activation="gelu")
    out, _ = linear.forward(*arrays, "gelu")
    on = contract.machine("float64")
    z_bound = contract.matmul(contract.exact(arrays[0][0], on), contract.exact(arrays[1].T, on))
    bound = contract.activate(z_bound + contract.exact(arrays[2], on), case.activation)
    assert compare("out", out[0], dataclasses.replace(bound, value=np.array([[truth]])))[2] == ""


def test_views_of_packed_tensors_are_read_and_written_in_place(triton):
    """As multi-head attention calls it, with slices of packed weight, bias, input and gradients."""
    rng = np.random.default_rng(3)
    E, packed = 6, rng.standard_normal((2, 5, 12)).astype(np.float32)
    w, b = rng.standard_normal((18, E)).astype(np.float32), np.ones(18, np.float32)
    x, dout = packed[..., E:], rng.standard_normal((2, 5, 12)).astype(np.float32)
    whole = [triton.asarray(a) for a in (packed, w, b, dout)]
    out, cache = triton.linear.forward(whole[0][..., E:], whole[1][E:], whole[2][E:])
    dw, db = (torch.zeros_like(a) for a in whole[1:3])
    given_back = triton.linear.backward(whole[3], cache, into=(dw[E:], db[E:]))
    plain = triton.linear.forward(*(triton.asarray(a) for a in (x, w[E:], b[E:])))
    expected = triton.linear.backward(triton.asarray(dout), plain[1])
    assert np.array_equal(triton.to_numpy(out), triton.to_numpy(plain[0]))
    for mine, theirs in zip((*given_back, dw[E:], db[E:]), (*expected, *expected[1:]), strict=True):
        assert np.array_equal(triton.to_numpy(mine), triton.to_numpy(theirs))
    assert not any(triton.to_numpy(a).any() for a in (dw[:E], db[:E]))


@pytest.mark.parametrize("activation", [None, *KINDS])
def test_what_is_not_kept_changes_no_bit_and_is_missed_by_backward(reference, triton, activation):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((2, 3, 7), (5, 7), 5)]
    for side in (reference, triton):
        given = [side.asarray(a, "float32") for a in arrays]
        (out, _), (same, cache) = (
            side.linear.forward(*given, activation, keep=keep) for keep in (True, False)
        )
        assert side.to_numpy(out).tobytes() == side.to_numpy(same).tobytes()
        assert cache.z is None
        if activation is not None:
            with pytest.raises(ValueError, match=r"^cache.z is None; it must be kept, as forward"):
                side.linear.backward(out, cache)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_gradients_that_nobody_reads_change_no_other(reference, triton, activation):
    rng = np.random.default_rng(0)
    x, w, b, dout = (rng.standard_normal(shape) for shape in ((2, 3, 7), (5, 7), 5, (2, 3, 5)))
    for side, has_bias in itertools.product((reference, triton), (True, False)):
        *given, bias, d = (side.asarray(a, "float32") for a in (x, w, b, dout))
        _, cache = side.linear.forward(*given, bias if has_bias else None, activation)
        whole = side.linear.backward(d, cache)
        for wanted in itertools.product((False, True), repeat=3):
            asked = dict(zip(("of_x", "of_weight", "of_bias"), wanted, strict=True))
            part = side.linear.backward(d, cache, **asked)
            for one, other, read in zip(whole, part, wanted, strict=True):
                assert (other is None) == (one is None or not read)
                if other is not None:
                    assert side.to_numpy(one).tobytes() == side.to_numpy(other).tobytes()


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_nothing_receives_a_gradient_that_nobody_reads(reference, triton, name):
    for side in (reference, triton):
        given = [side.asarray(a, "float32") for a in (X, W, np.ones(5))]
        out, cache = side.linear.forward(*given)
        into = tuple(
            x if n == name else None for n, x in zip(("weight", "bias"), given[1:], strict=True)
        )
        with pytest.raises(ValueError, match=rf"^into's d{name} is a \w+; it must be None: there"):
            side.linear.backward(out, cache, into=into, **{f"of_{name}": False})


X = np.ones((2, 3))
W = np.ones((5, 3))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(x=X.astype(int)), TypeError, "x has dtype int64; it must be one of float16"),
        (dict(x=X.astype("f4")), TypeError, "weight has dtype float64; it must have the dtype of"),
        (dict(x=np.ones(())), ValueError, "x.shape is (); it must be of rank 1 or more"),
        (dict(x=np.ones((0, 3))), ValueError, "x.shape is (0, 3); it must be without an empty"),
        (dict(weight=W.T.copy()), ValueError, "weight.shape is (3, 5); it must be (N, 3)"),
        (dict(weight=np.ones(3)), ValueError, "weight.shape is (3,); it must be of rank 2"),
        (dict(bias=np.ones(3)), ValueError, "bias.shape is (3,); it must be (5,)"),
        (dict(bias=1.0), TypeError, "bias is a float; it must be an array"),
        (dict(activation="swish"), ValueError, "activation is 'swish'; it must be one of 'gelu'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("linear", {"x": X, "weight": W, "bias": None} | changed, error, words)


@pytest.mark.parametrize("columns", [64, 65])
def test_rows_that_16_does_not_divide_have_tiles_of_their_own(columns):
    chosen = {
        tiles_of.choose(m, columns, 64, 2, aligned=columns % 16 == 0).tile
        for m in (1, 10**3, 10**6)
    }
    assert (tiles_of.UNALIGNED in chosen) == (columns % 16 != 0)
