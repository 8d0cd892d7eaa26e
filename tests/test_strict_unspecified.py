"""What has no value: masked lanes without `other`, undefined operations; using it is a fault."""

import pytest
import torch
import triton.language as tl
from planted import found, ints, where
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import Fault, strict_interpreter

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@InterpretedFunction
def half_of_it(x_ptr, y_ptr, n):
    i = tl.arange(0, 8)
    x = tl.load(x_ptr + i, mask=i < 4)
    tl.store(y_ptr + i, x, mask=i < n)


@InterpretedFunction
def half_of_it_and_zeros(x_ptr, y_ptr):
    i = tl.arange(0, 8)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < 4, other=0))


@InterpretedFunction
def computed(x_ptr, y_ptr, HOW: tl.constexpr):
    i = tl.arange(0, 16)
    x = tl.load(x_ptr + i, mask=i < 4)
    if HOW == "sum":
        y = tl.reduce(x, 0, tl.standard._sum_combine)
    elif HOW == "max":
        y = tl.reduce(x, 0, tl.standard._elementwise_max)
    elif HOW == "relu":
        y = tl.reduce(tl.maximum(x, 0.0), 0, tl.standard._sum_combine)
    elif HOW == "exp":
        y = tl.reduce(tl.exp(x), 0, tl.standard._sum_combine)
    elif HOW == "bfloat16":
        y = tl.reduce(x.to(tl.bfloat16).to(tl.float32), 0, tl.standard._sum_combine)
    elif HOW == "dot":
        square = tl.broadcast_to(x[:, None], (16, 16))
        y = tl.reduce(tl.dot(square, square), 1, tl.standard._sum_combine)
        y = tl.reduce(y, 0, tl.standard._sum_combine)
    elif HOW == "cleared":
        y = tl.reduce(tl.where(i < 4, x, 0.0), 0, tl.standard._sum_combine)
    tl.store(y_ptr, y)


@InterpretedFunction
def add_half_of_it(x_ptr, y_ptr):
    i = tl.arange(0, 8)
    tl.atomic_add(y_ptr + i, tl.load(x_ptr + i, mask=i < 4))


@InterpretedFunction
def extremes_with_half_of_it(x_ptr, y_ptr, HOW: tl.constexpr):
    i = tl.arange(0, 8)
    x = tl.load(x_ptr + i, mask=i < 4)
    if HOW == "max":
        tl.atomic_max(y_ptr + i, x)
    else:
        tl.atomic_min(y_ptr + i, x, mask=i < 4 + (HOW == "min"))


@InterpretedFunction
def sorted_half(x_ptr, y_ptr, HOW: tl.constexpr):
    i = tl.arange(0, 2)[:, None] * 4 + tl.arange(0, 4)[None, :]
    x = tl.load(x_ptr + i, mask=i < 7)
    if HOW == "sort":
        y = tl.sort(x)
    elif HOW == "down":
        y = tl.sort(x, descending=True)
    else:
        y = tl.topk(x, 4)
    tl.store(y_ptr + i, y, mask=i < 5)


@InterpretedFunction
def largest(x_ptr, at_ptr):
    i = tl.arange(0, 8)
    x = tl.load(x_ptr + i, mask=i < 4)
    _, at = tl.reduce((x, i), 0, tl.standard._argmax_combine_tie_break_left)
    tl.store(at_ptr, at)


@InterpretedFunction
def on_integers(a_ptr, b_ptr, y_ptr, HOW: tl.constexpr):
    i = tl.arange(0, 4)
    a, b = tl.load(a_ptr + i), tl.load(b_ptr + i)
    if HOW == "/":
        y = a // b
    elif HOW == "%":
        y = a % b
    elif HOW == "<<":
        y = a << b
    elif HOW == "abs":
        y = tl.abs(a)
    else:
        y = a >> b
    tl.store(y_ptr + i, y)


@InterpretedFunction
def whole(x_ptr, y_ptr):
    i = tl.arange(0, 8)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(y_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_stored_masked_lane_is_named_with_its_load(strict, dtype):
    x, y = torch.ones(4, dtype=dtype), torch.zeros(8, dtype=dtype)
    half_of_it[1,](x, y, 4)
    assert y.tolist() == [1] * 4 + [0] * 4
    words = found(half_of_it, (1,), x, y, 6)
    load, store = where(half_of_it, "tl.load"), where(half_of_it, "tl.store")
    assert words == (
        f"half_of_it, {store}, program (0, 0, 0): store to y_ptr of shape (8,) and strides (1,): "
        "2 values come from masked lanes of a load without `other`: "
        f"x_ptr of shape (4,) and strides (1,) at {load}"
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_lanes_given_a_value_have_it(strict, dtype):
    y = torch.zeros(8, dtype=dtype)
    half_of_it_and_zeros[1,](torch.ones(4, dtype=dtype), y)
    assert y.tolist() == [1] * 4 + [0] * 4


def test_without_the_check_masked_lanes_are_zero():
    x, y = torch.ones(4), torch.ones(8)
    with strict_interpreter(poison=False):
        half_of_it[1,](x, y, 8)
    assert y.tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize("how", ["sum", "max", "relu", "exp", "bfloat16", "dot"])
def test_what_is_computed_from_masked_lanes_is_known(strict, how):
    words = found(computed, (1,), torch.ones(4), torch.zeros(1), HOW=how)
    load, store = where(computed, "tl.load"), where(computed, "tl.store")
    assert words.startswith(f"computed, {store}, program (0, 0, 0): store to y_ptr")
    assert words.endswith(f"x_ptr of shape (4,) and strides (1,) at {load}")


def test_what_is_not_used_is_no_fault(strict):
    y = torch.zeros(1)
    computed[1,](torch.ones(4), y, HOW="cleared")
    assert y.item() == 4


def test_a_not_a_number_from_memory_is_no_fault(strict):
    y = torch.zeros(8)
    half_of_it[1,](torch.full((4,), torch.nan), y, 4)
    assert y[:4].isnan().all()


def test_an_atomic_with_a_masked_lane_is_named(strict):
    words = found(add_half_of_it, (1,), torch.ones(4), torch.zeros(8))
    at = where(add_half_of_it, "tl.atomic_add")
    assert words.startswith(f"add_half_of_it, {at}, program (0, 0, 0): atomic on y_ptr")


@pytest.mark.parametrize("how", ["max", "min"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_extreme_by_atomics_with_a_masked_lane_is_named(strict, how, sign):
    x, y = torch.full((4,), 2.0 * sign), torch.zeros(8)
    words = found(extremes_with_half_of_it, (1,), x, y, HOW=how)
    at = where(extremes_with_half_of_it, f"atomic_{how}")
    assert words.startswith(f"extremes_with_half_of_it, {at}, program (0, 0, 0): atomic on y_ptr")
    assert f": {4 if how == 'max' else 1} values come from masked lanes" in words
    extremes_with_half_of_it[1,](x, y, HOW="masked")


@pytest.mark.parametrize("how", ["sort", "down", "topk"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_masked_lane_that_is_sorted_is_named(strict, how, dtype):
    x, y = torch.arange(-4.0, 3.0).to(dtype), torch.zeros(8, dtype=dtype)
    words = found(sorted_half, (1,), x, y, HOW=how)
    assert "store to y_ptr" in words and ": 1 values come from masked lanes" in words


def test_the_place_of_the_largest_is_none(strict):
    at = torch.zeros(1, dtype=torch.int32)
    largest[1,](torch.ones(4), at)
    assert at.item() == torch.iinfo(torch.int32).max


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_masked_integers_are_the_largest(strict, dtype):
    y = torch.zeros(8, dtype=dtype)
    half_of_it[1,](torch.ones(4, dtype=dtype), y, 8)
    assert y.tolist() == [1] * 4 + [torch.iinfo(dtype).max] * 4


@pytest.mark.parametrize(
    "how, right, result",
    [
        ("/", (2, 0, -3, 1), (3, None, -2, 7)),
        ("%", (2, 0, -3, 1), (1, None, 1, 0)),
        ("<<", (0, 2, 32, 28), (7, 28, None, 7 << 28)),
        (">>", (0, 2, 32, -1), (7, 1, None, None)),
    ],
)
def test_undefined_operations_on_integers_give_the_largest(strict, how, right, result):
    y = ints(0, 0, 0, 0)
    on_integers[1,](ints(7, 7, 7, 7), ints(*right), y, HOW=how)
    unspecified = torch.iinfo(torch.int32).max
    wrapped = [x if x is None or x < 1 << 31 else x - (1 << 32) for x in result]
    assert y.tolist() == [unspecified if x is None else x for x in wrapped]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("how", ["/", "%", "abs"])
def test_the_opposite_of_the_smallest_integer_is_the_largest(strict, how, dtype):
    limits = torch.iinfo(dtype)
    y = ints(0, 0, 0, 0, dtype=dtype)
    left, right = ints(limits.min, -7, 7, limits.min + 1, dtype=dtype), ints(-1, -1, -1, -1)
    on_integers[1,](left, right.to(dtype), y, HOW=how)
    rest = (0, 0, 0) if how == "%" else (7, 7 if how == "abs" else -7, limits.max)
    assert y.tolist() == [limits.max, *rest]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [torch.int8, torch.int32, torch.uint8])
def test_a_number_that_an_integer_cannot_hold_gives_the_largest(strict, dtype, target):
    low, high = torch.iinfo(target).min, torch.iinfo(target).max
    values = [2.9, -0.9, float(low), high - 200.0 * (high > 255), 2.0**32, -(2.0**32)]
    x = torch.tensor([*values, torch.nan, torch.inf], dtype=dtype)
    y = torch.zeros(8, dtype=target)
    whole[1,](x, y)
    assert y.tolist() == [2, 0, low, int(x[3].item()), *[high] * 4]


def test_a_gather_keeps_to_its_axis(strict):
    @InterpretedFunction
    def gather(x_ptr, at_ptr, y_ptr):
        i = tl.arange(0, 4)
        x, at = tl.load(x_ptr + i), tl.load(at_ptr + i)
        tl.store(y_ptr + i, tl.gather(x, at, 0))

    y = torch.zeros(4)
    gather[1,](torch.arange(4.0), ints(3, 2, 1, 0), y)
    assert y.tolist() == [3, 2, 1, 0]
    words = found(gather, (1,), torch.arange(4.0), ints(3, -1, 1, 0), y)
    assert words == (
        f"gather, {where(gather, 'tl.gather')}, program (0, 0, 0): "
        "gather: index -1 is outside an axis of 4"
    )
    with pytest.raises(Fault, match="index 4 is outside"):
        gather[1,](torch.arange(4.0), ints(3, 4, 1, 0), y)
