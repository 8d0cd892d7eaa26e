"""Functions replayed as CUDA graphs, and asynchronous copies to and from the host.

A captured CUDA graph repeats its launches with the same arguments: the host, which is slower at
launching small kernels than a GPU is at running them, launches once. So everything that is to
differ the next time must lie in memory that is written in between, and nothing may wait for the
host, or allocate memory, along the way.

All graphs take their other memory from one pool, which holds the activations: each has as much as
it uses at a time, at addresses fixed when it was captured. According to torch's
documentation ("CUDA semantics: Sharing memory across captures", with pytorch#166975), graphs may
share a pool, in whatever order they are replayed, if they never run at the same time and none reads
what another left there. Ours run on one stream, and leave all results in buffers outside the pool.

Without CUDA a function is simply called. This is the only module that uses torch's graphs.
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

ALIGNED = 16  # bytes: every buffer starts on a multiple, as kernels are compiled for
# Calls that run a function before it is captured: they compile kernels and load modules, which
# capture forbids; and a function that is not called again is never captured.
EAGER = 1


class Captured:
    """A function of no arguments that returns nothing, replayed as a graph from its second call on.

    The first call runs it (`EAGER` says how many do); the next captures and replays it. Every call
    has its effect once. An error during capture is raised, and leaves no graph.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function, self.runs = function, 0
        self.graph: Any = None

    def __call__(self) -> None:
        """Have the function's effect on what its buffers now hold."""
        if self.graph is None and self.runs < EAGER:
            self.function()
            self.runs += 1  # one that fails has not compiled all
            return
        if self.graph is None:
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            # Other threads may make calls forbidden to this one: NCCL has a watchdog thread.
            how = torch.cuda.graph(graph, pool=pool(), capture_error_mode="thread_local")
            try:
                with nothing_collected(), how:
                    self.function()
            finally:
                torch.cuda.set_stream(stream)  # a failed capture does not restore it
            self.graph = graph
        self.graph.replay()


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """Suspend garbage collection: a graph must not be destroyed while another is captured."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@functools.cache
def pool() -> Any:
    """Return the memory pool that all graphs share."""
    return torch.cuda.graph_pool_handle()


def capturing(device: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Return the wrapper that captures a function on CUDA, and elsewhere returns it unchanged."""
    return Captured if device == "cuda" else lambda function: function


class Buffers:
    """Arrays in one block of memory, so that one copy writes all of them.

    Attributes:
        arrays: tensors with the shapes and dtypes of `like`.
    """

    def __init__(self, like: Sequence[Array], device: str) -> None:
        self._at, end = [], 0
        for x in like:
            start = -(-end // ALIGNED) * ALIGNED
            end = start + x.nbytes
            self._at.append((slice(start, end), x.dtype, x.shape))
        with torch.inference_mode(False):  # else they could be written only in inference mode
            self._memory = torch.empty(end, dtype=torch.uint8, device=device)
        self.arrays = [
            self._memory[at].view(getattr(torch, dtype.name)).view(shape)
            for at, dtype, shape in self._at
        ]

    def write(self, arrays: Sequence[Array]) -> None:
        """Copy arrays of the same shapes into the buffers, without waiting.

        A copy to a GPU goes through pinned memory, which torch does not reuse before the copy is
        done, so the given arrays may be changed at once.
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
    """Start copying an array back as it is now, in a `known` dtype; calling the result waits."""
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
