"""What waits for nobody: functions replayed as CUDA graphs, copies that go on by themselves.

A captured CUDA graph repeats its launches with the arguments they had: the host, which is slower at
launching small kernels than a GPU is at running them, launches once. So everything that is to
differ the next time must lie in memory that is written in between, and nothing may wait for the
host, or ask it for memory, on the way.

All graphs take what they need beside that from one pool, in which each has as much as it uses at a
time, at addresses that were planned when it was captured: the arena of the activations. torch's
documentation ("CUDA semantics: Sharing memory across captures", with pytorch#166975) has graphs
share a pool in whatever order they are replayed, if they never run at the same time and none reads
what another left there. They run on one stream, and leave everything in buffers outside.

Without CUDA a function is simply called. This is the only module that knows torch's graphs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]

ALIGNED = 16  # bytes, from one buffer to the next: what compiled kernels are told of pointers
# Runs before a function is captured: kernels are compiled, and modules loaded, which capturing
# forbids, and what is not run again is not captured.
EAGER = 1


class Captured:
    """A function of no arguments that returns nothing, replayed from its third call on.

    The first calls run it, the next one captures and replays it; each does once what it does. An
    error while it is captured is raised, and there is no graph.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function, self.runs = function, 0
        self.graph: Any = None

    def __call__(self) -> None:
        """Do what the function does, with what now lies in the buffers it reads."""
        if self.graph is None and self.runs < EAGER:
            self.function()
            self.runs += 1  # one that fails has not compiled all
            return
        if self.graph is None:
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            # Other threads may do what this one may not: NCCL's watches over its connections.
            how = torch.cuda.graph(graph, pool=pool(), capture_error_mode="thread_local")
            try:
                with nothing_collected(), how:
                    self.function()
            finally:
                torch.cuda.set_stream(stream)  # which a capture that cannot be ended leaves
            self.graph = graph
        self.graph.replay()


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """Collect no garbage: a graph among it must not be destroyed while another is captured."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@functools.cache
def pool() -> Any:
    """Return the memory that all graphs share."""
    return torch.cuda.graph_pool_handle()


def capturing(device: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Return what makes a function one that is captured, on a device that has graphs."""
    return Captured if device == "cuda" else lambda function: function


class Buffers:
    """Arrays that lie in one memory, so that one copy writes all of them.

    Attributes:
        arrays: tensors of the shapes and dtypes of those they were made for.
    """

    def __init__(self, like: Sequence[Array], device: str) -> None:
        self._at, end = [], 0
        for x in like:
            start = -(-end // ALIGNED) * ALIGNED
            end = start + x.nbytes
            self._at.append((slice(start, end), x.dtype, x.shape))
        with torch.inference_mode(False):  # else they could be written in that mode alone
            self._memory = torch.empty(end, dtype=torch.uint8, device=device)
        self.arrays = [
            self._memory[at].view(getattr(torch, dtype.name)).view(shape)
            for at, dtype, shape in self._at
        ]

    def write(self, arrays: Sequence[Array]) -> None:
        """Copy arrays of those shapes into them, without waiting.

        What is copied to a GPU goes through pinned memory, which torch does not use again before
        the copy is done, so the arrays may be changed at once.
        """
        host = torch.empty_like(self._memory, device="cpu", pin_memory=self._memory.is_cuda)
        places = host.numpy()
        for (at, dtype, shape), x in zip(self._at, arrays, strict=True):
            places[at].view(dtype).reshape(shape)[...] = x
        self._memory.copy_(host, non_blocking=True)


def known(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a dtype that NumPy has: others as float32, which holds them exactly."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float8_e4m3fn) else x


def read(x: torch.Tensor) -> Callable[[], Array]:
    """Begin to bring back an array as it is now, in a dtype that is `known`; the result waits."""
    x = known(x)
    if not x.is_cuda:
        now = x.clone().numpy()
        return lambda: now
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> Array:
        copied.synchronize()
        return host.numpy()

    return wait
