"""Every address a launch touches, checked: does it lie in a tensor, does another program touch it.

Each pointer argument gets a tag in bits that no address uses. Pointer arithmetic carries it along,
so that an address says by itself which argument it was computed from, and nothing has to follow
the arithmetic. An address must lie among the elements of its own argument's view: running from one
tensor into its neighbour is a fault even where the neighbour is an argument too.

Races are found with marks: per element of a storage, the number of the access that read, wrote or
atomically updated it. Programs run one after the other, so a mark below the number at which the
running program began was left by another program. Everything is done on whole blocks of
addresses, and a storage that is never written costs no more than a list of its loads.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Program = tuple[int, int, int]
Site = tuple[tuple[CodeType, int], ...]  # code and line: innermost first, the kernel's own last

TAG = 52  # lowest bit of the tag; addresses have 48 bits at most
_ADDRESS = np.uint64((1 << TAG) - 1)
_PENDING_LANES = 1 << 22  # loads that are kept before they become marks
_CLASHES = {
    "load": ("store", "atomic"),
    "store": ("store", "load", "atomic"),
    "atomic": ("store", "load"),
}
_WORDS = {"load": "load from", "store": "store to", "atomic": "atomic on"}


class Fault(AssertionError):
    """A kernel did what hardware does not define, or does not do."""


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
        """Return whether everything between two byte addresses is known to be of this view."""
        return self._dense and self.first <= low and high + size <= self.last

    def __str__(self) -> str:
        return f"{self.name} of shape {self.shape} and strides {self.strides}"


class Marks:
    """Who touched the elements of a storage; the unit is the smallest element of its views."""

    def __init__(self) -> None:
        self._first, self._last, self._unit = 1 << 63, 0, 64
        self._marks: dict[str, Array] = {}
        self._pending: list[tuple[int, Array]] = []
        self._pending_lanes = 0

    def cover(self, view: View) -> None:
        """Make room for a view."""
        self._first = min(self._first, view.first)
        self._last = max(self._last, view.last)
        self._unit = min(self._unit, view.itemsize)

    def touch(
        self, kind: str, addresses: Array, size: int, access: int, began: int
    ) -> tuple[int, int] | None:
        """Mark an access; return (lane, earlier access) where it clashes with another program's."""
        at = (addresses - np.uint64(self._first)).view(np.int64)
        if self._unit > 1:
            at >>= self._unit.bit_length() - 1
        width = max(1, size // self._unit)
        if width > 1:
            at = (at[:, None] + np.arange(width)).ravel()
        if kind != "load":
            self._settle()
        for other in _CLASHES[kind]:
            if (marks := self._marks.get(other)) is not None:
                found = marks[at]
                foreign = (found - 1).view(np.uint32) < began - 1  # 0 is no mark
                if foreign.any():
                    lane = int(foreign.argmax())
                    return lane // width, int(found[lane])
        if kind == "load":
            self._pending.append((access, at))
            self._pending_lanes += at.size
            if self._pending_lanes > _PENDING_LANES:
                self._settle()
        elif kind == "store":
            self._of("store")[at] = access
        else:
            self._mark_first("atomic", access, at)
        return None

    def _settle(self) -> None:
        for access, at in self._pending:
            self._mark_first("load", access, at)
        self._pending, self._pending_lanes = [], 0

    def _mark_first(self, kind: str, access: int, at: Array) -> None:
        """Keep the first mark: if any program but the running one left one, it is this."""
        marks = self._of(kind)
        marks[at[marks[at] == 0]] = access

    def _of(self, kind: str) -> Array:
        if kind not in self._marks:
            self._marks[kind] = np.zeros(-(-(self._last - self._first) // self._unit), np.int32)
        return self._marks[kind]


class Access(NamedTuple):
    """One load, store or atomic operation of one program."""

    kind: str
    program: Program
    site: Site


class Memory:
    """What one launch of a kernel may touch, and has touched."""

    def __init__(
        self, kernel: str, code: CodeType, bounds: bool, races: bool, skip: tuple[str, ...]
    ):
        self._kernel, self._code = kernel, code
        self._bounds, self._races = bounds, races
        self._skip = skip
        self._views: list[View] = []
        self._marks: dict[int, Marks] = {}
        self._accesses: list[Access] = []
        self._began = 1
        self._program: Program = (0, 0, 0)

    def add(self, name: str, tensor: Any) -> Array:
        """Register a pointer argument; return the pointer the kernel gets, with its tag."""
        view = View(name, tensor)
        storage = int(tensor.untyped_storage().data_ptr())
        view.marks = self._marks.setdefault(storage, view.marks)
        view.marks.cover(view)
        self._views.append(view)
        return np.array([view.first + (len(self._views) << TAG)], np.uint64)

    def begin(self, program: Program) -> None:
        """Let a program run, until the next."""
        self._program = program
        self._began = len(self._accesses) + 1

    def access(self, kind: str, pointers: Array, mask: Array, size: int) -> Array:
        """Check the lanes of an access that `mask` lets through; return plain addresses."""
        if self._bounds or self._races:
            lanes = pointers.ravel() if mask.all() else pointers[mask]
            if lanes.size:
                self._check(kind, lanes, size)
        return untagged(pointers)

    def fault(self, what: str) -> Fault:
        """Return a fault that says where the kernel is."""
        return Fault(f"{self._kernel}, {_place(self._site())}, program {self._program}: {what}")

    def disagreement(self, pointers: Array) -> Fault:
        """Return the fault of a store whose lanes wrote different values to these addresses."""
        pointer = int(pointers.ravel()[0])
        tag, address = pointer >> TAG, pointer & int(_ADDRESS)
        where = "an address from memory"
        if 0 < tag <= len(self._views):
            view = self._views[tag - 1]
            where = f"element {(address - view.first) // view.itemsize} of {view}"
        return self.fault(f"two lanes of one store write different values to {where}")

    def _check(self, kind: str, lanes: Array, size: int) -> None:
        low, high = int(lanes.min()), int(lanes.max())
        tag = low >> TAG
        if tag != high >> TAG:
            tags = lanes >> np.uint64(TAG)
            for one in np.unique(tags):
                self._check(kind, lanes[tags == one], size)
            return
        if tag == 0:
            self._check_untagged(kind, lanes, size)
            return
        if tag > len(self._views):
            raise self.fault(f"{_WORDS[kind]} an address far from every tensor")
        view, addresses = self._views[tag - 1], untagged(lanes)
        base = tag << TAG
        if self._bounds and not view.holds_all(low - base, high - base, size):
            inside = view.holds(addresses, size)
            if not inside.all():
                first = int(addresses[~inside][0]) - view.first
                raise self.fault(
                    f"{_WORDS[kind]} {view} out of bounds: {int((~inside).sum())} of {lanes.size} "
                    f"unmasked lanes, the first at element {first // view.itemsize}"
                )
        if self._races:
            self._check_races(kind, view, addresses, size)

    def _check_untagged(self, kind: str, lanes: Array, size: int) -> None:
        """Check addresses that come from memory, not from an argument: find their tensors."""
        for view in self._views:
            inside = view.holds(lanes, size)
            if self._races and inside.any():
                self._check_races(kind, view, lanes[inside], size)
            lanes = lanes[~inside]
        if self._bounds and lanes.size:
            raise self.fault(f"{_WORDS[kind]} an address that is in no tensor argument")

    def _check_races(self, kind: str, view: View, addresses: Array, size: int) -> None:
        self._accesses.append(Access(kind, self._program, self._site()))
        clash = view.marks.touch(kind, addresses, size, len(self._accesses), self._began)
        if clash:
            lane, number = clash
            earlier = self._accesses[number - 1]
            element = (int(addresses[lane]) - view.first) // view.itemsize
            raise self.fault(
                f"{_WORDS[kind]} {view} races at element {element} with the {earlier.kind} of "
                f"program {earlier.program} at {_place(earlier.site)}"
            )

    def _site(self) -> Site:
        """Return the kernel's frames, from the statement that runs out to the kernel itself."""
        found = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if not code.co_filename.startswith(self._skip):
                found.append((code, frame.f_lineno))
            if code is self._code:
                break
            frame = frame.f_back
        return tuple(found)


def _place(site: Site) -> str:
    return ", called from ".join(f"{code.co_filename}:{line}" for code, line in site)


def untagged(pointers: Array) -> Array:
    """Return the addresses that pointers mean."""
    return np.asarray(pointers & _ADDRESS)
