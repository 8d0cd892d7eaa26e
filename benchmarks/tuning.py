"""What the tuning scripts share: tiles timed against each other on a GPU."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import harness
import numpy as np
import torch

from twofold.core import ops
from twofold.core.bench import agreement, timing
from twofold.core.bench.problems import Problem

PROCESSES = 14  # that compile
TABLE = "table"  # the contender called with the table's tile

Call = Callable[[], object]


def first_call(make: Callable[[], Call]) -> str:
    """Make one call, leaving the compiled kernel in Triton's cache; return "" or what it raised."""
    try:
        make()()
        torch.cuda.synchronize()
    except Exception as error:  # whatever the compiler or the driver raises for this tile
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def timed(
    tiles: Iterable[tuple[Any, str]],
    call: Callable[[Any], Call],
    table: Call,
    problem: Problem,
    seconds: float,
) -> dict[str, Any]:
    """Return milliseconds of every tile that is right, the quickest first, and why others fail.

    `tiles` come with what their first call raised. A tile is right if it agrees with the table's.
    """
    said = dict(tiles)
    calls = {TABLE: table}
    calls |= {str(tuple(tile)): call(tile) for tile, fault in said.items() if not fault}
    left_out = {str(tuple(tile)): fault for tile, fault in said.items() if fault}
    left_out |= agreement.unlike(calls, problem)
    ready = {who: [each] for who, each in calls.items() if who not in left_out}
    times = timing.race(ready, "cuda", seconds, left_out)
    ms = {name: round(1e3 * float(np.median(taken)), 4) for name, taken in times.items()}
    return {"median_ms": dict(sorted(ms.items(), key=lambda x: x[1])), "left_out": left_out}


def told(found: Mapping[str, Any]) -> tuple[str, str]:
    """Return the quickest tiles in words, and the table's milliseconds."""
    ms = found["median_ms"]
    table = f"{ms[TABLE]:.3f}" if TABLE in ms else found["left_out"][TABLE]
    return ", ".join(f"{n} {t:.3f}" for n, t in list(ms.items())[:6]), table


class Session:
    """Processes that compile, and a result that is written after every part of it."""

    def __init__(self, kind: str, asked: argparse.Namespace, group: str, pool: Any) -> None:
        self.pool = pool
        self._ends = time.monotonic() + 60 * asked.minutes
        self._begun = harness.begun(asked.threads, "cuda")
        self._kind, self._asked = kind, asked
        self._name, self._group = group, dict[str, Any]()

    def while_time_lasts(self, parts: Iterable[Any]) -> Iterator[Any]:
        """Yield parts until time is up."""
        for part in parts:
            if time.monotonic() > self._ends:
                return
            yield part

    def keep(self, name: str, found: Any) -> None:
        """Add a part to the result, beside other groups of the same machine."""
        self._group[name] = found
        result = {**self._begun, "groups": {self._name: self._group}}
        harness.add(self._kind, result, self._asked)


@contextmanager
def session(kind: str, asked: argparse.Namespace, group: str) -> Iterator[Session]:
    """Begin tuning; without a GPU, end the script."""
    if not ops.cuda_available():
        raise SystemExit(f"{kind}.py needs a GPU; --list says what it would try")
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        yield Session(kind, asked, group, pool)
