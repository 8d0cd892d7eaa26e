"""The table of operators and the two sides that implement them.

A *side* is a namespace with one attribute per operator, plus the few array functions needed by
code that wires operators together. The same lines run on either side:

    ops = load("reference")                      # or load("triton")
    out, cache = ops.attention.forward(q, k, v, causal=True)
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

OPERATORS = (
    "attention",
    "attention_double_backward",
    "multi_head_attention",
    "merge_attention",
    "attention_weights",
    "attention_decode",
    "attention_fp8",
    "positional_encoding",
    "rotary",
    "layer_norm",
    "rms_norm",
    "linear",
    "activation",
    "gated_activation",
    "dropout",
    "embedding",
    "pooling",
    "softmax",
    "softmax_cross_entropy",
    "optimizers",
)
SIDES = ("reference", "triton")


class Buffers:
    """NumPy arrays that are overwritten together."""

    def __init__(self, like: Sequence[Array]) -> None:
        self.arrays = [np.empty_like(x) for x in like]

    def write(self, arrays: Sequence[Array]) -> None:
        """Copy arrays of the same shapes into the buffers."""
        for buffer, x in zip(self.arrays, arrays, strict=True):
            buffer[...] = x


@dataclass(frozen=True)
class Side:
    """One side: every operator, and the device its arrays live on.

    Attributes:
        name: "reference" or "triton".
        package: the package that the operators are imported from.
        device: "cpu" or "cuda".
        asarray: moves a NumPy array, or one of the side's own, to this side, cast to a dtype if one
            is given.
        to_numpy: brings an array back (bfloat16 and float8_e4m3fn as float32, which holds
            them exactly).
        zeros, empty: allocate an array of a given shape, float32 unless a dtype is given.
        arange: counts from 0, int64.
        captured: turns a function that takes no arguments, returns nothing and reads from memory
            all that changes into one replayed as a CUDA graph; off the GPU, the function itself.
        buffers: allocates arrays like the given NumPy arrays in one block of memory (`arrays`);
            `write` copies others of the same shapes into all of them at once, without waiting for
            a GPU.
        read: starts bringing an array back as it is now; calling what it returns gives the array.

    Every name in `OPERATORS` is an attribute too: the operator's module, imported at first use.
    """

    name: str
    device: str
    package: str
    asarray: Callable[..., Any]
    to_numpy: Callable[[Any], Array]
    zeros: Callable[..., Any]
    empty: Callable[..., Any]
    arange: Callable[[int], Any]
    captured: Callable[[Callable[[], None]], Callable[[], None]]
    buffers: Callable[[Sequence[Array]], Any]
    read: Callable[[Any], Callable[[], Array]]

    def __getattr__(self, operator: str) -> ModuleType:
        if operator not in OPERATORS:
            raise AttributeError(f"{operator!r} is no operator; there are {', '.join(OPERATORS)}")
        return importlib.import_module(f"{self.package}.{operator}")


def check_operator(named: str, operator: str) -> None:
    """Raise `ValueError` unless this is one of `OPERATORS`; `named` is what it was given as."""
    if operator not in OPERATORS:
        raise ValueError(f"{named} is {operator!r}; it must be one of {', '.join(OPERATORS)}")


def load(side: str) -> Side:
    """Return the side of this name.

    Args:
        side: "reference" (NumPy) or "triton" (torch tensors: on the GPU if CUDA is available,
            otherwise on the CPU through Triton's interpreter, which is for checking, not for speed,
            and supports bfloat16 only when strict: `verify.strict`).

    Raises:
        ValueError: `side` is neither.
        ModuleNotFoundError: "triton" without torch and triton installed; the message gives the
            command that installs them.
        RuntimeError: the kernels were imported for a GPU, and there is none.
    """
    if side == "reference":
        return _reference()
    if side == "triton":
        return _triton(triton_device())
    raise ValueError(f"side is {side!r}; it must be one of {', '.join(map(repr, SIDES))}")


def cuda_available() -> bool:
    """Return whether the kernels would run compiled: torch is installed and sees a CUDA device."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def triton_device() -> str:
    """Return the device the kernels run on, turning on Triton's interpreter where it is needed.

    Triton reads TRITON_INTERPRET when a kernel is defined, so call this before importing kernels.
    """
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the kernels need {' and '.join(missing)}: pip install 'twofold[triton]'"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if cuda_available():
        return "cuda"
    if any(f"twofold.kernels.{operator}" in sys.modules for operator in OPERATORS):
        raise RuntimeError(
            "twofold.kernels was imported for a GPU that is not there; "
            "call twofold.core.ops.load('triton') first or set TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    return "cpu"


def interpreted() -> bool:
    """Return whether Triton's own functions were imported for its interpreter."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.sum, InterpretedFunction)


def compiling_side() -> Side:
    """Return the Triton side on CPU tensors without the interpreter: its kernels cannot run."""
    return _triton("cpu")


def _reference() -> Side:
    def zeros(shape: tuple[int, ...], dtype: str = "float32") -> Any:
        return np.zeros(shape, dtype)

    def empty(shape: tuple[int, ...], dtype: str = "float32") -> Any:
        return np.empty(shape, dtype)

    def captured(function: Callable[[], None]) -> Callable[[], None]:
        return function

    def read(x: Any) -> Callable[[], Any]:
        now = np.array(x)
        return lambda: now

    return Side(
        "reference", "cpu", "twofold.reference", np.asarray, np.asarray, zeros, empty, np.arange,
        captured, Buffers, read,
    )  # fmt: skip


def _triton(device: str) -> Side:
    import torch

    from twofold.core import captured

    def asarray(x: Any, dtype: str | None = None) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            x = torch.as_tensor(np.array(x, order="C"))
        tensor: torch.Tensor = x.to(device)
        return tensor if dtype is None else tensor.to(getattr(torch, dtype))

    def to_numpy(x: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
        return captured.known(x.detach().cpu()).numpy()

    def zeros(shape: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=device)

    def empty(shape: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
        with torch.inference_mode(False):  # else it could be written only in inference mode
            return torch.empty(shape, dtype=getattr(torch, dtype), device=device)

    def arange(n: int) -> torch.Tensor:
        return torch.arange(n, device=device)

    return Side(
        "triton", device, "twofold.kernels", asarray, to_numpy, zeros, empty, arange,
        captured.capturing(device), partial(captured.Buffers, device=device), captured.read,
    )  # fmt: skip
