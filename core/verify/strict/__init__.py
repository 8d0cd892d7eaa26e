"""Triton's interpreter, made as strict as the hardware.

`TRITON_INTERPRET=1` runs a kernel in NumPy, and where it differs from a GPU it hides faults or
gives wrong results: bfloat16 matrix products multiply bit patterns, casts to bfloat16 truncate,
tf32 is not imitated, a masked lane reads 0, a wild pointer reads whatever is there, int32 wraps
silently, programs run in order. In this context a kernel must be right for the right reason:

    with strict_interpreter():
        kernel[grid](...)

- *numerics*: matrix products take their operands as the hardware does (float8_e4m3fn, float16,
  bfloat16, tf32, tf32x3); casts round to nearest even; bfloat16 arithmetic is bfloat16; Python
  numbers have the types that a compiled kernel gives them (float32; an annotated integer its
  annotation); loops count in the type of their bounds.
- *bounds*: every unmasked lane of a load, store or atomic addresses an element of the view that was
  passed as its pointer argument, by shape and strides, at a multiple of its own size; so does a
  gather on its axis.
- *poison*: masked lanes of a load without `other`, and memory from `torch.empty` and the like, are
  NaN, the largest integer, or True. So are the results of an integer division by zero, of the
  smallest integer divided by −1 or made positive, of too long a shift, and of converting a float
  that does not fit. To store what such a lane became is a fault that names the load.
- *uninitialised*: no load or atomic reads an element that nothing has written. `check_written`
  finds elements of an output left unwritten.
- *races*: no two programs touch one element unless both only read it, both use atomics, or atomics
  of one lane order them, as with a lock or a counter whose value the program checks (`order`), with
  a `tl.debug_barrier` before the release; no lane touches what another lane of its program stored
  earlier without a barrier in between; no two lanes of one store write different values to one
  element.
- *overflow*: integers of 32 bits and less do not wrap in +, − and ·, nor do their sums.
- *shuffle*: programs run in an order drawn from `seed`; a launch repeated with the same arguments
  runs in the reverse order, so that results that depend on the order differ in bits (`turns`).

Always faults, too: code that the compiler rejects but the interpreter would accept (`tl.dot` below
NVIDIA's least shapes, a block as a condition, loops over floats, and, where they are reached,
global variables that are not constants, `break`, `continue`, and `return` in a loop); false hints
(`tl.multiple_of`; see `hints`); grids and numbers of warps that no GPU accepts; and any exception
in a kernel. `tl.static_assert` raises `StaticAssertion`. What Triton's interpreter cannot do
(inline assembly, libdevice, atomics on bfloat16 or through descriptors, waiting for another
program) raises `Unsupported`, and a Triton whose interpreter is built differently ImportError
(`versions`).

It serves anyone's kernels, and is faster than the plain interpreter (`language.Language` says why):
as a context, through the pytest plugin (`pytest_plugin`), and in `twofold verify`.

Not seen:

- races between the warps of one program, other than the lanes above: a load and a later store by
  another lane, one element held by several threads; data layouts; atomics that order programs in
  one order of running but not in another, which another `seed` may draw;
- a masked lane that is compared: `x > 0` is false, and nothing follows from it; integers of masked
  lanes, except by what the largest integer does; NaN that `erf` made of such a lane is found in the
  output, but its load is not named;
- memory that torch allocates itself, or by `torch.FloatTensor(4)`, and elements of a tensor that
  torch wrote in part: they may be NaN, but are no fault;
- integers that wrap in `x << n`, in products that are reduced or scanned, and in atomics;
- a function given to `tl.reduce` or `tl.associative_scan` that is not associative, whose result on
  hardware depends on the layout, and which of equal elements `tl.argmax(tie_break_left=False)`
  finds;
- approximate functions (exp2, division), the matrix unit's truncated sums and its float16
  accumulator, flushed denormals; float8, which is Triton's own and rounds differently from
  hardware;
- `tl.device_assert`, which counts only in debug mode, as in compiled kernels;
- whatever else the compiler rejects: a `break` that is not reached, a variable whose type changes
  in a loop or differs between branches, an argument of 1, which is a constant there, too little
  shared memory or too few registers; see `twofold verify compile`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from twofold.core.verify.strict.memory import Fault, StaticAssertion, Unsupported

__all__ = [
    "Fault",
    "StaticAssertion",
    "Unsupported",
    "check_written",
    "launches",
    "strict_interpreter",
]


@contextlib.contextmanager
def strict_interpreter(
    *,
    numerics: bool = True,
    bounds: bool = True,
    poison: bool = True,
    uninitialised: bool = True,
    races: bool = True,
    overflow: bool = True,
    shuffle: bool = True,
    seed: int = 0,
) -> Iterator[None]:
    """Run interpreted kernels strictly; a `Fault` names kernel, statement, program and argument.

    Contexts nest: the innermost says what is checked. Call `ops.load("triton")`, or set
    TRITON_INTERPRET, before entering: Triton is imported here.
    """
    from twofold.core.verify.strict import versions

    versions.check()
    from twofold.core.verify.strict.builder import Strictness
    from twofold.core.verify.strict.launch import installed

    strict = Strictness(numerics, bounds, poison, uninitialised, races, overflow, shuffle, seed)
    with installed(strict):
        yield


def check_written(tensor: Any) -> None:
    """Raise `Fault` if a tensor was allocated uninitialised and has elements that no program wrote.

    Call it on a kernel's outputs inside the context. If an operation of torch wrote to the tensor,
    nothing is known of it, and nothing is raised.
    """
    from twofold.core.verify.strict import memory, unwritten

    memory.check_written(tensor, unwritten.record(tensor))


def launches() -> int:
    """Return how many kernels this process has launched strictly so far."""
    from twofold.core.verify.strict import launch

    return launch.launches
