"""A machine that runs a warp-specialised kernel with NumPy, in a random order.

Triton's interpreter does not support Gluon. Here the kernel's own source runs: its functions get
other globals, in which shared memory is an array, a barrier counts arrivals and bytes, and every
group of warps is a thread. One thread runs at a time; at each operation that others can observe, a
random generator picks the next. What the hardware does on its own may happen as late as allowed:

- a copy into shared memory fills its place with NaN when issued, and arrives some time later;
- a copy out of shared memory reads some time later, at the latest when it is waited for;
- a matrix product reads its operands at the latest when it is waited for.

So whatever is read before it has arrived, or overwritten before it has been read, shows as NaN or
as a wrong number in the output, and a wait that nothing will end is reported as a deadlock.
"""

from __future__ import annotations

import math
import random
import threading
import types
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton
import triton.language as tl


class Tensor(np.ndarray):
    """An array with what the kernel uses of a tensor besides arithmetic."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype):
        return self

    def __iadd__(self, other):
        return self + other  # a kernel's tensors are values: other references keep the old one


def tensor(x) -> Tensor:
    return np.asarray(x, np.float64).view(Tensor)


class Barrier:
    """An mbarrier: a phase ends when all have arrived, and with them all announced bytes."""

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
    """A place in shared memory; views of it see later writes."""

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
    """Addresses of elements in an array, as indices."""

    def __init__(self, array: np.ndarray, at: Any = 0) -> None:
        self.array, self.at = array, at

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.array, self.at + offset)


class Descriptor:
    """A tensor map: blocks of an array, zero where read past its ends, not written there."""

    dtype = "float64"
    layout = None

    def __init__(self, array: np.ndarray, block: Sequence[int]) -> None:
        self.array = array
        self.block_type = SimpleNamespace(shape=list(block), nbytes=8 * math.prod(block))

    def place(self, at: Sequence[int]) -> tuple[Any, Any]:
        """Return where a block lies in the array, and which part of the block lies in it."""
        block = self.block_type.shape
        assert len(at) == len(block) and all(i >= 0 for i in at)
        sizes = zip(at, block, self.array.shape, strict=True)
        there = [max(min(n, size - i), 0) for i, n, size in sizes]
        lies = tuple(slice(i, i + n) for i, n in zip(at, there, strict=True))
        return lies, tuple(slice(0, n) for n in there)


class Product:
    """The future result of a product under way, which cannot be used before."""

    def __init__(self, product: Callable[[], Tensor]) -> None:
        self.product = product
        self.value: Tensor | None = None


class Stuck(AssertionError):
    """A deadlock: a thread waits for what will never happen."""


class Machine:
    """A multiprocessor that runs one program at a time."""

    def __init__(self, kernel: Any, entry: str, seed: int, **constants: Any) -> None:
        """Take a module's kernel by name, with some of the module's constants replaced."""
        self.random = random.Random(seed)
        self.events: list[Callable[[], None]] = []  # what the hardware still has to do
        self.own = threading.local()
        self.main = threading.Semaphore(0)
        env = {n: x.value if isinstance(x, tl.constexpr) else x for n, x in vars(kernel).items()}
        env |= constants
        env |= dict(
            gl=self._language(), mbarrier=self._barriers(), tma=self._copies(),
            load_tile=self.load, store_tile=self.save, fence_async_shared=lambda: None,
            warpgroup_mma=self.multiply, warpgroup_mma_wait=self.multiplied, range=range,
        )  # fmt: skip
        for name, x in vars(kernel).items():
            if isinstance(x, triton.runtime.JITFunction):
                env[name] = types.FunctionType(x.fn.__code__, env, name, x.fn.__defaults__)
        self.kernel = env[entry]

    def run(self, programs: int, *args: Any, **constants: Any) -> None:
        """Run this many programs, one after the other."""
        self.programs = programs
        for self.program in range(programs):
            self.kernel(*args, **constants)
            assert not self.events, "ends while copies are under way"

    # Threads

    def specialize(self, parts: list[Any], warps: list[int], registers: list[int]) -> None:
        """Run each part's function, and the hardware, until all are done."""
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
        """Let others run until this thread is ready."""
        worker = self.own.worker
        worker.ready = ready
        self.main.release()
        worker.go.acquire()

    # What the kernel calls

    def load(self, desc: Descriptor, at: list[int], barrier: Barrier, to: Shared) -> None:
        to.array[...] = np.nan

        def arrives() -> None:
            lies, there = desc.place(at)
            to.array[...] = 0.0
            to.array[there] = desc.array[lies]
            barrier.bytes -= desc.block_type.nbytes
            barrier.turn()

        self.events.append(arrives)
        self.pause()

    def save(self, desc: Descriptor, at: list[int], of: Shared) -> None:
        stores = self.own.stores

        def leaves() -> None:
            lies, there = desc.place(at)
            desc.array[lies] = of.array[there]
            stores.remove(leaves)

        stores.append(leaves)
        self.events.append(leaves)
        self.pause()

    def multiply(self, a: Any, b: Shared, acc: Any, *, use_acc: bool = True, is_async: bool) -> Any:
        def product() -> Tensor:
            left = a.array if isinstance(a, Shared) else a
            before = acc.value if isinstance(acc, Product) else acc
            return tensor(left @ b.array + (before if use_acc else 0.0))

        assert is_async
        self.own.products.append(Product(product))
        return self.own.products[-1]

    def multiplied(self, outstanding: int, deps: list[Any]) -> Any:
        self.pause()
        while len(self.own.products) > outstanding:
            done = self.own.products.pop(0)
            done.value = done.product()
        found = [x.value if isinstance(x, Product) and x.value is not None else x for x in deps]
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

        def arrive(barrier: Barrier, pred: bool = True) -> None:
            if pred:
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

        def load(pointer: Pointer, mask: Tensor, other: float) -> Tensor:
            return tensor(np.where(mask, pointer.array[np.where(mask, pointer.at, 0)], other))

        def layout(*args: Any) -> None:
            return None

        return SimpleNamespace(
            allocate_shared_memory=allocate, store=store, load=load,
            warp_specialize=self.specialize, SliceLayout=layout, NVMMADistributedLayout=layout,
            DotOperandLayout=layout,
            int64=None, float32=None, constexpr=lambda x: x, static_range=range,
            cast=lambda x, dtype: x, convert_layout=lambda x, layout: x,
            program_id=lambda axis: self.program, num_programs=lambda axis: self.programs,
            cdiv=lambda a, b: -(-a // b), minimum=np.minimum, maximum=np.maximum,
            where=lambda *args: tensor(np.where(*args)), exp2=np.exp2, log2=np.log2,
            max=lambda x, axis: x.max(axis), sum=lambda x, axis: x.sum(axis),
            erf=np.vectorize(math.erf), reshape=np.reshape, permute=np.transpose,
            split=lambda x: (x[..., 0], x[..., 1]), expand_dims=np.expand_dims,
            zeros_like=np.zeros_like,
            zeros=lambda shape, *_: tensor(np.zeros(shape)),
            full=lambda shape, value, *_: tensor(np.full(shape, value)),
            arange=lambda a, b, layout: np.arange(a, b).view(Tensor),
        )  # fmt: skip
