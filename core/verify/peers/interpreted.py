"""What other libraries' kernels need that is missing without a GPU.

Where kernels are interpreted, two parts of Triton are replaced before such a library is imported:

- libdevice's functions are declarations that a compiler fills in; here NumPy computes them in
  float64 and rounds once to the argument's dtype. Those whose name says that they are approximate
  (fast_…) are left out: NumPy would flatter them.
- An autotuner measures its configurations on a GPU. Any of them may win, so all must be right: the
  one that runs is drawn by its tuning key, the same in every process.

For packages whose `__init__` needs a GPU, or all their dependencies, `bare` makes the modules with
kernels importable alone.
"""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import numpy as np

from twofold.core import ops

ALIKE = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "sin", "cos", "tan", "sinh",
    "cosh", "tanh", "floor", "ceil", "trunc", "rint", "abs", "pow", "fmod",
)  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {  # on float64
    **{name: getattr(np, {"pow": "power"}.get(name, name)) for name in ALIKE},
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "erfc": np.vectorize(math.erfc, otypes=[np.float64]),
    "div_rn": np.divide,
    "fma": lambda x, y, z: x * y + z,
}


def prepare() -> None:
    """Make the interpreter fit for other libraries; do nothing where kernels are compiled."""
    if ops.triton_device() != "cpu":
        return
    from triton.language.extra import libdevice
    from triton.language.extra.cuda import libdevice as of_cuda
    from triton.runtime.autotuner import Autotuner

    for name, function in FUNCTIONS.items():
        setattr(libdevice, name, _OnTensors(name, function))
    for name in vars(libdevice).keys() & vars(of_cuda).keys():
        if callable(function := getattr(libdevice, name)):
            setattr(of_cuda, name, function)
    Autotuner._bench = _drawn_by_key


def bare(package: str) -> None:
    """Make an installed package's modules importable without its `__init__`.

    For a package within a package, call this for the outer one first, then for the inner.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    if package in sys.modules:
        return
    outer, _, _ = package.rpartition(".")
    spec = PathFinder.find_spec(package, sys.modules[outer].__path__ if outer else None)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package named {package!r}", name=package)
    module = ModuleType(package)
    module.__path__, module.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules[package] = module


class _OnTensors:
    """A NumPy function as kernels call it; not a Python function, which libdevice's own are."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function

    def __call__(self, *args: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle, interpreter_semantic

        first, *rest = (interpreter_semantic.to_tensor(x) for x in args)
        dtype = first.dtype
        if dtype not in (tl.float32, tl.float64):
            raise TypeError(f"libdevice's {self._name} takes float32 or float64, not {dtype}")
        for x in rest:
            first, _ = interpreter_semantic.broadcast_impl_value(first, x)
        rest = [interpreter_semantic.broadcast_impl_value(first, x)[1] for x in rest]
        wide = (x.handle.data.astype(np.float64) for x in (first, *rest))
        found = self._function(*wide).astype(first.handle.data.dtype)
        return tl.tensor(TensorHandle(found, dtype), first.type)


def _drawn_by_key(autotuner: Any, *args: Any, config: Any, **meta: Any) -> list[float]:
    """Return stand-ins for the three quantiles of a configuration's time."""
    values = {**autotuner.nargs, **meta}
    key = [values.get(name) for name in autotuner.keys]
    return [float(zlib.crc32(f"{config} {key}".encode()))] * 3
