"""Memory that torch handed out uninitialised: poisoned, and tracked until it is written.

`torch.empty` and its like return whatever was there: often zeros, with which a kernel that adds to
an output it should set, or leaves its last rows out, looks right. Under `watched` they return NaN,
the largest integer, or True, and each allocation has a `Record` of the elements that kernels have
stored to since. An operation of torch that writes to a tensor increments its `_version`; which
elements it wrote cannot be known, so the record is dropped, and only the poison remains. The same
holds for what torch allocates by itself (`resize_`, inside its operators), or by its types
(`torch.FloatTensor(4)`), and for an earlier `from torch import empty`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from twofold.core.verify.strict.memory import Access

Array = np.ndarray[Any, np.dtype[Any]]

_ALLOCATORS: tuple[tuple[Any, str], ...] = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch, "empty_permuted"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
    # torch.Tensor(2, 3), and x.new(2, 3): when made from sizes, not from anything else.
    (torch.Tensor, "__new__"),
    (torch.Tensor, "new"),
)
_BY_SIZES = ("__new__", "new")
_PRUNED = 4096  # records kept before those of freed memory are dropped


class Record:
    """One allocation: which of its elements a kernel has stored to, and who stored last."""

    def __init__(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.first = storage.data_ptr()
        self.itemsize = tensor.element_size()
        self.written = np.zeros(storage.nbytes() // self.itemsize, bool)
        self.version = tensor._version
        self.writer: Access | None = None
        self._storage = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        offset = tensor.storage_offset()
        self._poison = self._memory()[offset].copy()

    def alive(self) -> bool:
        """Return whether the memory still belongs to this allocation."""
        return not self._storage.expired()  # type: ignore[no-untyped-call]

    def write(self, addresses: Array, size: int, writer: Access) -> None:
        """Note the elements that a store reached."""
        for at in self._elements(addresses, size):
            self.written[at] = True
        self.writer = writer

    def unwritten(self, addresses: Array, size: int) -> Array:
        """Return which of these elements were never written."""
        never = np.zeros(addresses.shape, bool)
        for at in self._elements(addresses, size):
            never |= ~self.written[at]
        if never.any():  # unless they were written past torch, such as through NumPy
            never &= (self._memory()[self._elements(addresses, size)[0]] == self._poison).all(
                axis=1
            )
        return never

    def _memory(self) -> Array:
        """Return the bytes of each element as they are now."""
        window = (ctypes.c_uint8 * (len(self.written) * self.itemsize)).from_address(self.first)
        return np.ctypeslib.as_array(window).reshape(-1, self.itemsize)

    def _elements(self, addresses: Array, size: int) -> list[Array]:
        start = (addresses - np.uint64(self.first)).astype(np.int64)
        steps = range(0, size, self.itemsize)
        return [(start + step) // self.itemsize for step in steps]


_records: dict[int, Record] = {}
_poisons: list[bool] = []  # `poison` of the contexts entered, the innermost last


def record(tensor: torch.Tensor) -> Record | None:
    """Return the record of a tensor's memory, if that came uninitialised and torch wrote none."""
    found = _records.get(tensor.untyped_storage().data_ptr())
    if found is None:
        return None
    untouched = not tensor.is_inference() and tensor._version == found.version
    if untouched and found.alive() and not found.written.all():
        return found
    del _records[found.first]
    return None


@contextlib.contextmanager
def watched(poison: bool = True) -> Iterator[None]:
    """Poison and track uninitialised memory; contexts nest, the innermost decides."""
    _poisons.append(poison)
    with contextlib.ExitStack() as stack:
        stack.callback(_poisons.pop)
        if len(_poisons) == 1:
            stack.callback(_records.clear)
            for owner, name in _ALLOCATORS:
                plain = getattr(owner, name)
                if name in vars(owner):
                    stack.callback(setattr, owner, name, plain)
                else:
                    stack.callback(delattr, owner, name)
                setattr(owner, name, _poisoning(plain, name in _BY_SIZES))
        yield


def _poisoning(plain: Callable[..., torch.Tensor], by_sizes: bool) -> Callable[..., torch.Tensor]:
    @functools.wraps(plain)
    def allocate(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = plain(*args, **kwargs)
        empty = not by_sizes or all(isinstance(n, int | torch.Size) for n in args[1:])
        if empty and _poisons and _poisons[-1] and not torch.compiler.is_compiling():
            _poison(tensor)
        return tensor

    return allocate


def _poison(tensor: torch.Tensor) -> None:
    strided = type(tensor) is torch.Tensor and tensor.layout == torch.strided
    if not strided or tensor.device.type == "meta" or tensor.is_quantized or not tensor.numel():
        return
    kind = tensor.dtype
    value: Any = torch.nan
    if kind == torch.bool:
        value = True
    elif not (kind.is_floating_point or kind.is_complex):
        value = torch.iinfo(kind).max
    with torch.no_grad():
        tensor.fill_(value)
    if tensor.device.type == "cpu" and not tensor.is_inference():
        if len(_records) > _PRUNED:
            for freed in [first for first, x in _records.items() if not x.alive()]:
                del _records[freed]
        made = Record(tensor)
        _records[made.first] = made
