"""One process or several, on one machine or more: who works on what, and how results are summed.

`torchrun` starts the processes and sets their environment. Each has a copy of the model and its
share of the parts of every batch; all they exchange in a step is one buffer, the gradient with the
losses and a request to stop at its end, summed by one all-reduce.

The all-reduce is written out for the sake of its order of addition. A library's order depends on
the number of processes; this one, recursive halving and doubling (Thakur, Rabenseifner &
Gropp 2005, "Optimization of Collective Communication Operations in MPICH", 4.5), adds every element
over a balanced binary tree,

    ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))

which is also how one process adds its parts (`trainer.added`). So a run has the same bits on any
number of processes that divides its parts and is a power of two, and may change it when it is
resumed. Every process sends and receives 2·(1 − 1/N) times the buffer, as in a ring, in 2·log₂N
exchanges, where a ring takes 2·(N − 1). Neighbours come first, and with them the largest halves:
of N processes, 8 to a machine, an eighth of the bytes leaves the machine. How far that scales, and
why the exchange is not begun while the backward pass still runs, is counted in `scaling`.

NumPy's buffers, and those of kernels that run on the CPU, go through Gloo, a GPU's through NCCL. A
process that dies closes its connections, so that over Gloo its partner notices at once; over NCCL
`torchrun` ends the others, at most 30 s later. This is the only module that uses
`torch.distributed`, and it imports torch only if there are several processes. All of them must be
able to see the run's folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np

from twofold.reference import checks

# As long as anyone may have the others wait: the first for its data, all for their kernels to be
# compiled. It ends a run whose process hangs; one that dies is noticed at once.
TIMEOUT = 600.0
LINGERING = 5.0  # seconds, well inside the 30 after which torchrun kills
SIZES, PORTS = range(1, 2**31), range(2**16)
AWARE = "twofold/aware"  # how many know of a loss, in the store


class Lost(RuntimeError):
    """Another process no longer answers; what was begun with it is undone."""


class Apart(ValueError):
    """The processes do not have the same, where they must."""


class Processes:
    """One process alone, and what several have in common with it.

    Attributes:
        rank, size: which one this is, counted from 0, and of how many.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether it is this one that writes files and shows how it goes."""
        return self.rank == 0

    def share(self, parts: int) -> range:
        """Return the parts of every batch that fall to this process: neighbours.

        Raises:
            ValueError: they cannot be dealt out evenly.
        """
        must = f"a multiple of {self.size}, the number of processes"
        checks.require(parts % self.size == 0, "parts", parts, must)
        each = parts // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def add(self, buffer: Any) -> None:
        """Replace a buffer (n,), of either side, by its sum over all processes, in place.

        Raises:
            Lost: a process died or hangs; the buffer's content is undefined.
        """

    def count(self, n: int) -> int:
        """Return the sum of a number over all processes."""
        total = np.array([n], np.int64)
        self.add(total)
        return int(total[0])

    def told(self, text: str) -> str:
        """Return the text of the first process; what the others have is passed over."""
        said = np.frombuffer((text if self.first else "").encode(), np.uint8)
        buffer = np.zeros(self.count(len(said)), np.uint8)
        buffer[: len(said)] = said  # and zeros elsewhere: the sum is what the first one says
        self.add(buffer)
        return buffer.tobytes().decode()

    def agreed(self, what: str, digest: str) -> None:
        """Make sure that all processes have the same.

        Raises:
            Apart: in all of them, if one has another digest than the first.
        """
        if others := self.count(digest != self.told(digest)):
            raise Apart(f"{others} of {self.size} processes have other {what} than the first one")

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.count(0)


ALONE = Processes()


class Several(Processes):
    """One process among those that `torchrun` started."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise ValueError(
                    f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is missing: start "
                    "several processes with torchrun"
                )
        size = _number("WORLD_SIZE", SIZES)
        local = _number("LOCAL_RANK", range(size), "0")
        for name, among in (("RANK", range(size)), ("MASTER_PORT", PORTS)):
            _number(name, among)  # torch names none
        checks.require(size & (size - 1) == 0, "the number of processes", size, "a power of two")
        try:
            import torch
            import torch.distributed as dist
            from torch.distributed.rendezvous import rendezvous
        except ImportError as missing:
            raise ImportError("several processes need torch: pip install 'twofold[triton]'") from (
                missing
            )
        self._torch, self._dist = torch, dist
        backend = "gloo"
        if dist.is_nccl_available() and local < torch.cuda.device_count():
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        self._backend, self._broken, self._on_gpu = backend, False, False
        self._scratch: dict[Any, Any] = {}
        limit = timedelta(seconds=timeout)
        try:
            self._store, self.rank, self.size = next(rendezvous("env://", timeout=limit))
            dist.init_process_group(
                backend, store=self._store, rank=self.rank, world_size=self.size, timeout=limit
            )
        except RuntimeError as fault:
            raise Lost(f"not all of {size} processes came: {_short(fault)}") from fault

    def leave(self) -> None:
        """End the connections.

        After a loss that is how the news spreads. The first process then stays until all have it,
        since the store that says who was lost may live in it. NCCL's, where there are any, are left
        to the process's end: to end them one by one would wait for the lost one.
        """
        if not self._broken or not self._on_gpu:
            self._dist.destroy_process_group()
        if self._broken and self.first:
            end = time.monotonic() + LINGERING
            with contextlib.suppress(RuntimeError):
                while self._store.add(AWARE, 0) < self.size - 1 and time.monotonic() < end:
                    time.sleep(0.01)

    def add(self, buffer: Any) -> None:
        """Add over all processes by recursive halving and doubling, nearest neighbours first."""
        x = self._torch.from_numpy(buffer) if isinstance(buffer, np.ndarray) else buffer
        if x.is_cuda and self._backend == "gloo":
            raise ValueError(f"process {self.rank} has no GPU of its own; start one for each GPU")
        self._on_gpu |= x.is_cuda
        start, stop, taken = 0, x.numel(), []
        for bit in range((self.size - 1).bit_length()):
            middle = (start + stop) // 2
            kept, given = x[start:middle], x[middle:stop]
            if self.rank >> bit & 1:
                kept, given = given, kept
                start = middle
            else:
                stop = middle
            partner = self.rank ^ 1 << bit
            received = self._received(kept)
            self._exchange(partner, given, received)
            kept += received
            taken.append((partner, kept, given))
        for partner, kept, given in reversed(taken):
            self._exchange(partner, kept, given)

    def _received(self, like: Any) -> Any:
        """Return room for what is received: the first, largest half's is used again."""
        key = (like.dtype, like.device)
        if key not in self._scratch or self._scratch[key].numel() < like.numel():
            self._scratch[key] = self._torch.empty_like(like)
        return self._scratch[key][: like.numel()]

    def _exchange(self, partner: int, sent: Any, received: Any) -> None:
        both = ((self._dist.isend, sent), (self._dist.irecv, received))
        ops = [self._dist.P2POp(how, x, partner) for how, x in both if x.numel() > 0]
        if not ops:
            return
        try:
            for work in self._dist.batch_isend_irecv(ops):
                work.wait()
        except RuntimeError as fault:
            self._broken = True
            raise Lost(
                f"process {self._first_lost(partner)} of {self.size}, counted from 0, no longer "
                f"answers: it was killed, failed or hangs ({_short(fault)})"
            ) from fault

    def _first_lost(self, partner: int) -> int:
        """Return who was lost first: a partner may have left because it lost its own."""
        with contextlib.suppress(RuntimeError):  # the store may have died with the lost one
            partner = int(self._store.compare_set("twofold/lost", "", str(partner)))
            self._store.add(AWARE, 1)
        return partner


@contextlib.contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[Processes]:
    """Be one of the processes that the environment speaks of, or alone where it speaks of none.

    Args:
        timeout: seconds that a process waits for another.

    Raises:
        ValueError: the environment is not torchrun's, or the number no power of two.
        ImportError: torch is not installed.
        Lost: they do not all come.
    """
    if _number("WORLD_SIZE", SIZES, "1") == 1:
        yield ALONE
        return
    several = Several(timeout)
    try:
        yield several
    finally:
        several.leave()


def _number(name: str, among: range, default: str = "") -> int:
    """Return the number that the environment has by this name.

    Raises:
        ValueError: it has none, or one that is not among those.
    """
    text = os.environ.get(name, default)
    fits = text.isdecimal() and int(text) in among
    checks.require(fits, name, repr(text), f"a whole number from {among[0]} to {among[-1]}")
    return int(text)


def _short(fault: Exception) -> str:
    """Return the sentence of torch's message that says what happened, without where in torch."""
    return str(fault).strip().splitlines()[0].split("] ", 1)[-1].split(". ")[0][:200]
