"""What the tests of the strict interpreter share: kernels at fault, and where the fault is."""

import inspect

import pytest
import torch

from twofold.core.verify.strict_interpreter import Fault


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def where(function, text):
    """Return file:line of the statement that contains a text."""
    lines, first = inspect.getsourcelines(function.fn)
    (number,) = [i for i, line in enumerate(lines) if text in line]
    return f"{inspect.getsourcefile(function.fn)}:{first + number}"


def found(kernel, grid, *arguments, error=Fault, **constants):
    """Run a kernel that is at fault and return the words."""
    with pytest.raises(error) as fault:
        kernel[grid](*arguments, **constants)
    return str(fault.value)
