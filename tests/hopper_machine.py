"""A machine that runs the warp-specialised kernel of attention with NumPy, in any order it likes.

Triton's interpreter knows no Gluon. Here the source of the kernel itself runs: its functions get
other globals, in which shared memory is an array, a barrier counts arrivals and bytes, and every
group of warps is a thread. One thread runs at a time; at each operation that others can notice a
random generator says who goes on. What the hardware does on its own happens as late as it may:

- a copy into shared memory makes its place NaN when it is issued, and arrives some time later;
- a copy out of shared memory reads some time later, at last when it is waited for;
- a matrix product reads its operands when it is waited for, at last.

So whatever is read before it has come, or overwritten before it has been read, ends as NaN or as a
wrong number in the output, and who waits for what nobody will do is found waiting.
"""

from __future__ import annotations

import math
import random
import threading
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

FUNCTIONS = (
    "blocks_seen", "wait_full", "bring", "produce", "weigh", "masked", "consume", "place",
    "place_together", "place_in_pairs", "forward_kernel",
)  # fmt: skip


class Tensor(np.ndarray):
    """An array that has what the kernel asks of a tensor beside arithmetic."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype):
        return self


def tensor(x) -> Tensor:
    return np.asarray(x, np.float64).view(Tensor)


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes they announced are there."""

    def init(self, count: int) -> None:
        self.count = self.missing = count
        self.bytes = self.phase = 0

    def arrive(self, count: int = 1) -> None:
        assert self.missing >= count, "more arrivals than the barrier counts"
        self.missing -= count
        self.turn()

    def turn(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.missing = self.count
            self.phase += 1


class Barriers:
    def __init__(self, count: int) -> None:
        self.all = [Barrier() for _ in range(count)]

    def index(self, i: int) -> Barrier:
        assert 0 <= i < len(self.all)
        return self.all[i]


class Shared:
    """A place in shared memory; views of it see what is written later."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def index(self, i: int) -> Shared:
        assert 0 <= i < len(self.array)
        return Shared(self.array[i])

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.array.reshape(shape, copy=False))

    def permute(self, order: list[int]) -> Shared:
        return Shared(self.array.transpose(order))

    def store(self, value: np.ndarray) -> None:
        self.array[...] = value


class Pointer:
    """Where numbers are stored in an array, by their numbers in it."""

    def __init__(self, array: np.ndarray, at: Any = 0) -> None:
        self.array, self.at = array, at

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.array, self.at + offset)


class Descriptor:
    """A tensor map: blocks of rows of (B, H, L, D), zero behind the end and not written there."""

    dtype = "float64"
    layout = None

    def __init__(self, array: np.ndarray, rows: int) -> None:
        self.array = array
        shape = [1, 1, rows, array.shape[-1]]
        self.block_type = SimpleNamespace(shape=shape, nbytes=8 * rows * array.shape[-1])

    def place(self, at: list[int]) -> tuple[Any, int]:
        b, h, row, feature = at
        assert 0 <= b < self.array.shape[0] and 0 <= h < self.array.shape[1] and feature == 0
        assert row >= 0
        rows = min(max(self.array.shape[2] - row, 0), self.block_type.shape[2])
        return (b, h, slice(row, row + rows)), rows


class Stuck(AssertionError):
    """Somebody waits for what nobody will do."""


class Machine:
    """A multiprocessor, of one program at a time."""

    def __init__(self, kernel: Any, rows: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.events: list[Callable[[], None]] = []  # what the hardware still has to do
        self.own = threading.local()
        self.main = threading.Semaphore(0)
        env = dict(vars(kernel))
        env |= dict(
            gl=self._language(), mbarrier=self._barriers(), ROWS=rows, LN_2=math.log(2.0),
            tma=self._copies(),
            load_tile=self.load, store_tile=self.save, fence_async_shared=lambda: None,
            warpgroup_mma=self.multiply, warpgroup_mma_wait=self.multiplied, range=range,
        )  # fmt: skip
        for name in FUNCTIONS:
            fn = getattr(kernel, name).fn
            env[name] = types.FunctionType(fn.__code__, env, name, fn.__defaults__)
        self.kernel = env["forward_kernel"]

    def run(self, programs: int, *args: Any, **constants: Any) -> None:
        """Run so many programs, one after the other."""
        self.programs = programs
        for self.program in range(programs):
            self.kernel(*args, **constants)
            assert not self.events, "ends while copies are under way"

    # Threads

    def specialize(self, parts: list[Any], warps: list[int], registers: list[int]) -> None:
        """Run a function of each part, and the hardware, until all are done."""
        assert len(parts) == len(warps) + 1 == len(registers) + 1
        workers = [SimpleNamespace(go=threading.Semaphore(0), ready=lambda: True) for _ in parts]
        failures: list[BaseException] = []

        def work(worker: Any, function: Any, args: Any) -> None:
            self.own.worker, self.own.products, self.own.stores = worker, [], []
            worker.go.acquire()
            try:
                if not failures:
                    function(*args)
                    assert not self.own.products, "ends while products are under way"
            except BaseException as failure:
                failures.append(failure)
            worker.ready = None
            self.main.release()

        threads = [
            threading.Thread(target=work, args=(worker, *part), daemon=True)
            for worker, part in zip(workers, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        while any(worker.ready for worker in workers) and not failures:
            able = [worker for worker in workers if worker.ready and worker.ready()]
            if not able and not self.events:
                failures.append(Stuck(f"{sum(w.ready is not None for w in workers)} wait"))
                break
            chosen = self.random.randrange(len(able) + len(self.events))
            if chosen < len(able):
                able[chosen].go.release()
                self.main.acquire()
            else:
                self.events.pop(chosen - len(able))()
        while self.events and not failures:
            self.events.pop()()
        if failures:
            raise failures[0]

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others go first, until this is so."""
        worker = self.own.worker
        worker.ready = ready
        self.main.release()
        worker.go.acquire()

    # What the kernel calls

    def load(self, desc: Descriptor, at: list[int], barrier: Barrier, to: Shared) -> None:
        to.array[...] = np.nan

        def arrives() -> None:
            place, rows = desc.place(at)
            to.array[...] = 0.0
            to.array[0, 0, :rows] = desc.array[place]
            barrier.bytes -= desc.block_type.nbytes
            barrier.turn()

        self.events.append(arrives)
        self.pause()

    def save(self, desc: Descriptor, at: list[int], of: Shared) -> None:
        stores = self.own.stores

        def leaves() -> None:
            place, rows = desc.place(at)
            desc.array[place] = of.array[0, 0, :rows]
            stores.remove(leaves)

        stores.append(leaves)
        self.events.append(leaves)
        self.pause()

    def multiply(self, a: Any, b: Shared, acc: Any, *, use_acc: bool = True, is_async: bool) -> Any:
        def product() -> Tensor:
            left = a.array if isinstance(a, Shared) else a
            return tensor(left @ b.array + (acc if use_acc else 0.0))

        assert is_async
        self.own.products.append(SimpleNamespace(product=product, value=None))
        return self.own.products[-1]

    def multiplied(self, outstanding: int, deps: list[Any]) -> Any:
        self.pause()
        while len(self.own.products) > outstanding:
            done = self.own.products.pop(0)
            done.value = done.product()
        found = [x.value if isinstance(x, SimpleNamespace) else x for x in deps]
        assert all(x is not None for x in found), "is not waited for"
        return found[0] if len(found) == 1 else tuple(found)

    def _copies(self) -> Any:
        def store_wait(pending: int) -> None:
            stores = self.own.stores
            self.pause(lambda: len(stores) <= pending)

        return SimpleNamespace(store_wait=store_wait)

    def _barriers(self) -> Any:
        def wait(barrier: Barrier, parity: int, pred: bool = True) -> None:
            if pred:
                self.pause(lambda: barrier.phase & 1 != parity)

        def expect(barrier: Barrier, count: int) -> None:
            barrier.bytes += count
            barrier.arrive()

        def arrive(barrier: Barrier) -> None:
            barrier.arrive()
            self.pause()

        return SimpleNamespace(
            wait=wait, expect=expect, arrive=arrive, MBarrierLayout=lambda: "barriers",
            init=lambda barrier, count: barrier.init(count),
        )  # fmt: skip

    def _language(self) -> Any:
        def allocate(dtype: Any, shape: list[int], layout: Any) -> Any:
            return Barriers(shape[0]) if layout == "barriers" else Shared(np.full(shape, np.nan))

        def store(pointer: Pointer, value: Tensor, mask: Tensor) -> None:
            pointer.array[np.asarray(pointer.at)[mask]] = value[mask]

        def layout(*args: Any) -> None:
            return None

        return SimpleNamespace(
            allocate_shared_memory=allocate, store=store, warp_specialize=self.specialize,
            SliceLayout=layout, NVMMADistributedLayout=layout, DotOperandLayout=layout,
            int64=None, float32=None, constexpr=lambda x: x, static_range=range,
            cast=lambda x, dtype: x, convert_layout=lambda x, layout: x,
            program_id=lambda axis: self.program, num_programs=lambda axis: self.programs,
            cdiv=lambda a, b: -(-a // b), minimum=np.minimum, maximum=np.maximum,
            where=lambda *args: tensor(np.where(*args)), exp2=np.exp2, log2=np.log2,
            max=lambda x, axis: x.max(axis), sum=lambda x, axis: x.sum(axis),
            expand_dims=np.expand_dims, zeros_like=np.zeros_like,
            zeros=lambda shape, *_: tensor(np.zeros(shape)),
            full=lambda shape, value, *_: tensor(np.full(shape, value)),
            arange=lambda a, b, layout: np.arange(a, b).view(Tensor),
        )  # fmt: skip
