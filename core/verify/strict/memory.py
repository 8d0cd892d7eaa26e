"""Checks every address that a launch touches: whether it is in bounds, was written, or races.

Each pointer argument gets a tag in bits that no address uses. Pointer arithmetic carries it along,
so an address itself says which argument it was computed from, and nothing has to track the
arithmetic. An address must lie among the elements of its own argument's view: running from one
tensor into its neighbour is a fault even if the neighbour is an argument too. `marks` knows who
touched an element before, `unwritten` whether it was ever written.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from twofold.core.verify.strict.marks import Marks, Touch
from twofold.core.verify.strict.order import Clock, Order

if TYPE_CHECKING:  # it imports torch, which users of `Fault` need not have
    from twofold.core.verify.strict.unwritten import Record

Array = np.ndarray[Any, np.dtype[Any]]
Program = tuple[int, int, int]
Site = tuple[tuple[CodeType, int], ...]  # code and line: innermost first, the kernel's own last

TAG = 52  # lowest bit of the tag; addresses have 48 bits at most
_ADDRESS = np.uint64((1 << TAG) - 1)
_WORDS = {"load": "load from", "store": "store to", "atomic": "atomic on"}


class Fault(AssertionError):
    """A kernel did what hardware does not define, or what the compiler refuses."""


class StaticAssertion(AssertionError):
    """A kernel refuses its arguments, by `tl.static_assert`."""


class Unsupported(NotImplementedError):
    """Triton's interpreter cannot do what a kernel does; that says nothing about the kernel."""


class View:
    """A pointer argument: where its elements are."""

    def __init__(self, name: str, tensor: Any) -> None:
        self.name = name
        self.shape, self.strides = tuple(tensor.shape), tuple(tensor.stride())
        self.itemsize = int(tensor.element_size())
        self.first = int(tensor.data_ptr())
        spread = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        self.elements = spread + 1 if tensor.numel() else 0
        self.last = self.first + self.elements * self.itemsize
        self.marks = Marks()
        self.record: Record | None = None
        # An expanded axis repeats its elements, an axis of length 1 has one.
        self._axes = sorted(
            (s, n) for n, s in zip(self.shape, self.strides, strict=True) if s > 0 and n > 1
        )
        self._present: Array | None = None
        reach = 1
        for stride, length in self._axes:
            self._dense = stride == reach
            if not self._dense:
                break
            reach *= length
        else:
            self._dense = True

    def holds(self, addresses: Array, size: int) -> Array:
        """Return which of these byte addresses begin `size` bytes of this view."""
        inside = (addresses >= self.first) & (addresses + np.uint64(size) <= self.last)
        if self._dense or not inside.any():
            return np.asarray(inside)
        if self._present is None:
            self._present = np.zeros(self.elements, bool)
            np.lib.stride_tricks.as_strided(
                self._present, [n for _, n in self._axes], [s for s, _ in self._axes]
            )[...] = True
        start = np.where(inside, addresses - np.uint64(self.first), 0).astype(np.int64)
        held = self._present[start // self.itemsize]
        if size > self.itemsize:
            held &= self._present[
                np.minimum((start + size - 1) // self.itemsize, self.elements - 1)
            ]
        return np.asarray(inside & held)

    def holds_all(self, low: int, high: int, size: int) -> bool:
        """Return whether everything between two byte addresses is known to be in this view."""
        return self._dense and self.first <= low and high + size <= self.last

    def element(self, address: int) -> int:
        """Return the index of the element at an address, counted from the view's first."""
        return (address - self.first) // self.itemsize

    def __str__(self) -> str:
        return f"{self.name} of shape {self.shape} and strides {self.strides}"


class Access(NamedTuple):
    """One load, store or atomic operation of one program, through a pointer argument."""

    kind: str
    name: str
    program: Program
    site: Site

    def __str__(self) -> str:
        return f"the {self.kind} of program {self.program} at {_place(self.site)}"


class Checks(NamedTuple):
    """What `Memory` looks for."""

    bounds: bool
    races: bool
    uninitialised: bool


class Memory:
    """What one launch of a kernel may touch, and has touched.

    Args:
        kernel: its name.
        code: that of the function that runs.
        checks: what is looked for.
        skip: frames of files whose paths begin like this are not the kernel's.
        seed: for random choices.

    `unspecified` holds the loads that left lanes unspecified: masked, without `other`.
    """

    def __init__(
        self, kernel: str, code: CodeType, checks: Checks, skip: tuple[str, ...], seed: int
    ) -> None:
        self._kernel, self._code = kernel, code
        self._checks = checks
        self._skip = skip
        self._views: list[View] = []
        self._marks: dict[int, Marks] = {}
        self._accesses: list[Access] = []
        self._began = self._settled = 1
        self.order = Order(seed)
        self._program: Program = (0, 0, 0)
        self.unspecified: dict[tuple[str, Site], None] = {}

    def add(self, name: str, tensor: Any, record: Record | None) -> Array:
        """Register a pointer argument; return the pointer the kernel gets, with its tag."""
        view = View(name, tensor)
        storage = int(tensor.untyped_storage().data_ptr())
        view.marks = self._marks.setdefault(storage, view.marks)
        view.marks.cover(view.first, view.last, view.itemsize)
        view.record = record
        self._views.append(view)
        return np.array([view.first + (len(self._views) << TAG)], np.uint64)

    def begin(self, program: Program) -> None:
        """Note that a program begins to run."""
        self._program = program
        self._began = self._settled = len(self._accesses) + 1
        if self.order.active:
            self._settle_marks()
        self.order.begin(self._began)

    def barrier(self) -> None:
        """Make what the program has stored visible to all its lanes."""
        self._settled = len(self._accesses) + 1

    def acquire(self, published: Clock) -> None:
        """Order what others have published before what the program does next."""
        self._settle_marks()
        self.order.acquire(published)

    def release(self, address: int) -> None:
        """Publish what the program has done to others that find this by an atomic."""
        self.order.release(address, self._settled, len(self._accesses))

    def _settle_marks(self) -> None:
        for marks in self._marks.values():
            marks.settle(self.order)

    def access(self, kind: str, pointers: Array, mask: Array, size: int) -> Array:
        """Check the lanes of an access that `mask` lets through; return plain addresses."""
        if any(self._checks):
            whole = bool(mask.all())
            live = pointers.ravel() if whole else pointers[mask]
            if live.size:
                if self._checks.bounds and int(np.bitwise_or.reduce(live)) % size:
                    raise self._misaligned(kind, live, size)
                lanes = _numbers(pointers.size) if whole else np.flatnonzero(mask)
                self._check(kind, live, lanes, size)
        return untagged(pointers)

    def _misaligned(self, kind: str, pointers: Array, size: int) -> Fault:
        first = int(pointers[pointers % np.uint64(size) != 0][0])
        return self.fault(
            f"{_WORDS[kind]} {self._argument(first)} of {size} bytes at an address that {size} "
            "does not divide"
        )

    def leave_unspecified(self, pointers: Array) -> None:
        """Record that a load gives some lanes no value."""
        self.unspecified.setdefault((self._argument(int(pointers.ravel()[0])), self.site()))

    def fault(self, what: str, site: Site = ()) -> Fault:
        """Return a fault that says where the kernel is, or was."""
        return Fault(self.located(what, site))

    def located(self, what: str, site: Site = ()) -> str:
        """Return a message with the place where the kernel is, or was."""
        return f"{self._kernel}, {_place(site or self.site())}, program {self._program}: {what}"

    def disagreement(self, pointers: Array) -> Fault:
        """Return the fault of a store whose lanes wrote different values to these addresses."""
        pointer = int(pointers.ravel()[0])
        tag, address = pointer >> TAG, pointer & int(_ADDRESS)
        where = "an address from memory"
        if 0 < tag <= len(self._views):
            view = self._views[tag - 1]
            where = f"element {view.element(address)} of {view}"
        return self.fault(f"two lanes of one store write different values to {where}")

    def put_back(self, pointers: Array) -> Fault:
        """Return the fault of an exchange that releases another program's lock."""
        lock = self._argument(int(pointers.ravel()[0]))
        return self.fault(f"{_WORDS['atomic']} {lock} puts it back, though it was found held")

    def use(self, kind: str, pointers: Array, count: int) -> Fault:
        """Return the fault of a store, or atomic, of values that came from masked lanes."""
        loads = "; ".join(f"{name} at {_place(site)}" for name, site in self.unspecified)
        return self.fault(
            f"{_WORDS[kind]} {self._argument(int(pointers.ravel()[0]))}: {count} values come from "
            f"masked lanes of a load without `other`: {loads}"
        )

    def site(self, traceback: TracebackType | None = None) -> Site:
        """Return the kernel's frames, from the statement that runs out to the kernel itself.

        With a traceback, from the statement that raised.
        """
        found = []
        for code, line in _raised(traceback) if traceback else _running():
            if not code.co_filename.startswith(self._skip):
                found.append((code, line))
            if code is self._code:
                break
        return tuple(found)

    def _argument(self, pointer: int) -> str:
        tag = pointer >> TAG
        return str(self._views[tag - 1]) if 0 < tag <= len(self._views) else "an address"

    def _check(self, kind: str, pointers: Array, lanes: Array, size: int) -> None:
        low, high = int(pointers.min()), int(pointers.max())
        tag = low >> TAG
        if tag != high >> TAG:
            tags = pointers >> np.uint64(TAG)
            for one in np.unique(tags):
                self._check(kind, pointers[tags == one], lanes[tags == one], size)
            return
        if tag == 0:
            self._check_untagged(kind, pointers, lanes, size)
            return
        if tag > len(self._views):
            raise self.fault(f"{_WORDS[kind]} an address far from every tensor")
        view, addresses = self._views[tag - 1], untagged(pointers)
        base = tag << TAG
        if self._checks.bounds and not view.holds_all(low - base, high - base, size):
            inside = view.holds(addresses, size)
            if not inside.all():
                first = view.element(int(addresses[~inside][0]))
                raise self.fault(
                    f"{_WORDS[kind]} {view} out of bounds: {int((~inside).sum())} of "
                    f"{addresses.size} unmasked lanes, the first at element {first}"
                )
        self._check_history(kind, view, addresses, lanes, size)

    def _check_untagged(self, kind: str, addresses: Array, lanes: Array, size: int) -> None:
        """Check addresses that come from memory, not from an argument: find their tensors."""
        for view in self._views:
            inside = view.holds(addresses, size)
            if inside.any():
                self._check_history(kind, view, addresses[inside], lanes[inside], size)
            addresses, lanes = addresses[~inside], lanes[~inside]
        if self._checks.bounds and addresses.size:
            raise self.fault(f"{_WORDS[kind]} an address that is in no tensor argument")

    def _check_history(
        self, kind: str, view: View, addresses: Array, lanes: Array, size: int
    ) -> None:
        """Check what happened to these elements before."""
        if not self._checks.races and view.record is None:
            return
        access = Access(kind, view.name, self._program, self.site())
        self._accesses.append(access)
        if self._checks.races:
            number, began, settled = len(self._accesses), self._began, self._settled
            new = Touch(kind, number, began, settled, addresses, lanes, size)
            if clash := view.marks.touch(new, self.order):
                earlier = self._accesses[clash.earlier - 1]
                own, why = clash.earlier >= began, ""
                if own:
                    why = ", and no barrier is between them"
                elif self.order.loose(clash.earlier):
                    why = ", and no barrier is between that and the atomic that releases it"
                raise self.fault(
                    f"{_WORDS[kind]} {view} races at element {view.element(clash.address)} with "
                    f"{'another lane and ' if own else ''}{earlier}{why}"
                )
        if view.record is None:
            return
        if kind == "store":
            view.record.write(addresses, size, access)
        elif (never := view.record.unwritten(addresses, size)).any():
            first = view.element(int(addresses[never][0]))
            raise self.fault(
                f"{_WORDS[kind]} {view} of {int(never.sum())} elements that no one has written, "
                f"the first is {first}; the memory came uninitialised"
            )


def check_written(tensor: Any, record: Record | None) -> None:
    """Raise `Fault` if a tensor has elements that were never written."""
    if record is None or not tensor.numel():
        return
    offsets = np.zeros((), np.int64)
    for axis, (length, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        steps = np.arange(length) * stride
        offsets = offsets + steps.reshape(-1, *(1,) * (tensor.ndim - axis - 1))
    size = tensor.element_size()
    addresses = (tensor.data_ptr() + offsets * size).astype(np.uint64)
    never = record.unwritten(addresses.ravel(), size).reshape(addresses.shape)
    if not never.any():
        return
    first = [int(i) for i in np.unravel_index(int(never.argmax()), never.shape)]
    what = f"{int(never.sum())} of {never.size} elements were written by no program, first {first}"
    shape = tuple(tensor.shape)
    if record.writer is None:
        raise Fault(f"a tensor of shape {shape}: {what}; no kernel stored to it")
    writer = record.writer
    raise Fault(
        f"{writer.site[-1][0].co_name}, {_place(writer.site)}, program {writer.program} was the "
        f"last to store to {writer.name}, a tensor of shape {shape}, and {what}"
    )


@functools.lru_cache
def _numbers(count: int) -> Array:
    return np.arange(count, dtype=np.int32)


def _running() -> Iterator[tuple[CodeType, int]]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _raised(traceback: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    frames = []
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    return reversed(frames)


def _place(site: Site) -> str:
    return ", called from ".join(f"{code.co_filename}:{line}" for code, line in site)


def untagged(pointers: Array) -> Array:
    """Return the addresses of pointers, without their tags."""
    return np.asarray(pointers & _ADDRESS)
