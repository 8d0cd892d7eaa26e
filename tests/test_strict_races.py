"""Races between programs, and between one program's lanes, are found and named; no others are."""

import pytest
import torch
import triton.language as tl
from planted import add_up, copy, found, ints, store_alike, store_to_one, where
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import strict_interpreter


@InterpretedFunction
def shift_in_place(x_ptr, step):
    i = tl.program_id(0)
    x = tl.load(x_ptr + i + step)
    tl.store(x_ptr + i, x + 1)


@InterpretedFunction
def last_one_stores(x_ptr, y_ptr):
    i = tl.program_id(0)
    x = tl.load(x_ptr)
    tl.store(y_ptr, x, mask=i == tl.num_programs(0) - 1)


def test_two_programs_that_store_to_one_element_race_though_they_agree(strict):
    words = found(store_alike, (3,), ints(*range(10)))
    at = where(store_alike, "tl.store")
    assert words == (
        f"store_alike, {at}, program (1, 0, 0): store to y_ptr of shape (10,) and strides (1,) "
        f"races at element 3 with the store of program (0, 0, 0) at {at}"
    )


def test_a_load_races_with_an_earlier_programs_store(strict):
    with strict_interpreter(shuffle=False, bounds=False):
        words = found(shift_in_place, (3,), ints(0, 1, 2, 3)[1:], -1)
    at, load = where(shift_in_place, "tl.store"), where(shift_in_place, "tl.load")
    assert words.startswith(f"shift_in_place, {load}, program (1, 0, 0): load from x_ptr")
    assert words.endswith(f"races at element 0 with the store of program (0, 0, 0) at {at}")


def test_a_store_races_with_an_earlier_programs_load(strict):
    words = found(shift_in_place, (3,), ints(1, 2, 3, 4), 1)
    at, load = where(shift_in_place, "tl.store"), where(shift_in_place, "tl.load")
    assert words.startswith(f"shift_in_place, {at}, program (1, 0, 0): store to x_ptr")
    assert words.endswith(f"races at element 1 with the load of program (0, 0, 0) at {load}")


def test_a_store_races_though_its_own_program_was_the_last_to_load(strict):
    x = ints(1)
    words = found(last_one_stores, (3,), x, x)
    assert "program (2, 0, 0): store to y_ptr" in words
    assert "with the load of program (0, 0, 0)" in words
    last_one_stores[3,](x, ints(0))


@pytest.mark.parametrize("seed", range(5))
def test_a_race_is_found_in_any_order(seed):
    with strict_interpreter(seed=seed):
        assert "races at element" in found(shift_in_place, (5,), ints(*range(6)), 1)
        assert "races at element" in found(store_alike, (5,), ints(*range(16)))


def test_one_program_may_work_in_place(strict):
    x = ints(1, 2, 3)
    shift_in_place[3,](x, 0)
    assert x.tolist() == [2, 3, 4]


def test_every_program_may_read_what_none_writes(strict):
    x, y = ints(1), ints(0, 0, 0, 0)
    add_up[4,](x.expand(4).contiguous(), ints(0), y, READ=False)
    assert sorted(y.tolist()) == [0, 1, 2, 3]


def test_a_plain_load_races_with_another_programs_atomic(strict):
    words = found(add_up, (2,), ints(1, 1), ints(0), ints(0, 0), READ=True)
    assert "program (1, 0, 0): atomic on total_ptr" in words
    assert words.endswith(f"the load of program (0, 0, 0) at {where(add_up, 'before = tl.load')}")


def test_arguments_that_share_memory_race(strict):
    x = torch.zeros(9)
    copy[2,](x[:4], x[4:8], 0, BLOCK=2)
    words = found(copy, (2,), x[:4], x[1:5], 0, BLOCK=2)
    assert "load from x_ptr" in words and "races at element 2 with the store" in words


@pytest.mark.parametrize("half", [2, 3])
def test_elements_of_different_width_race(strict, half):
    memory = torch.zeros(3, dtype=torch.int32)
    narrow = memory.view(torch.int16)
    words = found(copy, (2,), memory, narrow[half : half + 2], 0, BLOCK=1)
    assert "program (1, 0, 0): load from x_ptr" in words and "races at element 1" in words


def test_two_lanes_of_one_store_must_agree(strict):
    y = ints(*range(4))
    store_to_one[1,](y, 0)
    words = found(store_to_one, (1,), y, 1)
    at = where(store_to_one, "tl.store")
    assert words.startswith(f"store_to_one, {at}, program (0, 0, 0): two lanes of one store")
    assert "y_ptr" in words


@InterpretedFunction
def through_scratch(x_ptr, scratch_ptr, y_ptr, BARRIER: tl.constexpr, STEP: tl.constexpr):
    i = tl.arange(0, 8)
    tl.store(scratch_ptr + i, tl.load(x_ptr + i))
    if BARRIER:
        tl.debug_barrier()
    tl.store(y_ptr + i, tl.load(scratch_ptr + (i + STEP) % 8))


@InterpretedFunction
def zero_and_set(y_ptr, k, ATOMIC: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, 8), tl.full((8,), 0, tl.int32))
    if ATOMIC:
        tl.atomic_add(y_ptr + k, 1)
    else:
        tl.store(y_ptr + k, 1)


def test_a_lane_that_loads_what_another_stored_needs_a_barrier(strict):
    x, scratch, y = torch.arange(8.0), torch.zeros(8), torch.zeros(8)
    through_scratch[1,](x, scratch, y, BARRIER=True, STEP=1)
    assert y.equal(x.roll(-1))
    through_scratch[1,](x, scratch, y, BARRIER=False, STEP=0)
    assert y.equal(x)
    words = found(through_scratch, (1,), x, scratch, y, BARRIER=False, STEP=1)
    load, store = where(through_scratch, "% 8"), where(through_scratch, "scratch_ptr + i, ")
    assert words == (
        f"through_scratch, {load}, program (0, 0, 0): load from scratch_ptr of shape (8,) and "
        "strides (1,) races at element 1 with another lane and the store of program (0, 0, 0) at "
        f"{store}, and no barrier is between them"
    )


@pytest.mark.parametrize("atomic", [False, True])
def test_a_lane_that_overwrites_what_another_stored_needs_a_barrier(strict, atomic):
    zero_and_set[1,](ints(*range(8)), 0, ATOMIC=atomic)
    words = found(zero_and_set, (1,), ints(*range(8)), 5, ATOMIC=atomic)
    at = where(zero_and_set, "tl.atomic_add" if atomic else "tl.store(y_ptr + k")
    assert words.startswith(f"zero_and_set, {at}, program (0, 0, 0): ")
    assert "y_ptr of shape (8,) and strides (1,) races at element 5 with another lane" in words
