"""How time and memory grow with length, batch and width, each with its fitted exponent."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from twofold.core.bench import contenders, problems, timing
from twofold.core.bench.contenders import Contender
from twofold.core.bench.problems import Problem

HIGHEST = 4  # largest sizes, to which an exponent is fitted: smaller ones show overhead
LONGEST = {"cpu": 16384, "cuda": 131072}  # keys; on a CPU as many as fit in 8 GB


def axes(device: str, quick: bool) -> dict[str, dict[int, Problem]]:
    """Return attention problems along each axis, by size, doubling each time."""
    dtype, D = ("bfloat16", 128) if device == "cuda" else ("float32", 64)
    B, H = (8, 16) if device == "cuda" else (2, 4)
    longest = 512 if quick else LONGEST[device]
    L = 4096 if device == "cuda" else 256
    lengths = _doublings(128, longest)
    most = 4 if quick else 64
    return {
        "length": {n: problems.attention(1, 1, 1, n, n, D, dtype) for n in lengths},
        "batch": {n: problems.attention(n, H, H, L, L, D, dtype) for n in _doublings(1, most)},
        "width": {n: problems.attention(B, n, n, L, L, D, dtype) for n in _doublings(1, most)},
    }


def _doublings(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]


def curves(
    device: str, seconds: float, quick: bool = False, ends: float = math.inf
) -> Iterator[dict[str, Any]]:
    """Yield a curve for each axis, pass and contender: sizes, times, memory, exponents.

    No size is begun after `ends`, by `time.perf_counter`; the curve has what was measured before.
    """
    rivals = [c for c in contenders.of("attention", device) if c.name in ("twofold", "torch")]
    for axis, listed in axes(device, quick).items():
        points: dict[tuple[str, str], list[tuple[int, float, int]]] = {}
        for size, problem in listed.items():
            if time.perf_counter() > ends:
                break
            for key, (taken, peak) in _measured(problem, rivals, device, seconds).items():
                points.setdefault(key, []).append((size, taken, peak))
        for (name, contender), found in points.items():
            sizes, times, peaks = (list(column) for column in zip(*found, strict=True))
            counted = min(peaks) > 0
            yield {
                "axis": axis,
                "pass": name,
                "contender": contender,
                "sizes": sizes,
                "median_ms": [t * 1e3 for t in times],
                "peak_bytes": peaks if counted else [],
                "time_exponent": exponent(sizes, times),
                "memory_exponent": exponent(sizes, peaks) if counted else None,
            }


def _measured(
    problem: Problem, rivals: list[Contender], device: str, seconds: float
) -> dict[tuple[str, str], tuple[float, int]]:
    """Return median seconds and peak bytes by pass and contender, without those that fail."""
    tensors = problem.make(torch.Generator(device).manual_seed(0), device)
    found = {}
    for name in problem.costs:
        calls: dict[str, Callable[[], object]] = {}
        peaks: dict[str, int] = {}
        for rival in rivals:
            try:
                call = rival.passes(problem, tensors)[name]
                peaks[rival.name] = peak(call, device, rival.side is not None)
            except (RuntimeError, MemoryError):  # out of memory
                continue
            calls[rival.name] = call
        times = timing.race({n: [call] for n, call in calls.items()}, device, seconds, {})
        for n, taken in times.items():
            found[name, n] = (float(np.median(taken)), peaks[n])
    return found


def peak(call: Callable[[], object], device: str, numpy: bool) -> int:
    """Return the peak bytes that a call allocates, 0 where they are not counted: torch on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not numpy:
        call()
        return 0
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def exponent(sizes: list[int], values: list[float] | list[int]) -> float:
    """Return n in values ∝ sizeⁿ, by least squares on the logarithms at the largest sizes."""
    x, y = (np.log(np.asarray(a[-HIGHEST:], float)) for a in (sizes, values))
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else float("nan")
