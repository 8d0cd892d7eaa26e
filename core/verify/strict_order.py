"""The order that atomics make: what the running program may rely on that others have done.

An atomic of one lane that releases publishes, at its address, what its program has done until its
last barrier, and what that could rely on; one that acquires takes up what is published there
(vector clocks: Flanagan & Freund 2009, "FastTrack", figure 2, whose epochs are numbers of accesses
here). Programs run one after the other in some order, so only that order is judged: another seed
draws another. Atomics of a block order nothing: each of their lanes is another thread.

A lock is where `atomic_cas` changes a number that the same program then puts back. There one runs
after the other even without waiting, so once in every program that takes it, it is said to be held
by another: who does not try again is not behind it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MOST_SPINS = 1 << 16  # atomics of a program, one after the other, that change nothing
NOBODY = np.zeros(0, np.int64)


class Order:
    """Which accesses of one launch are before what the running program does next."""

    def __init__(self) -> None:
        self.active = False  # whether any atomic has published anything
        self._began: list[int] = []  # number of every program's first access
        self._visible = NOBODY  # by program: up to which access
        self._published: dict[int, Array] = {}
        self._unsettled: list[tuple[int, int]] = []
        self._taken: dict[int, bytes] = {}  # by the running program: what the number was
        self._locks: set[int] = set()
        self._waited: set[int] = set()
        self._spins = 0

    def begin(self, number: int) -> None:
        """Let a program run, whose first access has this number."""
        self._began.append(number)
        self._visible, self._taken, self._waited, self._spins = NOBODY, {}, set(), 0

    def held(self, address: int) -> bool:
        """Return whether the running program is to find this lock held by another."""
        first = address in self._locks and address not in self._waited
        self._waited.add(address)
        return first

    def acquire(self, address: int) -> None:
        """Take up what is published at an address."""
        if (published := self._published.get(address)) is not None:
            self._visible = _joined(self._visible, published)

    def release(self, address: int, settled: int, number: int) -> None:
        """Publish what is done: all before access `settled`; from there to `number` is loose."""
        self.active = True
        own = np.zeros(len(self._began), np.int64)
        own[-1] = settled - 1
        known = _joined(self._published.get(address, NOBODY), self._visible)
        self._published[address] = _joined(known, own)
        if settled < number:
            self._unsettled.append((settled, number))

    def changed(self, address: int, before: bytes, after: bytes, by_cas: bool) -> bool:
        """Take note of what an atomic made of a number; return whether waiting has no end."""
        self._spins = self._spins + 1 if before == after else 0
        if by_cas and before != after:
            self._taken.setdefault(address, before)
        elif self._taken.get(address) == after:
            self._locks.add(address)
        return self._spins > MOST_SPINS

    def before(self, numbers: Array) -> Array:
        """Return which of these accesses of other programs are before what comes next."""
        if not self._visible.size:
            return np.zeros(numbers.shape, bool)
        of = np.searchsorted(self._began, numbers, side="right") - 1
        visible = np.append(self._visible, 0)  # what began later is not
        return np.asarray(numbers <= visible[np.clip(of, 0, self._visible.size)])

    def loose(self, number: int) -> bool:
        """Return whether an atomic followed this access with no barrier between them."""
        return any(start <= number < end for start, end in self._unsettled)


def _joined(one: Array, other: Array) -> Array:
    """Return the later of two, program by program."""
    if one.size < other.size:
        one, other = other, one
    joined = one.copy()
    np.maximum(joined[: other.size], other, out=joined[: other.size])
    return joined
