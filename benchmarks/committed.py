"""Committed results: the newest of a kind, and in words what it ran on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import harness
from harness import RESULTS

Result = tuple[Path, dict[str, Any]]


def newest(kind: str, folder: Path = RESULTS) -> Result:
    """Return path and content of the latest result of a kind: names end with a date."""
    return every(kind, folder)[0]


def every(kind: str, folder: Path = RESULTS) -> list[Result]:
    """Return path and content of the results of a kind, one for each machine, the latest first.

    Those for which OpenBLAS was told what kernels to take come last: their names are the longer.
    """
    paths = sorted(folder.glob(f"{kind}-*.json"), key=lambda p: len(p.stem))
    paths.sort(key=lambda p: p.stem[-10:], reverse=True)
    return [(path, json.loads(path.read_text())) for path in paths]


def source(path: Path) -> str:
    """Say which result figures are from."""
    return f"from `{path.relative_to(RESULTS.parent.parent)}`"


def machine(on: dict[str, Any]) -> str:
    """Say in words what a result ran on."""
    blas = f" with {on['blas']}" if "blas" in on else ""
    return (
        f"{on.get('gpu', on['cpu'])}, {on['threads']} threads, Python {on['python']}, "
        f"NumPy {on['numpy']}{blas}, PyTorch {on['torch']}, Triton {on['triton']}, {on['date']}"
    )


def products(found: dict[str, Any]) -> str:
    """Say what each side's library multiplied in the same run."""
    rates = found.get("product_rates")
    return f"; {harness.multiply(rates)}" if rates else ""


def elsewhere(kind: str, ours: str) -> list[str]:
    """Return a table of our ratios on the other machines, and with other kernels of OpenBLAS."""
    others = every(kind)[1:]
    if not others:
        return []
    races = list(dict.fromkeys(race for _, found in others for race in found["races"]))
    lines = [
        f"| ratio of “{ours}” on | Gflop/s: {', '.join(others[0][1]['product_rates'])} "
        f"| {' | '.join(races)} |",
        "|---|--:|" + "--:|" * len(races),
    ]
    for path, found in others:
        on, rates = found["ran_on"], found["product_rates"].values()
        ratios = (found["races"].get(race, {}).get(ours, {}).get("ratio") for race in races)
        cells = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        each = ", ".join(f"{rate * 1e-9:.0f}" for rate in rates)
        lines.append(
            f"| [{on['cpu']}, {on['blas']}](results/{path.name}) | {each} | {' | '.join(cells)} |"
        )
    return ["", *lines]


def rows(races: Mapping[str, Any], digits: int = 2) -> Iterator[str]:
    """Return a line for each contender of each race: median in milliseconds, and ratio."""
    for race, contenders in races.items():
        for who, times in contenders.items():
            yield f"| {race} | {who} | {times['median_ms']:.{digits}f} | {times['ratio']:.2f} |"


def ends(ratios: Iterable[float]) -> str:
    """Return the least and the most, in words."""
    found = sorted(ratios)
    return " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (*found[:1], *found[-1:])))
