"""One process or several, on one machine or more: how they share the work and add it up.

`torchrun` starts the processes and says so in the environment. Each has a copy of the model and
takes its share of the parts of every batch; all they exchange in a step is one buffer, the gradient
followed by the losses and the stop flag, summed over all processes by one all-reduce.

The all-reduce is written out to fix its order of addition. A library's order depends on the number
of processes; this one, recursive halving and doubling (Thakur, Rabenseifner & Gropp 2005,
"Optimization of Collective Communication Operations in MPICH", 4.5), adds every element over a
balanced binary tree,

    ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))

which is also how one process adds its parts (`trainer.added`). So a run has the same bits on any
number of processes that divides its parts and is a power of two, and the number may change when it
is resumed. Every process sends and receives 2·(1 − 1/N) times the buffer, as in a ring, in 2·log₂N
exchanges, where a ring takes 2·(N − 1). Neighbours exchange first, when the halves are largest:
of N processes, 8 to a machine, an eighth of the bytes leaves the machine. `scaling` estimates how
far that scales, and why the exchange does not begin while the backward pass still runs.

Buffers in NumPy, or of kernels that run on the CPU, go through Gloo, a GPU's through NCCL. A
process that dies closes its connections, so over Gloo its partner notices at once; over NCCL
`torchrun` ends the others at most 30 s later. This is the only module that uses
`torch.distributed`, and it imports torch only if there are several processes, all of which must see
the run's folder.
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

# Longest that a process may keep the others waiting: the first to read its data, any to compile its
# kernels. It ends a run in which a process hangs; one that dies is noticed at once.
TIMEOUT = 600.0
LINGERING = 5.0  # seconds, well within the 30 after which torchrun kills
SIZES, PORTS = range(1, 2**31), range(2**16)
AWARE = "twofold/aware"  # key in the store: how many processes know of a loss


class Lost(RuntimeError):
    """Another process no longer answers; the step begun with it is undone."""


class Apart(ValueError):
    """The processes differ in something that must be the same."""


class Processes:
    """A process on its own, and the interface of several.

    Attributes:
        rank, size: the number of this process, counted from 0, and of how many.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, parts: int) -> range:
        """Return this process's parts of every batch, which are adjacent.

        Raises:
            ValueError: the parts cannot be divided evenly.
        """
        must = f"a multiple of {self.size}, the number of processes"
        checks.require(parts % self.size == 0, "parts", parts, must)
        each = parts // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def add(self, buffer: Any) -> None:
        """Replace a buffer (n,) of either side by its sum over all processes, in place.

        Raises:
            Lost: a process died or hangs; the buffer's content is undefined.
        """

    def count(self, n: int) -> int:
        """Return the sum of a number over all processes."""
        total = np.array([n], np.int64)
        self.add(total)
        return int(total[0])

    def told(self, text: str) -> str:
        """Return the first process's text; the others' is ignored."""
        said = np.frombuffer((text if self.first else "").encode(), np.uint8)
        buffer = np.zeros(self.count(len(said)), np.uint8)
        buffer[: len(said)] = said  # zeros in the others, so the sum is the first's text
        self.add(buffer)
        return buffer.tobytes().decode()

    def agreed(self, what: str, digest: str) -> None:
        """Check that all processes have the same digest.

        Raises:
            Apart: in all of them, if any digest differs from the first process's.
        """
        if others := self.count(digest != self.told(digest)):
            raise Apart(f"{others} of {self.size} processes have other {what} than the first one")

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        self.count(0)


ALONE = Processes()


class Several(Processes):
    """One of the processes that `torchrun` started."""

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
            _number(name, among)  # torch's own error names no variable
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
        """Close the connections.

        After a loss, that is how the others learn of it. The first process then stays until all
        know, since the store that says who was lost may live in it. NCCL's connections, if any, are
        left to the end of the process: closing them one by one would wait for the lost process.
        """
        if not self._broken or not self._on_gpu:
            self._dist.destroy_process_group()
        if self._broken and self.first:
            end = time.monotonic() + LINGERING
            with contextlib.suppress(RuntimeError):
                while self._store.add(AWARE, 0) < self.size - 1 and time.monotonic() < end:
                    time.sleep(0.01)

    def add(self, buffer: Any) -> None:
        """Sum over all processes by recursive halving and doubling, nearest neighbours first."""
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
        """Return a buffer for what is received, reusing that of the first, largest half."""
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
        """Return which process was lost first: a partner may have left because it lost its own."""
        with contextlib.suppress(RuntimeError):  # the store may have died with the lost process
            partner = int(self._store.compare_set("twofold/lost", "", str(partner)))
            self._store.add(AWARE, 1)
        return partner


@contextlib.contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[Processes]:
    """Join the processes that the environment describes, or be alone if it describes none.

    Args:
        timeout: seconds that a process waits for another.

    Raises:
        ValueError: the environment is not torchrun's, or the number of processes is not a power of
            two.
        ImportError: torch is not installed.
        Lost: not all processes join.
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
    """Return the number in an environment variable.

    Raises:
        ValueError: it is missing, not a number, or not in `among`.
    """
    text = os.environ.get(name, default)
    fits = text.isdecimal() and int(text) in among
    checks.require(fits, name, repr(text), f"a whole number from {among[0]} to {among[-1]}")
    return int(text)


def _short(fault: Exception) -> str:
    """Return the sentence of torch's message that says what happened, not where in torch."""
    return str(fault).strip().splitlines()[0].split("] ", 1)[-1].split(". ")[0][:200]
