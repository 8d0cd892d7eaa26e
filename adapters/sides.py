"""Which side computes: the kernels for tensors on a GPU, NumPy for others.

The NumPy side is the mathematics and not made for speed: on a CPU this is for trying things out.
Kernels can run there too, in Triton's interpreter, which is slower still: `with use("triton")`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from twofold.core import ops
from twofold.reference import checks

CHOICES = ("auto", *ops.SIDES)
DTYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
}  # fmt: skip

_chosen = "auto"
_log = logging.getLogger(__name__)
_said: set[str] = set()


@contextmanager
def use(side: str) -> Iterator[None]:
    """Compute on "reference" or "triton" whatever the device, in all threads; default is "auto".

    Raises:
        ValueError: `side` is none of these.
        RuntimeError: kernels must be interpreted, and Triton was already imported without that.
    """
    global _chosen
    if side not in CHOICES:
        raise ValueError(f"side is {side!r}; it must be one of {', '.join(map(repr, CHOICES))}")
    # This comes before any kernel is imported.
    if side == "triton" and ops.triton_device() == "cpu" and not ops.interpreted():
        raise RuntimeError(
            "Triton was imported before its interpreter was turned on; "
            "set TRITON_INTERPRET=1, or begin with twofold.core.ops.load('triton')"
        )
    before, _chosen = _chosen, side
    try:
        yield
    finally:
        _chosen = before


def say_once(what: str) -> None:
    """Log a warning the first time it is given."""
    if what not in _said:
        _said.add(what)
        _log.warning(what)


class Place(NamedTuple):
    """A side, and how tensors get to it and back."""

    side: ops.Side

    def give(self, x: Any) -> Any:
        """Return an argument as the side takes it; anything but a tensor is unchanged.

        NumPy barely supports float16, and has no bfloat16: there they become float32.
        """
        if isinstance(x, (list, tuple)):
            return [self.give(y) for y in x]
        if not isinstance(x, torch.Tensor):
            return x
        if self.side.name != "reference":
            return x.detach()
        host = x.detach().cpu()
        host = host.float() if host.dtype in (torch.float16, torch.bfloat16) else host
        # `host.numpy()` would keep torch from resizing the caller's memory, as FSDP does.
        given = np.from_dlpack(host)
        return given if given.flags.writeable else host.numpy()

    def take(self, x: Any, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a result as a tensor on `like`'s device, of its dtype or the given one."""
        if not isinstance(x, torch.Tensor):
            x = torch.from_numpy(np.array(x, order="C"))
        return x.to(device=like.device, dtype=dtype or like.dtype)


def check(given: Mapping[str, Any]) -> None:
    """Refuse tensors that cannot be given to a side, by name; sides check the others themselves.

    Raises:
        TypeError: a tensor is not strided, or its dtype is neither bfloat16 nor one of NumPy's.
    """
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            continue
        if x.layout != torch.strided:
            raise TypeError(f"{name} has layout {x.layout}; it must be {torch.strided}")
        if x.dtype not in DTYPES:
            must = "it must be bfloat16, or one that NumPy has"
            raise TypeError(f"{name} has dtype {checks.dtype_name(x)}; {must}")


def refuse_nested(given: Iterable[tuple[str, Any]]) -> None:
    """Refuse nested tensors, by name.

    Raises:
        TypeError: one is nested.
    """
    for name, x in given:
        if isinstance(x, torch.Tensor) and x.is_nested:
            raise TypeError(f"{name} is nested; it must be padded, or packed as attention takes it")


def current(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Return a context in which a tensor's GPU is the current one, where kernels are launched."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def of(x: torch.Tensor) -> Place:
    """Return the side that computes for a tensor."""
    name = _chosen
    if name == "auto":
        name = "triton" if x.is_cuda else "reference"
        if name == "reference":
            say_once("no GPU: twofold computes with NumPy, which is right and not fast")
    return Place(ops.load(name))
