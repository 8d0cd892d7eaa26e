"""What a kernel tells the compiler about its values must be true."""

import pytest
import torch
import triton.language as tl
from planted import found, ints, where
from triton.runtime.interpreter import InterpretedFunction


@InterpretedFunction
def number(n, OF: tl.constexpr):
    tl.multiple_of(n, OF)


@InterpretedFunction
def offsets(at_ptr, HOW: tl.constexpr, OF: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.load(at_ptr + tl.arange(0, BLOCK))
    if HOW == "multiple":
        tl.multiple_of(at, OF)
    elif HOW == "contiguous":
        tl.max_contiguous(at, OF)
    else:
        tl.max_constancy(at, OF)


@InterpretedFunction
def tile(stride, OF: tl.constexpr):
    i = tl.arange(0, 4)[:, None] * stride + tl.arange(0, 8)[None, :]
    tl.max_contiguous(tl.multiple_of(i, (1, OF)), (1, OF))


@InterpretedFunction
def address(x_ptr, first, OF: tl.constexpr):
    tl.multiple_of(x_ptr + first, OF)
    tl.max_contiguous(x_ptr + tl.arange(0, 8), 8)


@InterpretedFunction
def copy_as_the_tutorials_do(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.max_contiguous(tl.multiple_of(i % n, BLOCK), BLOCK)
    x = tl.load(x_ptr + at)
    at = tl.max_contiguous(tl.multiple_of(tl.where(i < n, i, 0), BLOCK), BLOCK)
    tl.store(y_ptr + i, tl.maximum(x, tl.load(x_ptr + at)), mask=i < n)


def test_a_number_that_is_no_multiple_is_named(strict):
    number[1,](32, OF=16)
    words = found(number, (1,), 3, OF=16)
    at = where(number, "multiple_of")
    assert words == f"number, {at}, program (0, 0, 0): multiple_of(16) is not true on axis 0 at 3"


@pytest.mark.parametrize(
    "how, of, at, wrong",
    [
        ("multiple", 4, (0, 4, 8, 12), None),
        ("multiple", 4, (4, 5, 6, 7), None),
        ("multiple", 4, (3, 4, 5, 6), 3),
        ("multiple", 4, (0, 6, 12, 18), 6),
        ("contiguous", 2, (4, 5, 9, 10), None),
        ("contiguous", 4, (4, 5, 9, 10), 9),
        ("contiguous", 4, (0, 2, 4, 6), 2),
        ("contiguous", 4, (5, 6, 0, 1), None),
        ("constant", 2, (4, 4, 1, 1), None),
        ("constant", 4, (4, 4, 1, 1), 1),
    ],
)
def test_what_is_said_of_offsets_is_held_against_them(strict, how, of, at, wrong):
    if wrong is None:
        offsets[1,](ints(*at), HOW=how, OF=of, BLOCK=4)
    else:
        words = found(offsets, (1,), ints(*at), HOW=how, OF=of, BLOCK=4)
        assert words.endswith(f"({of}) is not true on axis 0 at {wrong}")


def test_every_axis_is_looked_at_by_itself(strict):
    tile[1,](8, OF=8)
    assert "multiple_of(8) is not true on axis 1 at 9" in found(tile, (1,), 9, OF=8)


def test_addresses_are_counted_in_bytes(strict):
    x = torch.zeros(16)
    address[1,](x, 4, OF=16)
    address[1,](x, 4, OF=64)  # as a GPU's memory may be, and the CPU's need not
    assert "at an address" in found(address, (1,), x, 3, OF=16)


def test_lanes_past_the_end_may_start_over(strict):
    x, y = torch.arange(13.0), torch.zeros(13)
    copy_as_the_tutorials_do[2,](x, y, 13, BLOCK=8)
    assert x.equal(y)
