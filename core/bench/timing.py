"""Timing: contenders interleaved in one process, medians and spreads.

A ratio of two medians taken side by side survives a busy machine better than either of them, so
ratios are what races report; the times stand beside them.

On a GPU a call is timed by events on its stream, after its second-level cache has been written over
and with inputs that rotate: what is timed reads memory. It is written over several times, which
keeps the stream busy while the host launches: what is timed is the device's time, as in a training
step that keeps its stream full. The host's time is measured apart (`host`): behind a stream that
is empty it is what a small call takes.

On a CPU a contender begins when the process has come to rest: threads of torch (OpenMP) go on
spinning for some 15 ms after a call, those of OpenBLAS for some 100, and would take the cores from
whoever comes next (here a product of NumPy's took up to 1.7 times as long right behind one of
torch's, and torch's GELU ten times as long behind a product of NumPy's). Threads that sleep take
some 5 ms to be spread over the cores again, so a short call is made for a while before it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

Calls = Sequence[Callable[[], object]]  # the same with different inputs
WARMUP = 3
FEWEST = 5  # calls of each
PAUSE, PATIENCE = 0.01, 0.5  # seconds of sleep at a time, and at the most
AT_REST = 0.05  # of one core, that the process may use meanwhile
AWAKE, LONG = 0.015, 0.1  # seconds of calls before the one that is timed; calls that need none
FLUSHED = 256 * 2**20  # bytes: more than any second-level cache
FLUSHES = 10  # of some 60 µs, while which the host launches
HOST_CALLS = 20


def race(
    contenders: Mapping[str, Calls],
    device: str,
    seconds: float,
    lost: dict[str, str] | None = None,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time every contender in turn, round by round, until `seconds` have gone by.

    The order rotates, so that nobody always follows the same neighbour into its caches.

    Args:
        contenders: calls by name.
        device: "cpu" or "cuda".
        seconds: of the race; each is called a few times even if they are over.
        lost: takes the reason of each contender that fails, which is then out of the race; without
            it the race ends with the error.
        before: called before each call, untimed.

    Returns:
        the seconds of each call, by contender that did not fail.
    """
    timed = _Timer(device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names, turn = list(contenders), 0
    for name, calls in contenders.items():
        with _dropping(name, names, lost):
            before()
            for call in list(calls) + [calls[0]] * WARMUP:
                call()
    deadline = time.perf_counter() + seconds
    while names and (time.perf_counter() < deadline or turn < FEWEST):
        for name in list(names):
            calls = contenders[name]
            with _dropping(name, names, lost):
                before()
                times[name].append(timed(calls[turn % len(calls)]))
        names, turn = names[1:] + names[:1], turn + 1
    return {name: taken for name, taken in times.items() if name in names}


@contextmanager
def _dropping(name: str, names: list[str], lost: dict[str, str] | None) -> Iterator[None]:
    """Take a contender that raises from the names, and keep its reason, if reasons are wanted."""
    try:
        yield
    except Exception as error:  # its own, whatever it is
        if lost is None:
            raise
        names.remove(name)
        lost[name] = f"{type(error).__name__}: {error}"


class _Timer:
    """How long a call takes, in seconds."""

    def __init__(self, device: str) -> None:
        self._gpu = device == "cuda"
        if self._gpu:
            import torch

            self._cuda: Any = torch.cuda
            self._flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device)

    def __call__(self, call: Callable[[], object]) -> float:
        if not self._gpu:
            come_to_rest()
            taken = made = _seconds(call)
            while made < AWAKE:
                made += _seconds(call)
            return taken if taken > LONG else _seconds(call)
        first, last = (self._cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            self._flushed.zero_()
        first.record()
        call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3


def waited(call: Callable[[], object]) -> Callable[[], None]:
    """Return a call that begins on a GPU without work and ends when the GPU has ended.

    Raced as on a CPU, by the clock and with nothing before it, it shows all that a caller waits
    for: between events, what the host does before it first waits would be hidden by the flushes.
    """
    import torch

    def whole() -> None:
        torch.cuda.synchronize()
        call()
        torch.cuda.synchronize()

    return whole


def host(call: Callable[[], object]) -> float:
    """Return how many seconds the host takes to have a call launched on a GPU that has no work."""
    import torch

    found = []
    for _ in range(HOST_CALLS):
        torch.cuda.synchronize()
        found.append(_seconds(call))
    torch.cuda.synchronize()
    return float(np.median(found))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def come_to_rest() -> None:
    """Sleep until no thread of this process is running, or patience ends."""
    for _ in range(round(PATIENCE / PAUSE)):
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < AT_REST * PAUSE:
            return


def summary(times: Mapping[str, list[float]], against: str) -> dict[str, dict[str, float]]:
    """Return median, p20 and p80 in milliseconds, and the ratio of medians to one contender's."""
    base = float(np.median(times[against]))
    result = {}
    for name, taken in times.items():
        p20, median, p80 = (float(x) for x in np.percentile(taken, [20, 50, 80]))
        result[name] = {
            "median_ms": median * 1e3,
            "p20_ms": p20 * 1e3,
            "p80_ms": p80 * 1e3,
            "calls": len(taken),
            "ratio": median / base,
        }
    return result
