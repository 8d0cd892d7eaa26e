"""The strict interpreter: every kind of fault, planted, is found and named; sound kernels pass.

The kernels are wrapped for the interpreter by hand, so that they run in it next to a GPU as well.
"""

import pytest
import torch
import triton.language as tl
from planted import add_up, copy, found, ints, store_alike, store_to_one, where
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import Fault, strict_interpreter


@InterpretedFunction
def load_block(ptr, i):
    return tl.load(ptr + i)


@InterpretedFunction
def copy_by_a_function(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = load_block(x_ptr, i)
    tl.store(y_ptr + i, x)


@InterpretedFunction
def copy_in_pairs(xs, y_ptr):
    i = tl.arange(0, 8)
    tl.store(y_ptr + i, tl.load(xs[1] + i))


@InterpretedFunction
def offset_in_32_bits(x_ptr, y_ptr, stride):
    i = tl.program_id(0)
    at = i * stride
    tl.store(y_ptr + i, tl.load(x_ptr + at, mask=at < 1, other=0))


@InterpretedFunction
def offset_in_64_bits(x_ptr, y_ptr, stride: tl.int64):
    i = tl.program_id(0)
    at = i * stride
    tl.store(y_ptr + i, tl.load(x_ptr + at, mask=at < 1, other=0))


@InterpretedFunction
def masked_by_row(x_ptr, y_ptr, rows, columns):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, 8)
    mask = (column < columns) & (row < rows)
    at = row * columns + column
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=mask, other=0), mask=mask)


@InterpretedFunction
def through_a_pointer(pointers_ptr, x_ptr, y_ptr):
    i = tl.program_id(0)
    there = tl.load(pointers_ptr + i).to(tl.pointer_type(tl.int32))
    tl.store(y_ptr + i, tl.load(there))


@InterpretedFunction
def as_other_numbers(x_ptr, y_ptr, first):
    there = (x_ptr + first).to(tl.pointer_type(y_ptr.dtype.element_ty))
    tl.store(y_ptr + tl.arange(0, 2), tl.load(there + tl.arange(0, 2)))


@InterpretedFunction
def count(x_ptr, y_ptr, SCAN: tl.constexpr):
    i = tl.arange(0, 8)
    x = tl.load(x_ptr + i)
    if SCAN:
        x = tl.associative_scan(x, 0, tl.standard._sum_combine)
    else:
        x = tl.reduce(x, 0, tl.standard._sum_combine)
    tl.store(y_ptr + i, x)


@InterpretedFunction
def offsets_in_32_bits(y_ptr, n, stride):
    for i in range(n):
        tl.store(y_ptr + i, i * stride)


@InterpretedFunction
def offsets_in_64_bits(y_ptr, n: tl.int64, stride):
    for i in tl.range(0, n):
        tl.store(y_ptr + i, i * stride)


@InterpretedFunction
def twice(y_ptr, n):
    tl.store(y_ptr, n * 2)


@InterpretedFunction
def order(counter_ptr, turn_ptr):
    tl.store(turn_ptr + tl.program_id(0), tl.atomic_add(counter_ptr, 1))


# bounds


def test_reading_past_the_end_is_named_even_where_memory_goes_on(strict):
    memory = torch.zeros(64)
    words = found(copy, (4,), memory[:10], torch.zeros(16), 0, BLOCK=4)
    assert words == (
        f"copy, {where(copy, 'tl.load')}, program (2, 0, 0): load from x_ptr of shape (10,) and "
        "strides (1,) out of bounds: 2 of 4 unmasked lanes, the first at element 10"
    )


def test_reading_before_the_beginning_is_named(strict):
    words = found(copy, (1,), torch.zeros(64)[8:], torch.zeros(16), -3, BLOCK=4)
    assert "load from x_ptr" in words and "3 of 4 unmasked lanes, the first at element -3" in words


def test_writing_past_the_end_is_named(strict):
    words = found(copy, (1, 2, 1), torch.zeros(64), torch.zeros(7), 0, BLOCK=8)
    assert words.startswith(f"copy, {where(copy, 'tl.store')}, program (0, 0, 0): store to y_ptr")


def test_the_neighbour_is_out_of_bounds_though_it_is_an_argument(strict):
    memory = torch.zeros(32)
    copy[1,](memory[:8], memory[8:16], 0, BLOCK=8)
    assert "load from x_ptr" in found(copy, (1,), memory[:8], memory[8:16], 8, BLOCK=8)


def test_the_padding_of_rows_is_out_of_bounds(strict):
    padded = torch.zeros(4, 8)[:, :5]
    words = found(copy, (4,), padded, torch.zeros(32), 0, BLOCK=8)
    assert "program (0, 0, 0)" in words
    assert "x_ptr of shape (4, 5) and strides (8, 1)" in words
    assert "3 of 8 unmasked lanes, the first at element 5" in words


@pytest.mark.parametrize(
    "view",
    [
        torch.zeros(4, 8).T,
        torch.zeros(8, 1).expand(8, 4),
        torch.zeros(2, 3, 8).permute(2, 0, 1),
        torch.zeros(32)[::1].view(4, 8),
    ],
)
def test_any_layout_without_gaps_is_within_bounds(strict, view):
    copy[1,](view, torch.zeros(8), 0, BLOCK=8)


def test_elements_of_a_view_with_gaps_are_within_bounds(strict):
    every_other = torch.arange(8.0)[::2]
    assert "element 1" in found(copy, (1,), every_other, torch.zeros(8), 0, BLOCK=2)
    out = torch.zeros(1)
    copy[1,](every_other, out, 2, BLOCK=1)
    assert out.item() == 2


def test_an_empty_tensor_has_no_elements(strict):
    assert "shape (0,)" in found(copy, (1,), torch.zeros(0), torch.zeros(1), 0, BLOCK=1)


def test_an_address_far_from_everything_is_a_fault(strict):
    far = 1 << 51
    assert "far from every tensor" in found(
        copy, (1,), torch.zeros(1), torch.zeros(1), far, BLOCK=1
    )


def test_a_function_is_named_with_its_caller(strict):
    words = found(copy_by_a_function, (1,), torch.zeros(7), torch.zeros(8), BLOCK=8)
    inner = where(load_block, "tl.load")
    outer = where(copy_by_a_function, "load_block")
    assert words.startswith(f"copy_by_a_function, {inner}, called from {outer}, program (0, 0, 0)")


def test_a_tensor_in_a_tuple_is_named(strict):
    assert "load from xs[1] of shape (7,)" in found(
        copy_in_pairs, (1,), (torch.zeros(8), torch.zeros(7)), torch.zeros(8)
    )


def test_atomics_keep_to_the_bounds(strict):
    words = found(add_up, (1,), ints(1), ints(), ints(0), READ=False)
    assert words.startswith(
        f"add_up, {where(add_up, 'atomic_add')}, program (0, 0, 0): atomic on t"
    )


def test_a_pointer_from_memory_must_lead_to_an_argument(strict):
    x, other, y = ints(5, 6), ints(7), ints(0, 0)
    here = [x.data_ptr() + 4, x.data_ptr()]
    through_a_pointer[2,](ints(*here, dtype=torch.int64), x, y)
    assert y.tolist() == [6, 5]
    here[1] = other.data_ptr()
    words = found(through_a_pointer, (2,), ints(*here, dtype=torch.int64), x, y)
    assert "program (1, 0, 0): load from an address that is in no tensor argument" in words


def test_an_address_is_a_multiple_of_the_size_of_its_element(strict):
    x, y = torch.zeros(64, dtype=torch.uint8), torch.zeros(2)
    as_other_numbers[1,](x, y, 4)
    words = found(as_other_numbers, (1,), x, y, 6)
    assert words == (
        f"as_other_numbers, {where(as_other_numbers, 'tl.load')}, program (0, 0, 0): load from "
        "x_ptr of shape (64,) and strides (1,) of 4 bytes at an address that 4 does not divide"
    )


# races


# overflow, order


def test_a_number_and_a_tile_that_were_compared_are_one_mask(strict):
    x, y = torch.arange(15), torch.zeros(15, dtype=torch.int64)
    masked_by_row[(4,)](x, y, 3, 5)
    assert torch.equal(x, y)


def test_integers_do_not_wrap(strict):
    words = found(offset_in_32_bits, (5,), ints(1), ints(*range(5)), 1 << 30)
    at = where(offset_in_32_bits, "at = ")
    assert words == f"offset_in_32_bits, {at}, program (2, 0, 0): int32 overflow in mul"
    y = ints(*range(5))
    offset_in_64_bits[5,](ints(1), y, 1 << 30)
    assert y.tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("scan", [False, True])
def test_sums_of_integers_do_not_wrap(strict, scan):
    x, y = torch.full((8,), 1 << 28, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    words = found(count, (1,), x, y, SCAN=scan)
    name = "cumsum" if scan else "sum"
    at = where(count, "tl.associative_scan" if scan else "tl.reduce")
    assert words == f"count, {at}, program (0, 0, 0): int32 overflow in {name}"
    count[1,](x // 2, y, SCAN=scan)
    assert y[7] == 1 << 30


def test_a_loop_counts_in_the_type_of_its_bounds(strict):
    y = torch.zeros(3, dtype=torch.int64)
    words = found(offsets_in_32_bits, (1,), y, 3, 1 << 30)
    at = where(offsets_in_32_bits, "tl.store")
    assert words == f"offsets_in_32_bits, {at}, program (0, 0, 0): int32 overflow in mul"
    offsets_in_64_bits[1,](y, 3, 1 << 30)
    assert y.tolist() == [0, 1 << 30, 1 << 31]


def test_large_integers_have_64_bits(strict):
    """Triton's interpreter uses 32 bits for those that fit in 32 unsigned bits."""
    y = torch.zeros(1, dtype=torch.int64)
    twice[1,](y, 3 << 30)
    assert y.item() == 3 << 31


def test_programs_run_in_an_order_drawn_from_the_seed():
    turns = {}
    for name, how in (("in order", {"shuffle": False}), (0, {}), ("again", {}), (1, {"seed": 1})):
        turns[name] = torch.zeros(20, dtype=torch.int32)
        with strict_interpreter(**how):
            order[20,](ints(0), turns[name])
        assert sorted(turns[name].tolist()) == list(range(20))
    assert turns["in order"].tolist() == list(range(20))
    assert turns[0].equal(turns["again"])
    assert not turns[0].equal(turns[1]) and not turns[0].equal(turns["in order"])


def test_a_launch_made_again_runs_its_programs_in_reverse(strict):
    turns = [torch.zeros(2, 20, dtype=torch.int32) for _ in range(4)]
    with strict_interpreter():
        for i, turn in enumerate(turns):
            order[20,](ints(0), turn[0])
            order[10,](ints(i), turn[1])  # other launches, which do not count
    first, again, third, _ = (turn[0] for turn in turns)
    assert again.equal(19 - first) and third.equal(first)
    order[20,](ints(0), again)
    order[20,](ints(0), again)
    assert again.tolist() == list(range(20))


def test_float_atomics_give_other_bits_when_computed_again():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    totals = [torch.zeros(1) for _ in range(3)]
    with strict_interpreter():
        for total in totals:
            add_up[64,](x, total, torch.zeros(64), READ=False)
    assert totals[0] != totals[1] and totals[0] == totals[2]


# the context


def test_what_was_there_before_is_there_after():
    def state():
        return (
            type(interpreter.interpreter_builder),
            interpreter.GridExecutor.__call__,
            interpreter.InterpretedFunction.__call__,
            interpreter.ReduceScanOpInterface.apply,
            interpreter.TritonSemantic.binary_op_sanitize_overflow_impl,
            tl.load,
            tl.dot,
            getattr(tl.tensor, "__index__", None),
            dict(vars(interpreter.interpreter_builder)).keys(),
        )

    before = state()
    with strict_interpreter():
        copy[1,](torch.zeros(4), torch.zeros(4), 0, BLOCK=4)
        assert state() != before
    after = state()
    with pytest.raises(Fault), strict_interpreter():
        copy[1,](torch.zeros(3), torch.zeros(4), 0, BLOCK=4)
    assert before[:-1] == after[:-1] == state()[:-1]


def test_contexts_nest(strict):
    memory = torch.zeros(64)
    with strict_interpreter(bounds=False):
        copy[1,](memory[:3], torch.zeros(4), 0, BLOCK=4)
    assert "out of bounds" in found(copy, (1,), memory[:3], torch.zeros(4), 0, BLOCK=4)
    y = torch.zeros(3, dtype=torch.int64)
    offsets_in_64_bits[1,](y, 3, 1 << 30)  # as before, too
    assert y.tolist() == [0, 1 << 30, 1 << 31]


def test_a_launch_outside_the_context_is_refused_by_these_tests(no_launch_but_strict):
    with pytest.raises(RuntimeError, match="copy was launched outside the strict interpreter"):
        no_launch_but_strict(copy[1,], torch.zeros(4), torch.zeros(4), 0, BLOCK=4)


def test_each_check_can_be_left_out():
    y = ints(*range(16))
    with strict_interpreter(races=False):
        store_alike[3,](y)
        store_to_one[1,](y, 1)
    with strict_interpreter(overflow=False, bounds=False, poison=False):
        offset_in_32_bits[1,](ints(1, 2), y, 1 << 30)
