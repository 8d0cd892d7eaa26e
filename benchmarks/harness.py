"""What the scripts here share: their options, and where their results go.

Timing, and the description of the machine, are in `twofold.core.bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from twofold.core import memory
from twofold.core.bench import machine, timing
from twofold.core.bench.timing import summary
from twofold.core.commands.common import write_file

__all__ = [
    "GROUPED",
    "OF_GPUS",
    "RESULTS",
    "add",
    "begun",
    "beside",
    "earlier",
    "joined",
    "keep",
    "leading",
    "multiply",
    "options",
    "place",
    "put",
    "quickest",
    "race",
    "report",
    "same_machine",
    "summary",
    "use_threads",
    "written",
]

RESULTS = Path(__file__).resolve().parent / "results"
OF_GPUS = RESULTS / "gpu"
GROUPED = {"parts", "groups"}  # parts of a result whose entries are measured separately
TOLD = "OPENBLAS_CORETYPE"


def options(what: str | None, **extra: Any) -> argparse.Namespace:
    """Parse the options every benchmark has; `extra` adds some, each with its keyword arguments.

    Freed memory is kept for all contenders, as the command line keeps it.
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
    """Give both sides `n` threads: torch for each product, ours one for each part of a batch.

    It is set once, as the command line does: looking for the libraries takes milliseconds.
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
    """Return which of some contenders has the least median: ratios are relative to it."""
    return min(names, key=lambda name: float(np.median(times[name])))


def command() -> str:
    """Return how this script was called, without the file that its result was to go to."""
    name, *rest = sys.argv
    given = iter(rest)
    kept = [x for x in given if not (x.startswith("--json=") or (x == "--json" and next(given)))]
    return shlex.join(["python", f"benchmarks/{Path(name).name}", *kept])


def joined(*commands: str | None) -> str:
    """Return the several commands behind one result as one line."""
    return "; ".join(dict.fromkeys(one for x in commands if x for one in x.split("; ")))


def begun(threads: int, device: str) -> dict[str, Any]:
    """Return what every result begins with: the machine and versions, and the command."""
    return {"ran_on": machine.ran_on(threads, device), "command": command()}


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two results have the same machine and versions, on whatever days."""
    undated = ({k: v for k, v in on.items() if k != "date"} for on in (one, other))
    return next(undated) == next(undated)


def earlier(path: Path, on: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result at a path if it is of the same machine, {} otherwise."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found if same_machine(found.get("ran_on", {}), on) else {}


def beside(before: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with what only an earlier one has added, and the commands of both.

    A part is replaced as a whole, a group call by call.
    """
    both = {**before, **result}
    both["command"] = joined(before.get("command"), result.get("command"))
    for name in GROUPED & both.keys():
        both[name] = {**before.get(name, {}), **result.get(name, {})}
    for group, calls in before.get("groups", {}).items():
        both["groups"][group] = {**calls, **both["groups"][group]}
    return both


def written(result: Mapping[str, Any]) -> str:
    """Return a result's text in its own order: the quickest may be first."""
    return json.dumps(result, indent=1, ensure_ascii=False) + "\n"


def report(name: str, result: Mapping[str, Any], asked: argparse.Namespace) -> None:
    """Print a result of {**begun(), "races": {race: summary}} and write it where asked."""
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
    console.print(result["command"], style="dim", highlight=False, soft_wrap=True)
    console.print(", ".join(f"{k} {v}" for k, v in result["ran_on"].items()), style="dim")
    if result.get("product_rates"):
        console.print(multiply(result["product_rates"]), style="dim")
    keep(name, result["ran_on"], json.dumps(result, indent=1, sort_keys=True) + "\n", asked)


def keep(name: str, on: Mapping[str, Any], text: str, asked: argparse.Namespace) -> None:
    """Write a result wherever the options say."""
    for path in places(name, on, asked):
        put(path, text)


def put(path: Path, text: str) -> None:
    """Write a file atomically: a process killed meanwhile leaves what was there before."""
    write_file("--json", path, text.encode())


def add(name: str, result: Mapping[str, Any], asked: argparse.Namespace) -> None:
    """Write a result wherever the options say, merged with the same machine's earlier one."""
    for path in places(name, result["ran_on"], asked):
        put(path, written(beside(earlier(path, result["ran_on"]), result)))


def places(name: str, on: Mapping[str, Any], asked: argparse.Namespace) -> list[Path]:
    """Return the paths that the options name for a result."""
    return [*([asked.json] if asked.json else []), *([place(name, on)] if asked.save else [])]


def leading(rates: Mapping[str, float]) -> str:
    """Say which contenders have the highest rates, and the rates."""
    best = sorted(rates.items(), key=lambda item: -item[1])[:6]
    return ", ".join(f"{who} {rate:.0f}" for who, rate in best)


def multiply(rates: Mapping[str, float]) -> str:
    """Say how fast each side's library multiplies: `machine.product_rates` in words."""
    each = ", ".join(f"{name} {rate * 1e-9:.0f}" for name, rate in sorted(rates.items()))
    return f"a product in float32 on one thread, in Gflop/s: {each}"


def place(name: str, on: Mapping[str, Any]) -> Path:
    """Return a result's path in the folder of results: named after device and date.

    On a CPU also after the processor whose kernels OpenBLAS was told to use, if any. Results of
    GPUs have a folder of their own.
    """
    device = re.sub("[^A-Za-z0-9]+", "-", on.get("gpu", on["cpu"])).strip("-")
    told = f"-{os.environ[TOLD]}" if TOLD in os.environ and "gpu" not in on else ""
    folder = OF_GPUS if "gpu" in on else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{device}{told}-{on['date']}.json"
