"""What was measured of products and of tiles on GPUs, as tables for SPEED.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from committed import every, machine, made, source
from harness import OF_GPUS as GPU
from tuning import TABLE

SHOWN = 3  # tiles beside the one of the table
# Ways to compute a product, by the prefix of their names, apart from the table's.
WAYS = {"plain kernel": "plain ", "descriptors": "descriptors", "Hopper's own": "Hopper"}
OF_TABLE, TORCH = "plain, table", "torch"


def products() -> list[str]:
    """Return TFLOP/s of a layer's products: torch's, the table's, the best of each other way."""
    lines = []
    for path, found in every("linear_variants", GPU):
        lines += [
            "| product, 16,384 rows, bfloat16; TFLOP/s | torch | the table's | "
            + " | ".join(f"{way}, quickest" for way in WAYS)
            + " |",
            "|---|--:|--:|" + "---|" * len(WAYS),
        ]
        for shape, rates in _by_product(found).items():
            cells = [_rate(rates, TORCH), _rate(rates, OF_TABLE)]
            for start in WAYS.values():
                own = {who: rate for who, rate in rates.items() if who.startswith(start)}
                best = max(own, key=lambda who: rates[who], default="")
                how = best.removeprefix(start).strip(" ,")
                cells.append(f"{own[best]:.0f}: {how}" if best else "")
            lines.append(f"| {shape} | {' | '.join(cells)} |")
        lines += ["", _from(path, found, "linear_variants"), ""]
    return lines


def _by_product(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return rates by product; torch's are from the plain kernels' race where there is one."""
    rates: dict[str, dict[str, float]] = {}
    for race in (*found.get("hopper", ()), *found.get("products", ())):
        shape = f"{race['features_in']} → {race['features_out']} {race['product']}"
        rates.setdefault(shape, {}).update(race["tera_operations_per_second"])
    return rates


def _rate(rates: Mapping[str, float], who: str) -> str:
    return f"{rates[who]:.0f}" if who in rates else ""


def tiles() -> list[str]:
    """Return milliseconds of passes with the table's tile, and with the quickest ones."""
    lines = []
    for path, found in every("tile_tuning", GPU):
        lines += ["| pass | the table's tile, ms | quickest |", "|---|--:|---|"]
        lines += [f"| {' | '.join(cells)} |" for cells in _tuned(found["groups"])]
        lines += ["", _from(path, found, "tile_tuning"), ""]
    return lines


def _tuned(groups: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, figures in (item for group in groups.values() for item in group.items()):
        others = dict(figures["median_ms"])
        own = others.pop(TABLE, None)
        best = "; ".join(f"{tile} {ms:.3f}" for tile, ms in list(others.items())[:SHOWN])
        yield name, "did not run" if own is None else f"{own:.3f}", best


def _from(path: Any, found: Mapping[str, Any], script: str) -> str:
    ran = machine(found["ran_on"])
    return f"{made(dict(found), f'benchmarks/{script}.py')}, {source(path)}: {ran}."
