"""Committed results: the newest of a kind, and in words what it ran on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import harness
from harness import RESULTS

# Kernels of OpenBLAS about as quick as torch's library on a processor where that takes no AVX-512.
LIKE_THEIRS = "Haswell"


def newest(kind: str, folder: Path = RESULTS) -> tuple[Path, dict[str, Any]]:
    """Return path and content of the latest result of a kind: names end with a date."""
    found = (path for path in folder.glob(f"{kind}-*.json") if LIKE_THEIRS not in path.stem)
    path = max(found, key=lambda p: p.stem[-10:])
    return path, json.loads(path.read_text())


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


def rows(races: Mapping[str, Any], digits: int = 2) -> Iterator[str]:
    """Return a line for each contender of each race: median in milliseconds, and ratio."""
    for race, contenders in races.items():
        for who, times in contenders.items():
            yield f"| {race} | {who} | {times['median_ms']:.{digits}f} | {times['ratio']:.2f} |"


def ends(ratios: Iterable[float]) -> str:
    """Return the least and the most, in words."""
    found = sorted(ratios)
    return " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (*found[:1], *found[-1:])))
