"""What the compiler accepts, the strict interpreter accepts, even where Triton's own does not."""

import operator

import pytest
import torch
import triton.language as tl
from planted import found
from triton.runtime.interpreter import InterpretedFunction

THREE = tl.constexpr(3)
SHARE = tl.constexpr(0.7)


@InterpretedFunction
def scaled(x_ptr, y_ptr):
    i = tl.arange(0, 4)
    tl.store(y_ptr + i, SHARE * (tl.load(x_ptr + i) + 1.0))


@InterpretedFunction
def of_three(x_ptr, y_ptr, NAME: tl.constexpr):
    i = tl.arange(0, 4)
    x = tl.load(x_ptr + i)
    if NAME == "add":
        y = (THREE + x).to(tl.int32)
    elif NAME == "sub":
        y = (THREE - x).to(tl.int32)
    elif NAME == "mul":
        y = (THREE * x).to(tl.int32)
    elif NAME == "floordiv":
        y = (THREE // x).to(tl.int32)
    elif NAME == "mod":
        y = (THREE % x).to(tl.int32)
    elif NAME == "and_":
        y = (THREE & x).to(tl.int32)
    elif NAME == "or_":
        y = (THREE | x).to(tl.int32)
    elif NAME == "xor":
        y = (THREE ^ x).to(tl.int32)
    elif NAME == "lshift":
        y = (THREE << x).to(tl.int32)
    elif NAME == "rshift":
        y = (THREE >> x).to(tl.int32)
    elif NAME == "lt":
        y = (THREE < x).to(tl.int32)
    elif NAME == "le":
        y = (THREE <= x).to(tl.int32)
    elif NAME == "gt":
        y = (THREE > x).to(tl.int32)
    elif NAME == "ge":
        y = (THREE >= x).to(tl.int32)
    elif NAME == "eq":
        y = (THREE == x).to(tl.int32)
    else:
        y = (THREE != x).to(tl.int32)
    tl.store(y_ptr + i, y)


@InterpretedFunction
def no_tensor(x_ptr):
    tl.store(x_ptr, (tl.load(x_ptr + tl.arange(0, 4)),))


@InterpretedFunction
def printed(x_ptr):
    print(tl.load(x_ptr + tl.arange(0, 4)))


@InterpretedFunction
def by_words(x_ptr, y_ptr, n, HOW: tl.constexpr):
    i = tl.arange(0, 4)
    x = tl.load(x_ptr + i)
    if HOW == "and":
        found = i < n and x > 0 and x < 4
    elif HOW == "or":
        found = i < n or x > 3
    elif HOW == "not":
        found = not (x > 2) and i < 4
    elif HOW == "scalar and":
        found = n > 1 and x > 2
    elif HOW == "constant and":
        found = HOW is not None and x > 2
    else:
        found = HOW is None or x > 2
    if n == 2 and not n == 3 or n == 4:
        tl.store(y_ptr + i, found.to(tl.int32))


NAMES = (
    "add", "sub", "mul", "floordiv", "mod", "and_", "or_", "xor", "lshift", "rshift",
    "lt", "le", "gt", "ge", "eq", "ne",
)  # fmt: skip


def test_a_constant_times_a_tensor_is_a_tensor(strict):
    y = torch.zeros(4)
    scaled[1,](torch.arange(4.0), y)
    assert y.equal(0.7 * (torch.arange(4.0) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_goes_with_a_tensor_by_every_operator(strict, name):
    x, y = torch.tensor([1, 2, 3, 4], dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    of_three[1,](x, y, NAME=name)
    assert y.tolist() == [int(getattr(operator, name)(3, int(n))) for n in x]


@pytest.mark.parametrize(
    "how, right",
    [
        ("and", [1, 1, 0, 0]),
        ("or", [1, 1, 0, 1]),
        ("not", [1, 1, 0, 0]),
        ("scalar and", [0, 0, 1, 1]),
        ("constant and", [0, 0, 1, 1]),
        ("constant or", [0, 0, 1, 1]),
    ],
)
def test_words_of_blocks_are_of_each_element(strict, how, right):
    x, y = torch.tensor([1, 2, 3, 4], dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    by_words[1,](x, y, 2, HOW=how)
    assert y.tolist() == right


def test_constants_stay_constants(strict):
    assert isinstance(SHARE * 2, tl.constexpr) and (SHARE * 2).value == 1.4
    assert isinstance(THREE == 3, tl.constexpr)


def test_a_fault_has_the_same_words_whatever_the_elements_are(strict):
    one, other = (found(no_tensor, (1,), torch.full((4,), x)) for x in (1.0, 2.0))
    assert one == other and "fp32" in one


def test_a_kernel_can_print_what_it_has(strict, capsys):
    printed[1,](torch.arange(4.0))
    assert capsys.readouterr().out == "[0. 1. 2. 3.]\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is done without CUDA")
@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_the_device_of_a_tensor_on_the_cpu_can_be_entered(strict, device):
    with torch.cuda.device(device):
        scaled[1,](torch.arange(4.0), torch.zeros(4))
