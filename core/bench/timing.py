"""Timing: contenders interleaved in one process, medians and spreads.

A ratio of two medians taken side by side withstands a busy machine better than either of them, so
races report ratios, with the times beside them.

On a GPU a call is timed by events on its stream, after the second-level cache has been overwritten
and with inputs used in rotation, so that it reads memory. The cache is overwritten several times,
which keeps the stream busy while the host launches: what is timed is the device's time, as in a
training step that keeps its stream full. The host's time is measured separately (`host`): on an
empty stream it is what a small call takes.

On a CPU a contender begins once the process has come to rest: torch's threads (OpenMP) go on
spinning for some 15 ms after a call, OpenBLAS's for some 100, and would take the cores from
the next contender (here a product of NumPy's took up to 1.7 times as long right after one of
torch's, and torch's GELU ten times as long after a product of NumPy's). Sleeping threads take some
5 ms to spread over the cores again, so a short call is repeated for a while before it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

Calls = Sequence[Callable[[], object]]  # the same call with different inputs
WARMUP = 3
FEWEST = 5  # calls of each
PAUSE, PATIENCE = 0.01, 0.5  # seconds of sleep at a time, and at most
AT_REST = 0.05  # share of one core that a process at rest may use
AWAKE, LONG = 0.015, 0.1  # seconds of calls before the timed one; a longer call needs none
FLUSHED = 256 * 2**20  # bytes: more than any second-level cache
FLUSHES = 10  # of some 60 µs, during which the host launches
HOST_CALLS = 20


def race(
    contenders: Mapping[str, Calls],
    device: str,
    seconds: float,
    lost: dict[str, str] | None = None,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time every contender in turn, round by round, until `seconds` have passed.

    The order rotates, so that none always finds the caches left by the same neighbour.

    Args:
        contenders: calls by name.
        device: "cpu" or "cuda".
        seconds: of the race; each contender is called at least `FEWEST` times all the same.
        lost: receives the reason for each contender that fails and leaves the race; without it, the
            error ends the race.
        before: called before each call, untimed.

    Returns:
        the seconds of each call, by contender, without those that failed.
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
    """Remove a contender that raises from `names` and record its reason, if `lost` is given."""
    try:
        yield
    except Exception as error:  # any, from the contender
        if lost is None:
            raise
        names.remove(name)
        lost[name] = f"{type(error).__name__}: {error}"


class _Timer:
    """Times a call on a device, in seconds."""

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
    """Return a call that begins on an idle GPU and ends when the GPU has finished.

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
    """Return how many seconds the host takes to launch a call on an idle GPU."""
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
    """Sleep until no thread of this process is running, for `PATIENCE` seconds at most."""
    for _ in range(round(PATIENCE / PAUSE)):
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < AT_REST * PAUSE:
            return


def summary(times: Mapping[str, list[float]], against: str) -> dict[str, dict[str, float]]:
    """Return median, p20 and p80 in milliseconds, and the ratio to the median of `against`."""
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
