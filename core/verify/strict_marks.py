"""Who touched which element in one launch: what shows that two programs, or two lanes, race.

Per element of a storage stands the number of the access that read, wrote or atomically updated it.
Programs run one after the other, so a number below that at which the running program began was left
by another program, and clashes unless atomics order the two (`strict_order`). Within a program, one
lane's store is seen by another lane only after a barrier: which lane stored stands beside the
number. Everything is done on whole blocks of addresses, and a
storage that is never written costs no more than a list of its loads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.core.verify.strict_order import Order

Array = np.ndarray[Any, np.dtype[Any]]

_PENDING_LANES = 1 << 22  # loads that are kept before they become marks
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
        settled: the number from which on its stores are not yet behind a barrier.
        addresses: in bytes.
        lanes: where in the block each address stands.
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
    """Two accesses to one element of which the hardware does not say which is first."""

    address: int
    earlier: int  # number of the access


class Marks:
    """Who touched the elements of a storage; the unit is the smallest element of its views."""

    def __init__(self) -> None:
        self._first, self._last, self._unit = 1 << 63, 0, 64
        self._marks: dict[str, Array] = {}
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
        """Mark the loads so far, as of what was before them."""
        for number, at in self._pending:
            self._mark("load", number, at, order)
        self._pending, self._pending_lanes = [], 0

    def _mark(self, kind: str, number: int, at: Array, order: Order) -> None:
        """Keep a mark of another program, but one that is before this access by atomics."""
        marks = self._of(kind)
        found = marks[at]
        replaced = found == 0
        if order.active:
            replaced |= order.before(found)
        marks[at[replaced]] = number

    def _of(self, kind: str) -> Array:
        if kind not in self._marks:
            self._marks[kind] = np.zeros(self._length(), np.int32)
        return self._marks[kind]

    def _length(self) -> int:
        return -(-(self._last - self._first) // self._unit)
