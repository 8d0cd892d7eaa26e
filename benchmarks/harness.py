"""What the scripts here share: their options, and where their results go.

How things are timed, and on what, is `twofold.core.bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from twofold.core import memory
from twofold.core.bench import machine, timing
from twofold.core.bench.timing import summary

__all__ = [
    "RESULTS",
    "keep",
    "leading",
    "multiply",
    "options",
    "quickest",
    "race",
    "ran_on",
    "report",
    "save",
    "summary",
    "use_threads",
]

RESULTS = Path(__file__).resolve().parent / "results"
OF_GPUS = RESULTS / "gpu"
TOLD = "OPENBLAS_CORETYPE"


def options(what: str | None, **extra: Any) -> argparse.Namespace:
    """Parse the options every benchmark has; `extra` adds some, each with its keyword arguments.

    Memory is kept as the command line keeps it, for all contenders.
    """
    memory.keep_freed()
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--save", action="store_true", help=f"write it to {RESULTS.name}/ by date")
    parser.add_argument("--quick", action="store_true", help="few repeats: does it run at all?")
    parser.add_argument("--threads", type=int, default=2, help="threads of both contenders")
    for name, keywords in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args()


def use_threads(n: int) -> None:
    """Give both sides `n` threads: torch within a product, ours a part of a batch each.

    It is said once, as the command line says it: looking for the libraries takes milliseconds.
    """
    import torch
    from threadpoolctl import threadpool_limits

    from twofold.core.training import threads

    torch.set_num_threads(n)
    threads.use_threads(n)
    threadpool_limits(1, "blas")


def race(
    contenders: Mapping[str, Callable[[], object]], seconds: float = 5.0
) -> dict[str, list[float]]:
    """Time every contender in turn on the CPU; see `timing.race`."""
    return timing.race({name: [call] for name, call in contenders.items()}, "cpu", seconds)


def quickest(times: Mapping[str, list[float]], names: Iterable[str]) -> str:
    """Return which of some contenders has the least median: what ratios are to."""
    return min(names, key=lambda name: float(np.median(times[name])))


def ran_on(threads: int) -> dict[str, Any]:
    """Return the machine and the versions that a result of the CPU belongs to."""
    return machine.ran_on(threads, "cpu")


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
    if result.get("product_rates"):
        console.print(multiply(result["product_rates"]), style="dim")
    keep(name, result["ran_on"], json.dumps(result, indent=1, sort_keys=True) + "\n", asked)


def keep(name: str, on: Mapping[str, Any], text: str, asked: argparse.Namespace) -> None:
    """Write a result where it was asked for."""
    if asked.json:
        asked.json.write_text(text)
    if asked.save:
        save(name, on, text)


def leading(rates: Mapping[str, float]) -> str:
    """Say who has the highest rates, and which."""
    best = sorted(rates.items(), key=lambda item: -item[1])[:6]
    return ", ".join(f"{who} {rate:.0f}" for who, rate in best)


def multiply(rates: Mapping[str, float]) -> str:
    """Say what each side's library multiplies: `machine.product_rates` in words."""
    each = ", ".join(f"{name} {rate * 1e-9:.0f}" for name, rate in sorted(rates.items()))
    return f"a product in float32 on one thread, in Gflop/s: {each}"


def place(name: str, on: Mapping[str, Any]) -> Path:
    """Return where a result lies in the folder of results: named by device and date.

    And on a CPU by the processor whose kernels OpenBLAS was told to take, where it was. Results of
    GPUs have a folder of their own.
    """
    device = re.sub("[^A-Za-z0-9]+", "-", on.get("gpu", on["cpu"])).strip("-")
    told = f"-{os.environ[TOLD]}" if TOLD in os.environ and "gpu" not in on else ""
    folder = OF_GPUS if "gpu" in on else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{device}{told}-{on['date']}.json"


def save(name: str, on: Mapping[str, Any], text: str) -> Path:
    """Write a result into the folder of results."""
    path = place(name, on)
    path.write_text(text)
    return path
