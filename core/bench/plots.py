"""Pictures of results: times as ratios, the roofline, and growth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

DPI = 110


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what a result has into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    on = result["ran_on"]
    where = f"{on.get('gpu', on['cpu'])}, {on['date']}"
    made = []
    if result.get("races"):
        made += [_ratios(result, where, folder), _roofline(result, where, folder)]
    if result.get("growth"):
        made.append(_growth(result, where, folder))
    return made


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _ratios(result: Mapping[str, Any], where: str, folder: Path) -> Path:
    """One bar for each race: torch's time as a multiple of ours."""
    bars = [
        (f"{r['operator']} {r['problem']} {r['dtype']}, {r['pass']}", 1 / ours["ratio"])
        for r in result["races"]
        if (ours := r["contenders"].get("twofold")) is not None
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
    """Operations a second over operations a byte, under what was measured as the limit."""
    figure, axes = plt.subplots(figsize=(7, 5))
    bandwidth, rate = (result["ceilings"][name] for name in ("bandwidth", "rate"))
    products = [r for r in result["races"] if r["operations"]]
    reach = [r["operations"] / r["bytes"] for r in products] or [1.0]
    xs = [min(reach) / 4, rate / bandwidth, max(*reach, rate / bandwidth) * 4]
    axes.plot(xs, [min(rate, bandwidth * x) for x in xs], color="black", linewidth=1)
    for name, marker in (("twofold", "o"), ("torch", "x")):
        mine = [r for r in products if name in r["contenders"]]
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


def _growth(result: Mapping[str, Any], where: str, folder: Path) -> Path:
    """Time and memory over each axis, with the fitted exponents."""
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
