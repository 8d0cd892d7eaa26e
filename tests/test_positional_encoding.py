"""Positions added to embeddings: reference against torch, slopes, mpmath; kernel by contract."""

import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import positional_encoding as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import dropout, positional_encoding


def test_every_tile_is_pinned(triton):
    tiles = triton.positional_encoding.TILES
    assert {c.tile for c in contract.CONTRACT.pinned} - {None} == set(range(len(tiles)))


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64: each may be as far from the mathematics as float64's own bound."""
    case = dataclasses.replace(case, dtype="float64")
    x = contract.inputs(case)
    table = torch.tensor(x.table, requires_grad=True)
    out = table[torch.tensor(x.ids)] * case.scale
    position_table = None
    if x.position_table is not None:
        position_table = torch.tensor(x.position_table, requires_grad=True)
        counted = torch.arange(case.length).expand(case.batch, -1)
        out = out + position_table[counted if x.positions is None else torch.tensor(x.positions)]
    out = out * torch.tensor(dropout.scaled_mask(out.shape, case.dropout_p, case.seed, "float64"))
    (out * torch.tensor(x.dout)).sum().backward()
    theirs = {"out": out.detach(), "dtable": table.grad}
    if position_table is not None:
        theirs["dposition_table"] = position_table.grad
    bounds = contract.truth(case)
    del bounds["sinusoids"]
    for name, bound in bounds.items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


@pytest.mark.parametrize("positions", [None, np.arange(10).reshape(2, 5) * 7 % 6])
def test_gradients_are_slopes(positions):
    rng = np.random.default_rng(0)
    ids, dout = rng.integers(0, 4, (2, 5)), rng.standard_normal((2, 5, 3))
    arguments = {
        "table": rng.standard_normal((4, 3)),
        "position_table": rng.standard_normal((6, 3)),
    }
    how = {"positions": positions, "scale": 1.7, "dropout_p": 0.3, "seed": 5}

    def value(**arguments):
        return float((positional_encoding.forward(ids, **arguments, **how)[0] * dout).sum())

    cache = positional_encoding.forward(ids, **arguments, **how)[1]
    gradients = positional_encoding.backward(dout, cache)
    check_gradients(value, arguments, {n: getattr(gradients, f"d{n}") for n in arguments}, rng)


@pytest.mark.parametrize("d_model", [1, 7, 64])
def test_sinusoids_are_the_formula_at_high_precision(side, d_model):
    """In float32, up to position 10⁶: one rounding, and the angle's error in float64."""
    case = contract.Case(length=3, columns=d_model, first=10**6 - 2)
    positions = contract.sinusoid_positions(case)
    with mpmath.workdps(40):
        angle = [
            [
                int(p) / mpmath.mpf(10000) ** (mpmath.mpf(2 * (c // 2)) / d_model)
                for c in range(d_model)
            ]
            for p in positions
        ]
        truth = [
            [float((mpmath.cos if c % 2 else mpmath.sin)(a)) for c, a in enumerate(row)]
            for row in angle
        ]
    found = side.positional_encoding.sinusoidal(side.asarray(positions), d_model, dtype="float32")
    bound = dataclasses.replace(contract.sinusoids(case), value=np.array(truth))
    assert compare("sinusoids", side.to_numpy(found), bound)[2] == ""


def test_a_side_takes_its_own_sinusoids_and_angles(reference, triton):
    """By default in a dtype that its operators take."""
    for side, dtype in ((reference, "float64"), (triton, "float32")):
        places, x = side.asarray(np.arange(5)), side.asarray(np.ones((1, 1, 5, 6)), dtype)
        made = side.positional_encoding.sinusoidal(places, 6)
        ids, table = side.asarray(np.zeros((1, 5), int)), side.asarray(np.ones((2, 6)), dtype)
        out, _ = side.positional_encoding.forward(ids, table, made)
        assert np.array_equal(side.to_numpy(out)[0], side.to_numpy(made) + 1)
        side.rotary.forward(x, x, *side.rotary.tables(places, 4))


IDS, TABLE = np.zeros((2, 3), int), np.ones((4, 5))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(ids=IDS.astype(float)), TypeError, "ids has dtype float64; it must be int32 or"),
        (dict(ids=IDS[0]), ValueError, "ids.shape is (3,); it must be of rank 2, (B, L)"),
        (dict(table=TABLE[0]), ValueError, "table.shape is (5,); it must be of rank 2, (V, D)"),
        (
            dict(position_table=TABLE.astype("float32")),
            TypeError,
            "position_table has dtype float32; it must have the dtype of table",
        ),
        (
            dict(position_table=TABLE[:, :4]),
            ValueError,
            "position_table.shape is (4, 4); it must be (P, 5)",
        ),
        (
            dict(position_table=TABLE[:2]),
            ValueError,
            "position_table.shape[0] is 2; it must be at least ids.shape[1], 3",
        ),
        (dict(positions=IDS[:1]), ValueError, "positions.shape is (1, 3); it must be (2, 3)"),
        (
            dict(positions=IDS, position_table=None),
            ValueError,
            "positions is given; it must be None without position_table",
        ),
        (dict(positions=TABLE), TypeError, "positions has dtype float64; it must be int32 or"),
        (dict(dropout_p=1.0), ValueError, "dropout_p is 1.0; it must be at least 0 and below 1"),
        (dict(seed=-1), ValueError, "seed is -1; it must be at least 0 and below 2**63"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    arguments = {"ids": IDS, "table": TABLE, "position_table": TABLE} | changed
    both_refuse("positional_encoding", arguments, error, words)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(positions=np.ones(3)), TypeError, "positions has dtype float64; it must be int32"),
        (dict(positions=IDS), ValueError, "positions.shape is (2, 3); it must be of rank 1, (L,)"),
        (dict(d_model=0), ValueError, "d_model is 0; it must be at least 1"),
    ],
)
def test_bad_sinusoids_are_refused(both_refuse, changed, error, words):
    arguments = {"positions": np.arange(3), "d_model": 4} | changed
    both_refuse("positional_encoding", arguments, error, words, "sinusoidal")


@pytest.mark.parametrize("wrong", ["flot", "int64", None, np.int32])
def test_tables_are_of_floating_dtypes(reference, triton, wrong):
    for side in (reference, triton):
        places = side.asarray(np.arange(3))
        for tables in (side.positional_encoding.sinusoidal, side.rotary.tables):
            with pytest.raises(ValueError, match=r"^dtype is '.*'; it must be one of 'float16',"):
                tables(places, 4, dtype=wrong)
    with pytest.raises(ValueError, match=r"^dtype is 'bfloat16'; it must be one of"):
        reference.rotary.tables(np.arange(3), 4, dtype="bfloat16")


def test_a_dtype_is_given_by_name_or_as_itself(reference, triton):
    for side, own in (
        (reference, np.float32),
        (reference, np.dtype("f4")),
        (triton, torch.float32),
    ):
        places = side.asarray(np.arange(3))
        for dtype in ("float32", own):
            found = side.positional_encoding.sinusoidal(places, 4, dtype)
            made = (found, *side.rotary.tables(places, 4, dtype=dtype))
            assert {str(x.dtype).removeprefix("torch.") for x in made} == {"float32"}
