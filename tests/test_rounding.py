"""Running error analysis: its rules, on numbers with known roundings."""

import ml_dtypes
import numpy as np
import pytest

from twofold.core.verify import domains
from twofold.core.verify.rounding import (
    Approx,
    alike,
    exact,
    half_unit,
    machine,
    matmul,
    probabilistic,
    sqrt,
)

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_cast_errs_by_half_a_unit_and_some_casts_by_all_of_it(dtype):
    x = np.exp(np.random.default_rng(0).uniform(-8, 8, 20_000)).astype(np.float32)
    bound = exact(x, machine(dtype)).stored()
    share = np.abs(x.astype(HALVES[dtype]).astype(np.float64) - bound.value) / bound.error
    assert 0.99 < share.max() <= 1


def test_a_number_beyond_the_largest_is_infinite_exactly_and_one_at_the_edge_undecided():
    on = machine("float16")
    value = np.array([65504.0, 65519.0, 65520.0, -7e4, 65510.0])
    bound = Approx(value, np.array([0, 0, 0, 0, 20.0]), on).returned()
    with np.errstate(over="ignore"):
        cast = value.astype(np.float16)
    assert np.array_equal(np.isinf(bound.value), [False, False, True, True, False])
    assert np.array_equal(bound.value[2:4], cast[2:4])
    assert (bound.error[:2] <= 16).all() and np.isinf(bound.error[4])
    assert np.isinf(Approx(value, 0 * value, on).stored().error[2:4]).all()


def test_what_may_pass_the_largest_float32_has_no_bound():
    on = machine("float32")
    x = exact(np.full((1, 4), 1e19), on)
    assert np.isinf((x * x * 4.0).error).all() and (x * x).error.max() < np.inf
    assert np.isinf((x * x).sum().error) and np.isinf(matmul(x, (x * 4.0).mT).error)
    edge = exact(np.full((1, 1), 3.4028e38), on)  # its nearest tf32 number is infinite
    assert np.isinf(matmul(edge, exact(np.full((1, 1), 1e-3), on)).error)


def test_the_root_of_a_subnormal_may_be_taken_for_zero():
    root = sqrt(exact(np.array([1e-39, 1e-30]), machine("float32")))
    assert root.error[0] >= root.value[0] and root.error[1] < 1e-6 * root.value[1]


def test_a_sure_zero_stays_one():
    zero = exact(np.zeros((3, 3)), machine("bfloat16"))
    for x in (zero + zero, (zero * 3.0).stored(), zero.sum(), matmul(zero, zero), zero / 2.0):
        assert (x.error == 0).all()


def test_numbers_that_round_alike_are_counted():
    unit = 2.0**-7  # of bfloat16, above 1
    x = np.array([[1.25, 1.25, -1.25, 1.25 + unit / 16, 1.25 + unit, 0.0]])
    assert alike(x, 2.0**-8, -1).tolist() == [[4, 4, 4, 4, 1, 0]]
    assert alike(x.T, 2.0**-8, 0).T.tolist() == [[4, 4, 4, 4, 1, 0]]


@pytest.mark.parametrize("dtype", HALVES)
def test_casts_add_up_in_quadrature_unless_they_are_the_same(dtype):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1000, 7))
    for rows, gains in (
        (rng.standard_normal((40, 1000)), True),
        (np.full((40, 1000), 1.003), False),
    ):
        certain = matmul(exact(rows, machine(dtype)).stored(), exact(weight, machine(dtype)))
        with probabilistic():
            on = machine(dtype)
            likely = matmul(exact(rows, on).stored(), exact(weight, on))
            total = exact(rows, on).stored().sum()
        cast = domains.representable(rows, dtype)
        assert (np.abs(cast @ weight - rows @ weight) <= likely.error).all()
        assert (np.abs(cast.sum(1) - rows.sum(1)) <= total.error).all()
        ratio = np.median(likely.error / certain.error)
        assert (ratio < 0.5) == gains and (likely.error <= certain.error * (1 + 2.0**-40)).all()


def test_additions_in_quadrature_hold_in_float32():
    x = np.random.default_rng(0).standard_normal((200, 4000)).astype(np.float32)
    running = np.cumsum(x, axis=1, dtype=np.float32)[:, -1].astype(np.float64)
    certain = exact(x, machine("float32")).sum()
    with probabilistic():
        likely = exact(x, machine("float32")).sum()
    assert (np.abs(running - certain.value) <= likely.error).all()
    assert (likely.error < certain.error / 5).all()


def test_half_a_unit():
    assert half_unit(np.array([1.0, 1.99, 2.0, 0.75]), 2.0**-8).tolist() == [
        2.0**-8, 2.0**-8, 2.0**-7, 2.0**-9,
    ]  # fmt: skip
