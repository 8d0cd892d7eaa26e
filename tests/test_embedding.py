"""Embedding: the reference against torch and differences; the kernel by contract."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.core.verify.contract import compare
from twofold.core.verify.contracts import embedding as contract
from twofold.core.verify.derivatives import check_gradients
from twofold.reference import embedding


def test_every_tile_is_pinned(triton):
    assert {c.tile for c in contract.CONTRACT.pinned} >= set(range(len(triton.embedding.TILES)))


@given(contract.CONTRACT.cases)
def test_reference_is_torch(case):
    """Both in float64: each may be as far from the mathematics as float64's own bound."""
    case = dataclasses.replace(case, dtype="float64")
    x = contract.inputs(case)
    table = torch.tensor(x.table, requires_grad=True)
    out = torch.nn.functional.embedding(torch.tensor(x.ids), table)
    (out * torch.tensor(x.dout)).sum().backward()
    theirs = {"out": out.detach(), "dtable": table.grad}
    for name, bound in contract.truth(case).items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""


def test_gradient_is_the_slope():
    rng = np.random.default_rng(0)
    ids, table = rng.integers(0, 5, (2, 9)), rng.standard_normal((5, 3))
    dout = rng.standard_normal((2, 9, 3))

    def value(table):
        return float((embedding.forward(ids, table)[0] * dout).sum())

    dtable = embedding.backward(dout, embedding.forward(ids, table)[1]).dtable
    check_gradients(value, {"table": table}, {"table": dtable}, rng)


@pytest.mark.parametrize("places", [1000, 1024])
def test_an_id_repeated_a_thousand_times_keeps_the_bound_and_the_bits(triton, places):
    """Other ids before and after shift the thousand across chunk borders."""
    rng = np.random.default_rng(places)
    ids = rng.permutation(np.r_[np.full(places, 3), rng.integers(0, 7, 150)])
    dout = rng.standard_normal((len(ids), 5)).astype("float32")
    case = contract.Case(rows=7)
    bound = contract.sums_by_id(
        contract.exact(dout.astype(np.float64), contract.machine(case.dtype)), ids, case.rows
    ).stored()
    side = triton.embedding
    first, second = (
        triton.to_numpy(side.scatter_add(triton.asarray(dout), triton.asarray(ids), case.rows))
        for _ in range(2)
    )
    assert compare("dtable", first, bound)[2] == ""
    assert compare("dtable", embedding.scatter_add(dout, ids, case.rows), bound)[2] == ""
    assert np.array_equal(first, second)


def test_ids_may_have_any_rank(reference, triton):
    table = np.arange(12.0, dtype="float32").reshape(4, 3)
    for ids in (np.array(2), np.array([1, 3]), np.arange(8).reshape(2, 1, 4) % 4):
        for side in (reference, triton):
            out, cache = side.embedding.forward(side.asarray(ids), side.asarray(table))
            assert np.array_equal(side.to_numpy(out), table[ids])
            dtable = side.to_numpy(side.embedding.backward(out, cache).dtable)
            assert np.array_equal(dtable, table * np.bincount(ids.ravel(), minlength=4)[:, None])


def test_ids_may_have_more_than_sixteen_bits(reference, triton):
    table, ids = np.arange(140_000.0).reshape(-1, 2), np.array([32_768, 65_535, 65_536, 69_999])
    for side in (reference, triton):
        out, _ = side.embedding.forward(side.asarray(ids), side.asarray(table, "float32"))
        assert np.array_equal(side.to_numpy(out), table[ids])


def test_what_is_looked_up_is_a_copy():
    """Also for a single id, which NumPy may return as a scalar."""
    table = np.ones((3, 2))
    for ids in (np.int64(1), np.array(1), np.array([1])):
        out, _ = embedding.forward(ids, table)
        out *= 7
    assert np.array_equal(table, np.ones((3, 2)))


def test_the_reference_names_an_id_outside():
    with pytest.raises(IndexError, match="^ids is 9; it must be at least 0 and below 4"):
        embedding.forward(np.array(9), np.ones((4, 2)))
    with pytest.raises(IndexError, match=r"ids\[1, 0\] is 4; it must be at least 0 and below 4"):
        embedding.forward(np.array([[0, 3], [4, -1]]), np.ones((4, 2)))


IDS, TABLE = np.zeros((2, 3), int), np.ones((4, 5))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (dict(ids=IDS.astype(float)), TypeError, "ids has dtype float64; it must be int32 or"),
        (dict(ids=3), TypeError, "ids is a int; it must be an array"),
        (dict(ids=IDS[:0]), ValueError, "ids.shape is (0, 3); it must be without an empty dim"),
        (dict(table=TABLE.astype(int)), TypeError, "table has dtype int64; it must be one of"),
        (dict(table=TABLE[0]), ValueError, "table.shape is (5,); it must be of rank 2, (V, D)"),
        (dict(table=TABLE[:0]), ValueError, "table.shape is (0, 5); it must be (V, D) with no"),
    ],
)
def test_bad_input_is_refused(both_refuse, changed, error, words):
    both_refuse("embedding", {"ids": IDS, "table": TABLE} | changed, error, words)
