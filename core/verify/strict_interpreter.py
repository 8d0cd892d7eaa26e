"""Triton's interpreter, made as strict as the hardware.

`TRITON_INTERPRET=1` runs a kernel in NumPy, and where it differs from a GPU it flatters or lies:
bfloat16 matrix products multiply bit patterns, casts to bfloat16 truncate, tf32 is not imitated, a
masked lane reads 0, a wild pointer reads whatever lies there, int32 wraps silently, programs run
in order. In this context a kernel must be right for the right reason:

    with strict_interpreter():
        kernel[grid](...)

- *numerics*: matrix products as the hardware takes its operands (float16, bfloat16, tf32, tf32x3),
  casts rounded to nearest even, bfloat16 arithmetic, Python numbers as the types a compiled kernel
  gives them (float32; an annotated integer its annotation).
- *bounds*: every unmasked lane of a load, store or atomic lies on an element of the view that its
  pointer argument is, by shape and strides.
- *poison*: masked lanes of a load without `other` are NaN, the largest integer, or True.
- *races*: no two programs touch one element unless both only read it or both use atomics, and no
  two lanes of one store write different values to one element.
- *overflow*: integers of 32 bits and less do not wrap in +, − and ·.
- *shuffle*: programs run in an order drawn from `seed`.

It serves anyone's kernels, and is faster than the plain interpreter (`strict_launch.Language`
says why). Not seen: races between the warps of one program, data layouts, approximate functions,
inline assembly, what atomics order (a lock is a race here), float8 beyond what Triton does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from twofold.core.verify.strict_memory import Fault, StaticAssertion, Unsupported

__all__ = ["Fault", "StaticAssertion", "Unsupported", "check_written", "strict_interpreter"]


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
    TRITON_INTERPRET, before: Triton is imported here.
    """
    from twofold.core.verify import strict_versions

    strict_versions.check()
    from twofold.core.verify.strict_builder import Strictness
    from twofold.core.verify.strict_launch import installed

    strict = Strictness(numerics, bounds, poison, uninitialised, races, overflow, shuffle, seed)
    with installed(strict):
        yield


def check_written(tensor: Any) -> None:
    """Raise `Fault` where a tensor came uninitialised and has elements that no program wrote.

    Asked of a kernel's outputs while the context is entered. Where an operation of torch wrote to
    the tensor, nothing is known of it, and nothing is said.
    """
    from twofold.core.verify import strict_memory, strict_unwritten

    strict_memory.check_written(tensor, strict_unwritten.record(tensor))
