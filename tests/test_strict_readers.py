"""What several programs read or add up, and a program that comes after all of them."""

import numpy as np
import pytest
import triton.language as tl
from planted import found, ints, where
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import marks as strict_marks
from twofold.core.verify.strict import strict_interpreter
from twofold.core.verify.strict.marks import Touch
from twofold.core.verify.strict.order import Order


@InterpretedFunction
def readers(x_ptr, read_ptr, out_ptr, PROGRAMS: tl.constexpr, ABSENT: tl.constexpr):
    """All but the last read; the last stores once all but one of them have signalled it."""
    program = tl.program_id(0)
    if program < PROGRAMS - 1:
        tl.store(out_ptr + program, tl.load(x_ptr))
        tl.debug_barrier()
        if program != ABSENT:
            tl.atomic_add(read_ptr, 1)
    else:
        while tl.atomic_add(read_ptr, 0) == 0:
            pass
        tl.store(x_ptr, 7)


@pytest.mark.parametrize("absent", range(3))
def test_of_several_readers_each_has_to_be_waited_for(absent):
    with strict_interpreter(shuffle=False):
        readers[4,](ints(5), ints(0), ints(0, 0, 0), 4, 3)
        words = found(readers, (4,), ints(5), ints(0), ints(0, 0, 0), 4, absent)
    place = where(readers, "tl.load(x_ptr)")
    assert words.endswith(f"the load of program ({absent}, 0, 0) at {place}")


@InterpretedFunction
def reads_again(x_ptr, flag_ptr, out_ptr, AGAIN: tl.constexpr):
    """The first program lets the second store, and may then read once more."""
    if tl.program_id(0) == 0:
        tl.store(out_ptr, tl.load(x_ptr))
        tl.debug_barrier()
        tl.atomic_xchg(flag_ptr, 1)
        if AGAIN:
            tl.store(out_ptr + 1, tl.load(x_ptr))
    else:
        while tl.atomic_add(flag_ptr, 0) == 0:
            pass
        tl.store(x_ptr, 7)


def test_who_reads_once_more_has_to_be_waited_for_again():
    with strict_interpreter(shuffle=False):
        reads_again[2,](ints(5), ints(0), ints(0, 0), False)
        words = found(reads_again, (2,), ints(5), ints(0), ints(0, 0), True)
    assert words.endswith(where(reads_again, "tl.store(out_ptr + 1, tl.load(x_ptr))"))


@InterpretedFunction
def added_up(x_ptr, sum_ptr, done_ptr, out_ptr, ADDERS: tl.constexpr, ABSENT: tl.constexpr):
    """Overlapping blocks are added to a sum; the last program reads it, after all but one."""
    program, i = tl.program_id(0), tl.arange(0, 4)
    if program < ADDERS:
        tl.atomic_add(sum_ptr + program + i, tl.load(x_ptr + i))
        tl.debug_barrier()
        tl.atomic_add(done_ptr + program, 1)
    else:
        for other in range(ADDERS):
            if other != ABSENT:
                while tl.atomic_add(done_ptr + other, 0) == 0:
                    pass
        for j in range(ADDERS + 3):
            tl.store(out_ptr + j, tl.load(sum_ptr + j))


@pytest.mark.parametrize("absent", range(4))
def test_who_reads_what_several_add_waits_for_each_of_them(absent):
    args = ints(*range(4)), ints(*[0] * 7), ints(*[0] * 4), ints(*[0] * 7), 4
    with strict_interpreter(shuffle=False):
        added_up[5,](*args, 4)
        words = found(added_up, (5,), *args, absent)
    assert f"element {absent} with the atomic of program ({absent}, 0, 0)" in words


def test_sets_of_accesses_that_no_element_has_are_forgotten(monkeypatch):
    """Adding to an element makes it a new set; the previous one then belongs to no element."""
    monkeypatch.setattr(strict_marks, "_FEW_SETS", 0)
    marks, order, size = strict_marks.Marks(), Order(seed=0), 4
    marks.cover(0, size, size)
    at, lanes = np.zeros(1, np.uint64), np.zeros(1, np.int64)
    for number in range(1, 21):  # each from a program that waits for no other
        order.begin(number)
        assert marks.touch(Touch("atomic", *[number] * 3, at, lanes, size), order) is None
        order.release(number * size, settled=number, number=number)
        assert len(marks._sets) <= 2  # twice the number of elements that have one
    order.begin(21)
    assert marks.touch(Touch("load", *[21] * 3, at, lanes, size), order) == (0, 1)


@InterpretedFunction
def readers_in_a_row(x_ptr, flags_ptr, out_ptr, LAST: tl.constexpr):
    """Two read, the second after the first; the one that stores waits for number `LAST`."""
    program = tl.program_id(0)
    if program == 1:
        while tl.atomic_add(flags_ptr, 0) == 0:
            pass
    if program < 2:
        tl.store(out_ptr + program, tl.load(x_ptr))
        tl.debug_barrier()
        tl.atomic_xchg(flags_ptr + program, 1, sem="release")
    if program == 2:
        while tl.atomic_add(flags_ptr + LAST, 0) == 0:
            pass
        tl.store(x_ptr, 7)


def test_who_read_last_has_to_be_waited_for():
    with strict_interpreter(shuffle=False):
        readers_in_a_row[3,](ints(5), ints(0, 0), ints(0, 0), LAST=1)
        words = found(readers_in_a_row, (3,), ints(5), ints(0, 0), ints(0, 0), LAST=0)
    assert "the load of program (1, 0, 0)" in words


@InterpretedFunction
def readers_beside_each_other(x_ptr, flags_ptr, out_ptr):
    """Two read; one program waits for the first, and another, which stores, for the second."""
    program = tl.program_id(0)
    if program < 2:
        tl.store(out_ptr + program, tl.load(x_ptr))
        tl.debug_barrier()
        tl.atomic_xchg(flags_ptr + program, 1)
    else:
        while tl.atomic_add(flags_ptr + program - 2, 0) == 0:
            pass
        tl.store(x_ptr + 3 - program, 7)


def test_what_one_program_relies_on_is_not_every_programs():
    with strict_interpreter(shuffle=False):
        words = found(readers_beside_each_other, (4,), ints(5, 5), ints(0, 0), ints(0, 0))
    assert "program (3, 0, 0): store to x_ptr" in words and "load of program (0, 0, 0)" in words
