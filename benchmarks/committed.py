"""Committed results: the newest of a kind, and in words what it ran on."""

from __future__ import annotations

import json
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
