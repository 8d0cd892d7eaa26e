"""Kernels compiled for GPUs that are not there.

Triton asks its driver which device it compiles for, and needs the device itself only to launch.
Here the driver names a target and nothing is launched: the contracts' cases run on CPU tensors, so
every kernel is compiled as it is called, for every entry of its tile table and every dtype, and the
compiler's output is kept. Kernels with the same dtypes and constants are compiled once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from twofold.core import ops
from twofold.core.verify import report
from twofold.core.verify.compiling.chips import CHIPS, Chip
from twofold.core.verify.compiling.compiled import (
    ALL,
    NONE,
    Compiled,
    Name,
    Share,
    describe,
    gpu_target,
)
from twofold.core.verify.contract import precision_name

# Given a kernel without figures and a function that compiles it, returns it with its figures.
Make = Callable[[Compiled, Callable[[], Any]], Compiled]
# Identifies a compilation, so that equal calls compile once.
Key = tuple[str, tuple[str, ...], str]


def check_interpreter() -> None:
    """Raise ValueError if Triton's interpreter is on: kernels then cannot be compiled."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET is 1; it must be unset, kernels compile only without it")


def compile_operator(
    operator: str,
    target: str,
    *,
    skip: Collection[Key] = (),
    share: Share = ALL,
    only: Collection[Name] | None = None,
    begin: Callable[[Key, Compiled], None] = lambda key, kernel: None,
    end: Callable[[Compiled], None] = lambda kernel: None,
    make: Make | None = None,
) -> list[Compiled]:
    """Compile all kernels of an operator for a target, as its contract's cases call them.

    For a target that the contract calls unsupported there is one entry, which says so.

    Args:
        operator, target: names from `ops.OPERATORS` and `CHIPS`.
        skip: kernels to leave out.
        share: which of the operator's kernels to compile.
        only: which of the share; they are compiled even if a cache has them.
        begin, end: called with every kernel before and after it is compiled.
        make: called for each kernel; by default it compiles it.

    Raises:
        ValueError: Triton's interpreter is on in this process.
    """
    check_interpreter()
    contract = report.contract(operator)
    side = ops.compiling_side()
    seen = set(skip)
    made: list[Compiled] = []
    if target in contract.unsupported:
        why = contract.unsupported[target]
        made.append(Compiled(operator, NONE, target, NONE, "", unsupported=why))
        end(made[0])
        return made

    def compile_once(function: Any, args: Any, options: Any, launch: Callable[[], Any]) -> None:
        constants = " ".join((*_given(args), _constants(function, options), *marks))
        name = Compiled(operator, function.__name__, target, precision, constants)
        dtypes = tuple(_dtypes(args))
        key = (f"{function.__module__}.{name.kernel}", dtypes, name.constants)
        if key in seen:
            return
        seen.add(key)  # even if not compiled: a kernel is named after its first call
        if not share.has(name.name) or (only is not None and name.name not in only):
            return
        begin(key, name)
        kernel = (make or _make)(name, launch)
        made.append(kernel)
        end(kernel)

    with compiling(CHIPS[target], compile_once, anew=only is not None):
        odd = [(case, ()) for case in contract.compiled or contract.pinned]
        for case, sizes in (*odd, *((case, ("usual sizes",)) for case in contract.usual)):
            precision, marks = precision_name(case), sizes
            contract.run(side, case, contract.inputs(case))
    return made


Launch = Callable[[Any, Any, Any, Callable[[], Any]], None]


@contextmanager
def compiling(chip: Chip, compile_once: Launch, *, anew: bool = False) -> Iterator[None]:
    """Make launches compile for a chip instead of running; `anew` ignores caches.

    `compile_once` is given the function, its arguments, its options, and what compiles it.

    Binaries have no line numbers: with them, a comment above a kernel or the name of its folder
    changes what some compilers allocate.
    """
    import torch
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        """Names the target; there is no device."""

        def get_current_target(self) -> Any:
            return gpu_target(chip)

        def get_current_device(self) -> int:
            return list(CHIPS.values()).index(chip)

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_active_torch_device(self) -> Any:
            return torch.device("cpu")

    launch, before = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compile_once(
            self, args, options, lambda: launch(self, *args, grid=grid, warmup=True, **options)
        )

    JITFunction.run = compile_only
    driver.set_active(Driver())
    try:
        with knobs.compilation.scope():
            knobs.compilation.disable_line_info = True
            knobs.compilation.always_compile = anew or knobs.compilation.always_compile
            yield
    finally:
        JITFunction.run = launch
        driver._active = before


def _make(name: Compiled, launch: Callable[[], Any]) -> Compiled:
    try:
        return describe(name, launch())
    except Exception as error:  # whatever the compiler raises concerns this kernel alone
        return replace(name, failure=_reason(error))


def _reason(error: BaseException) -> str:
    """Return an error's message in one line, followed by those of its causes."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return words if error.__cause__ is None else f"{words}; from {_reason(error.__cause__)}"


def _dtypes(args: Any) -> Iterator[str]:
    """Yield the dtypes of the tensors among a call's arguments, in tuples and descriptors too."""
    for a in args:
        if isinstance(a, tuple):
            yield from _dtypes(a)
        elif hasattr(x := getattr(a, "base", a), "dtype"):
            yield str(x.dtype)


def _given(args: Any) -> Iterator[str]:
    """Yield what the compiler takes for constants in the tuples of a call.

    That is optional fields, with default None, that are given, and numbers without a default that
    are 1: a loop over heads that share keys vanishes if each head has its own.
    """
    for a in args:
        for field, value in a._asdict().items() if hasattr(a, "_fields") else ():
            if field not in a._field_defaults:
                if type(value) is int and value == 1:
                    yield f"{field}=1"
            elif a._field_defaults[field] is None and value is not None:
                yield field


def _constants(function: Any, options: dict[str, Any]) -> str:
    """Return the constants of a call in one line: set flags by name, all else with its value."""
    given = {p.name: options[p.name] for p in function.params if p.is_constexpr}
    given |= {name: options[name] for name in ("num_warps", "num_stages") if name in options}
    return " ".join(
        name if value is True else f"{name}={getattr(value, '__name__', value)}"
        for name, value in given.items()
        if value is not False and value is not None
    )
