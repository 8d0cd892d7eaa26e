"""The order that atomics make: which accesses of others the running program may rely on.

An atomic of one lane that releases publishes, at its address, what its program has done until its
last barrier, and what it could rely on itself; one that acquires takes over what is published there
(vector clocks: Flanagan & Freund 2009, "FastTrack", figure 2, whose epochs are numbers of accesses
here), but not before its program looks at what it found: a program that does not look cannot know
that others are done. Atomics of a block order nothing, each of their lanes being another thread;
nor do those with the scope of a CTA, and a compare-and-swap that fails publishes nothing.

Programs run one after the other in some order, so only that order is judged: another seed draws
another. In it everything that a program waits for is already done, so a program that looks and goes
on regardless cannot be told from one that waits, except at locks: once an exchange changes a value
that the same program then puts back, later exchanges are sometimes told that an imaginary program
holds the lock. A program that does not try again is not ordered after it, and must not release a
lock that it does not hold.
"""

from __future__ import annotations

import bisect
import random
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Clock = dict[int, int]  # by program: up to which of its accesses

MOST_SPINS = 1 << 16  # times that a program may look at a value that does not change


class Order:
    """Which accesses of one launch are ordered before what the running program does next.

    Attributes:
        active: whether any atomic has published anything.
    """

    def __init__(self, seed: int) -> None:
        self.active = False
        self._began: list[int] = []  # number of every program's first access
        self._visible: Clock = {}
        self._limits: Array | None = None  # the same, as an array over all programs
        self._published: dict[int, Clock] = {}
        self._unsettled: list[tuple[int, int]] = []
        self._taken: dict[int, bytes] = {}  # by the running program: the value before
        self._locks: dict[int, bytes] = {}  # the value when the lock is free
        self._denied: set[int] = set()  # locks refused to the program since it last acquired
        self._drawn = random.Random(seed)
        self._spins, self._spun = 0, 0

    def begin(self, number: int) -> None:
        """Note that a program begins to run, whose first access has this number."""
        self._began.append(number)
        self._visible, self._limits, self._taken, self._spins = {}, None, {}, 0
        self._denied = set()

    def began(self, number: int) -> int:
        """Return the number of the first access of the program that made this one."""
        return self._began[bisect.bisect_right(self._began, number) - 1]

    def held(self, address: int) -> bool:
        """Return whether the running program is to find this lock held by another, at random."""
        free = address in self._locks and address not in self._taken
        found = free and self._drawn.random() < 0.5
        if found:
            self._denied.add(address)
        return found

    def denied(self, address: int, after: bytes) -> bool:
        """Return whether writing this value would release a lock that the program was denied."""
        return address in self._denied and self._locks[address] == after

    def published(self, address: int) -> Clock:
        """Return what a program may rely on once it looks at what an atomic finds here now."""
        return self._published.get(address, {})

    def acquire(self, published: Clock) -> None:
        """Rely on what was published."""
        self._visible, self._limits = _joined(self._visible, published), None
        self._denied = set()  # their holders may now be known to be done

    def release(self, address: int, settled: int, number: int) -> None:
        """Publish what is done: all before access `settled`; from there to `number` is loose."""
        self.active = True
        own = {len(self._began) - 1: number if settled == number else settled - 1}
        known = _joined(self.published(address), self._visible)
        self._published[address] = _joined(known, own)
        if settled < number:
            self._unsettled.append((settled, number))

    def exchanged(self, address: int, before: bytes, after: bytes) -> None:
        """Note what an exchange, or a compare-and-swap, made of a value."""
        if before == after:
            return
        if self._taken.get(address) == after:
            self._locks[address] = after
            del self._taken[address]
        else:
            self._taken.setdefault(address, before)

    def spins(self, address: int, changed: bool) -> bool:
        """Count how often a value was looked at in vain; return whether that seems endless."""
        self._spins = 0 if changed or address != self._spun else self._spins + 1
        self._spun = address
        return self._spins > MOST_SPINS

    def before(self, numbers: Array) -> Array:
        """Return which of these accesses of other programs are ordered before what comes next."""
        if not self._visible:
            return np.zeros(numbers.shape, bool)
        if self._limits is None:
            self._limits = np.zeros(len(self._began) + 1, np.int64)
            self._limits[list(self._visible)] = list(self._visible.values())
        of = np.searchsorted(self._began, numbers, side="right") - 1
        return np.asarray(numbers <= self._limits[of])

    def loose(self, number: int) -> bool:
        """Return whether an atomic released after this access with no barrier between them."""
        return any(start <= number < end for start, end in self._unsettled)


def _joined(one: Clock, other: Clock) -> Clock:
    """Return the later of two clocks, program by program."""
    joined = dict(one)
    for program, number in other.items():
        joined[program] = max(number, joined.get(program, 0))
    return joined
