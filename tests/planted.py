"""What the tests of the strict interpreter share: faulty kernels, and where their faults are."""

import inspect

import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from twofold.core.verify.strict import Fault


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def where(function, text):
    """Return file:line of the statement that contains a text."""
    lines, first = inspect.getsourcelines(function.fn)
    (number,) = [i for i, line in enumerate(lines) if text in line]
    return f"{inspect.getsourcefile(function.fn)}:{first + number}"


def found(kernel, grid, *arguments, error=Fault, **constants):
    """Run a faulty kernel and return the error's message."""
    with pytest.raises(error) as fault:
        kernel[grid](*arguments, **constants)
    return str(fault.value)


@InterpretedFunction
def copy(x_ptr, y_ptr, shift, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i + shift)
    tl.store(y_ptr + i, x)


@InterpretedFunction
def store_alike(y_ptr):
    i = tl.arange(0, 4)
    tl.store(y_ptr + tl.program_id(0) * 3 + i, i * 0)


@InterpretedFunction
def add_up(x_ptr, total_ptr, out_ptr, READ: tl.constexpr):
    i = tl.program_id(0)
    before = tl.atomic_add(total_ptr, tl.load(x_ptr + i))
    if READ:
        before = tl.load(total_ptr)
    tl.store(out_ptr + i, before)


@InterpretedFunction
def store_to_one(y_ptr, scale):
    i = tl.arange(0, 8)
    tl.store(y_ptr + i // 2, i // 2 + i * scale)
