"""Racing: contenders interleaved in one process, medians and spreads, and what it all ran on.

A ratio of two medians taken side by side survives a busy machine better than either of them, so
ratios are what the benchmarks report; the times stand beside them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def options(what: str | None, **extra: Any) -> argparse.Namespace:
    """Parse the options every benchmark has; `extra` adds some, each with its keyword arguments."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--save", action="store_true", help=f"write it to {RESULTS.name}/ by date")
    parser.add_argument("--quick", action="store_true", help="few repeats: does it run at all?")
    parser.add_argument("--threads", type=int, default=2, help="threads of both contenders")
    for name, keywords in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args()


def use_threads(n: int) -> None:
    """Give NumPy's BLAS and torch `n` threads each."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(n)
    threadpool_limits(n)


def race(
    contenders: Mapping[str, Callable[[], object]], seconds: float = 5.0, warmup: int = 3
) -> dict[str, list[float]]:
    """Time every contender in turn, round by round, until `seconds` have gone by.

    Returns the seconds of each call by contender. The order rotates, so that nobody always follows
    the same neighbour into its caches.
    """
    for _ in range(warmup):
        for call in contenders.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times[names[0]]) < 5:
        for name in names:
            start = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - start)
        names = names[1:] + names[:1]
    return times


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


def ran_on(threads: int) -> dict[str, Any]:
    """Return the machine and the versions a result belongs to."""
    packages = ("numpy", "torch", "triton")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        **({"gpu": _gpu_name()} if _gpu_name() else {}),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpu_name() -> str:
    """Return the GPU that torch sees, or nothing."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def report(name: str, result: Mapping[str, Any], asked: argparse.Namespace) -> None:
    """Print a result of {"ran_on": …, "races": {race: summary}} and write it where asked."""
    view = Table(box=None, pad_edge=False)
    for column in ("race", "contender"):
        view.add_column(column)
    for column in ("median ms", "p20", "p80", "ratio"):
        view.add_column(column, justify="right")
    for title, contenders in result["races"].items():
        for contender, s in contenders.items():
            numbers = (s["median_ms"], s["p20_ms"], s["p80_ms"])
            view.add_row(title, contender, *(f"{x:.2f}" for x in numbers), f"{s['ratio']:.2f}")
    console = Console()
    console.print(view)
    console.print(", ".join(f"{k} {v}" for k, v in result["ran_on"].items()), style="dim")
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    if asked.json:
        asked.json.write_text(text)
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        on = result["ran_on"]
        device = "".join(c if c.isalnum() else "-" for c in on.get("gpu", on["cpu"])).strip("-")
        (RESULTS / f"{name}-{device}-{result['ran_on']['date']}.json").write_text(text)
