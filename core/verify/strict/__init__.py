"""Triton's interpreter, made as strict as the hardware.

`TRITON_INTERPRET=1` runs a kernel in NumPy, and where that differs from a GPU it flatters or lies:
bfloat16 matrix products multiply bit patterns, casts to bfloat16 truncate, tf32 is not simulated, a
masked lane reads 0, a wild pointer reads whatever is there, int32 wraps silently, programs run in
order. In this context a kernel must be right for the right reason:

    with strict_interpreter():
        kernel[grid](...)

- *numerics*: matrix products with operands as the hardware reads them (float8_e4m3fn, float16,
  bfloat16, tf32, tf32x3), casts rounded to nearest even, bfloat16 arithmetic, Python numbers as the
  types that a compiled kernel gives them (float32; for an annotated integer its annotation); loops
  count in the type of their bounds.
- *bounds*: every unmasked lane of a load, store or atomic lies on an element of its pointer
  argument's view, by shape and strides, at a multiple of its own size; a gather stays on its axis.
- *poison*: masked lanes of a load without `other`, and memory from `torch.empty` and its like, are
  NaN, the largest integer, or True; so are the results of dividing integers by zero, of dividing
  the smallest one by −1 or negating it, of shifting too far, and of converting a float that does
  not fit. Storing what such a lane became is a fault that names the load.
- *uninitialised*: no load or atomic of an element that was never written. `check_written` finds
  what is left unwritten in an output.
- *races*: no two programs touch one element unless both only read it, both use atomics, or
  atomics of one lane order them, as does a lock or counter whose value the program looks at
  (`order`), with a `tl.debug_barrier` before the release; no lane touches what another lane of its
  program stored before, without a barrier in between; no two lanes of one store write different
  values to one element.
- *overflow*: integers of 32 bits and less do not wrap in +, − and ·, nor do their sums.
- *shuffle*: programs run in an order drawn from `seed`, and in reverse if a launch is repeated with
  the same arguments, so that bits that depend on the order differ (`turns`).

Always faults: what the compiler refuses and the interpreter would accept, that is, shapes of
`tl.dot` below the smallest (NVIDIA's), a block as a condition, loops over floats, and, where they
are reached, global variables that are not constants, `break`, `continue`, and `return` in a loop;
hints (`tl.multiple_of`) that are not true (`hints`); grids and numbers of warps that no GPU
accepts; and any exception in a kernel.
`tl.static_assert` raises `StaticAssertion`. What Triton's interpreter cannot do (inline assembly,
libdevice, atomics on bfloat16 or through descriptors, waiting for another program) raises
`Unsupported`, and a Triton whose interpreter is built differently raises ImportError (`versions`).

It works for anyone's kernels, and is faster than the plain interpreter (`language.Language` says
why): in a context, through the pytest plugin (`pytest_plugin`), and through `twofold verify`.

Not seen:

- races between the warps of one program, except for the lanes above: a load and a later store of
  another lane, one element held by several threads; data layouts; atomics that order programs in
  one run order and not in another, which another `seed` may draw;
- a masked lane that is compared: `x > 0` is false, and is no poison; integers of masked lanes,
  except for what the largest one causes; a NaN that `erf` made of such a lane shows in the output,
  but is not named;
- memory that torch allocates by itself, or by `torch.FloatTensor(4)`, and elements of a tensor that
  torch wrote in part: they may be NaN, but are no fault;
- integers that wrap in `x << n`, in products that are reduced or scanned, and in atomics;
- a function given to `tl.reduce` or `tl.associative_scan` that is not associative, whose result on
  hardware depends on the layout, and which equal element `tl.argmax(tie_break_left=False)` finds;
- approximate functions (exp2, division), the matrix unit's truncated sums and its float16
  accumulator, flushed subnormals; float8, which is Triton's own and rounds differently on hardware;
- `tl.device_assert`, which counts only in debug mode, as in compiled kernels;
- what else the compiler refuses: a `break` that is not reached, a variable whose type changes in a
  loop or differs between branches, an argument of 1 that becomes a constant, insufficient shared
  memory or registers: see `twofold verify compile`.
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
