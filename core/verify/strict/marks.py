"""Who touched which element in one launch, which shows that two programs, or two lanes, race.

Each element of a storage has the number of the access that read, wrote or atomically updated it.
Programs run one after the other, so a number below the one at which the running program began was
left by another program, and clashes unless atomics order the two (`order`). Once atomics order some
programs, an access ordered after one of several readers need not be ordered after the others: then
all of them are kept, as the negative number of a set of accesses. Before the first atomic nothing
is ordered, so one reader is enough. Within a program, one lane's store is visible to another lane
only after a barrier: the lane that stored is kept beside the number. Everything is done on whole
blocks of addresses, and a storage that is never written costs no more than a list of its loads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from twofold.core.verify.strict.order import Order

Array = np.ndarray[Any, np.dtype[Any]]

_PENDING_LANES = 1 << 22  # loads that are kept before they become marks
_FEW_SETS = 1 << 10  # new sets, up to which unused ones are not looked for
_CLASHES = {
    "load": ("store", "atomic"),
    "store": ("store", "load", "atomic"),
    "atomic": ("store", "load"),
}


class Touch(NamedTuple):
    """An access to elements of one storage.

    Attributes:
        kind: "load", "store" or "atomic".
        number: counts the launch's accesses, from 1.
        began: the number at which the running program began.
        settled: the number from which its stores are not yet followed by a barrier.
        addresses: in bytes.
        lanes: the position of each address in the block.
        size: of an element, in bytes.
    """

    kind: str
    number: int
    began: int
    settled: int
    addresses: Array
    lanes: Array
    size: int


class Clash(NamedTuple):
    """Two accesses to one element whose order the hardware does not define."""

    address: int
    earlier: int  # number of the access


class Marks:
    """Who touched the elements of a storage; the unit is the smallest element of its views."""

    def __init__(self) -> None:
        self._first, self._last, self._unit = 1 << 63, 0, 64
        self._marks: dict[str, Array] = {}
        self._sets: dict[int, Array] = {}  # accesses of programs that are not ordered
        self._made, self._most = 0, _FEW_SETS
        self._stored_by: Array | None = None
        self._pending: list[tuple[int, Array]] = []
        self._pending_lanes = 0

    def cover(self, first: int, last: int, itemsize: int) -> None:
        """Make room for the bytes of a view."""
        self._first = min(self._first, first)
        self._last = max(self._last, last)
        self._unit = min(self._unit, itemsize)

    def touch(self, new: Touch, order: Order) -> Clash | None:
        """Mark an access; return where it clashes with an earlier one."""
        at = (new.addresses - np.uint64(self._first)).view(np.int64)
        if self._unit > 1:
            at >>= self._unit.bit_length() - 1
        lanes, width = new.lanes, max(1, new.size // self._unit)
        if width > 1:
            at = (at[:, None] + np.arange(width)).ravel()
            lanes = np.repeat(lanes, width)
        if new.kind != "load":
            self.settle(order)
        for other in _CLASHES[new.kind]:
            if (marks := self._marks.get(other)) is not None:
                found = marks[at]
                if self._sets:
                    found = _each(found, lambda mark: self._unordered(mark, new.began, order))
                clashes = (found - 1).view(np.uint32) < new.began - 1  # 0 is no mark
                if order.active and clashes.any():
                    clashes &= ~order.before(found)
                if other == "store":
                    assert self._stored_by is not None
                    clashes |= (found >= new.settled) & (self._stored_by[at] != lanes)
                if clashes.any():
                    lane = int(clashes.argmax())
                    return Clash(int(new.addresses[lane // width]), int(found[lane]))
        if new.kind == "load":
            self._pending.append((new.number, at))
            self._pending_lanes += at.size
            if self._pending_lanes > _PENDING_LANES:
                self.settle(order)
        elif new.kind == "store":
            self._of("store")[at] = new.number
            if self._stored_by is None:
                self._stored_by = np.zeros(self._length(), np.int32)
            self._stored_by[at] = lanes
        else:
            self._mark("atomic", new.number, at, order)
        return None

    def settle(self, order: Order) -> None:
        """Turn the pending loads into marks."""
        for number, at in self._pending:
            self._mark("load", number, at, order)
        self._pending, self._pending_lanes = [], 0

    def _mark(self, kind: str, number: int, at: Array, order: Order) -> None:
        """Add a mark to those of other programs, dropping ones that atomics order before it."""
        marks = self._of(kind)
        found = marks[at]
        if not order.active:
            marks[at[found == 0]] = number
            return
        began = order.began(number)
        marks[at] = _each(found, lambda mark: self._with(mark, number, began, order))
        if len(self._sets) > self._most:
            held = np.unique(np.concatenate([x[x < 0] for x in self._marks.values()]))
            self._sets = {mark: self._sets[mark] for mark in held.tolist()}
            self._most = 2 * len(held) + _FEW_SETS

    def _with(self, mark: int, number: int, began: int, order: Order) -> int:
        """Return a mark extended by an access of a program whose first access is `began`."""
        others = self._sets[mark] if mark < 0 else np.array([mark] if mark else [], np.int64)
        others = others[(others < began) & ~order.before(others)]
        if not others.size:
            return number
        self._made -= 1
        self._sets[self._made] = np.append(others, number)
        return self._made

    def _unordered(self, mark: int, began: int, order: Order) -> int:
        """Return an access of a set by another program that is not ordered before now, or 0."""
        if mark >= 0:
            return mark
        clashes = self._sets[mark]
        clashes = clashes[(clashes < began) & ~order.before(clashes)]
        return int(clashes[0]) if clashes.size else 0

    def _of(self, kind: str) -> Array:
        if kind not in self._marks:
            self._marks[kind] = np.zeros(self._length(), np.int32)
        return self._marks[kind]

    def _length(self) -> int:
        return -(-(self._last - self._first) // self._unit)


def _each(marks: Array, f: Callable[[int], int]) -> Array:
    """Return a function of marks, called once for each distinct one."""
    if (marks == marks[0]).all():
        return np.full_like(marks, f(int(marks[0])))
    distinct, which = np.unique(marks, return_inverse=True)
    return np.array([f(mark) for mark in distinct.tolist()], marks.dtype)[which]
