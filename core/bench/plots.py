"""Plots of results: times as ratios, the roofline, speed over size, and growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

DPI, COLUMNS = 110, 4


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the plots that a result has data for into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    on = result["ran_on"]
    where = f"{on.get('gpu', on['cpu'])}, {on['date']}"
    made = []
    if result.get("races"):
        made += [_ratios(result, where, folder), _roofline(result, where, folder)]
        for operator in dict.fromkeys(race["operator"] for race in result["races"]):
            if curves := _curves(result["races"], operator):
                made.append(_speed(operator, curves, result["ceilings"], where, folder))
    if result.get("growth"):
        made.append(_growth(result, where, folder))
    return made


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _right(race: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of contenders that are not wrong: those with a ratio."""
    return {name: f for name, f in race["contenders"].items() if "ratio" in f}


def _ratios(result: Mapping[str, Any], where: str, folder: Path) -> Path:
    """Plot a bar for each race: torch's time as a multiple of ours."""
    bars = [
        (f"{r['operator']} {r['problem']} {r['dtype']}, {r['pass']}", 1 / ours["ratio"])
        for r in result["races"]
        if (ours := _right(r).get("twofold")) is not None
    ]
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.24 * len(bars)))
    axes.barh([name for name, _ in bars], [ratio for _, ratio in bars], color="#4477aa")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(f"torch's time ÷ twofold's ({where})", fontsize=9)
    return _save(figure, folder / "ratios.png")


def _roofline(result: Mapping[str, Any], where: str, folder: Path) -> Path:
    """Plot operations a second over operations a byte, under the measured limit."""
    figure, axes = plt.subplots(figsize=(7, 5))
    bandwidth, rate = (result["ceilings"][name] for name in ("bandwidth", "rate"))
    products = [r for r in result["races"] if r["operations"]]
    reach = [r["operations"] / r["bytes"] for r in products] or [1.0]
    xs = [min(reach) / 4, rate / bandwidth, max(*reach, rate / bandwidth) * 4]
    axes.plot(xs, [min(rate, bandwidth * x) for x in xs], color="black", linewidth=1)
    for name, marker in (("twofold", "o"), ("torch", "x")):
        mine = [r for r in products if name in _right(r)]
        axes.scatter(
            [r["operations"] / r["bytes"] for r in mine],
            [r["contenders"][name]["tera_operations_per_second"] * 1e12 for r in mine],
            marker=marker,
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(f"roofline, limits of the same run ({where})", fontsize=9)
    axes.legend()
    return _save(figure, folder / "roofline.png")


def _curves(races: Sequence[Mapping[str, Any]], operator: str) -> dict[str, list[Any]]:
    """Return an operator's races that lie on a curve, by what they share."""
    curves: dict[str, list[Any]] = {}
    for race in races:
        if race["operator"] == operator and race["curve"]:
            of = f"{race['curve']} {race['dtype']}, {race['pass']}"
            curves.setdefault(of, []).append(race)
    return {of: sorted(c, key=lambda r: r["size"]) for of, c in curves.items() if len(c) > 1}


def _speed(
    operator: str,
    curves: Mapping[str, Sequence[Any]],
    ceilings: Mapping[str, float],
    where: str,
    folder: Path,
) -> Path:
    """Plot every contender's speed over length or bytes, and the measured limit."""
    rows = -(-len(curves) // COLUMNS)
    figure, panels = plt.subplots(rows, COLUMNS, figsize=(16, 3.2 * rows), squeeze=False)
    if operator == "attention":
        unit, speed, limit = "TFLOP/s", "tera_operations_per_second", ceilings["rate"] * 1e-12
        along, over = "size", "length"
    else:
        unit, speed, limit = "GB/s", "giga_bytes_per_second", ceilings["bandwidth"] * 1e-9
        along, over = "bytes", "bytes that must be moved"
    for panel, (of, races) in zip(panels.flat, curves.items(), strict=False):
        for name in dict.fromkeys(name for race in races for name in _right(race)):
            mine = [race for race in races if name in _right(race)]
            ys = [race["contenders"][name][speed] for race in mine]
            panel.plot([race[along] for race in mine], ys, marker=".", label=name)
        panel.axhline(limit, color="black", linewidth=1, linestyle="--")
        panel.set(xscale="log", ylim=(0, None), xlabel=over, ylabel=unit)
        panel.set_title(of, fontsize=8)
        panel.legend(fontsize=6)
    for panel in panels.flat[len(curves) :]:
        panel.axis("off")
    figure.suptitle(f"{operator} ({where})", fontsize=10)
    return _save(figure, folder / f"speed-{operator}.png")


def _growth(result: Mapping[str, Any], where: str, folder: Path) -> Path:
    """Plot time and memory along each axis, with the fitted exponents."""
    names = list(dict.fromkeys(curve["axis"] for curve in result["growth"]))
    figure, grid = plt.subplots(2, len(names), figsize=(4.5 * len(names), 7), squeeze=False)
    for column, axis in enumerate(names):
        for curve in (c for c in result["growth"] if c["axis"] == axis):
            title = f"{curve['contender']} {curve['pass']}"
            time, memory = grid[0][column], grid[1][column]
            label = f"{title}: {curve['time_exponent']:.2f}"
            time.plot(curve["sizes"], curve["median_ms"], marker=".", label=label)
            if curve["peak_bytes"]:
                label = f"{title}: {curve['memory_exponent']:.2f}"
                memory.plot(curve["sizes"], curve["peak_bytes"], marker=".", label=label)
        for row, what in enumerate(("ms", "bytes at most")):
            panel = grid[row][column]
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=what)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7, title="exponent", title_fontsize=7)
    figure.suptitle(f"attention ({where})", fontsize=10)
    return _save(figure, folder / "growth.png")
