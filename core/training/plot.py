"""The plot of a run: loss and validation accuracy over its steps."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twofold.core.whole import write_files

INK, LOSS, ACCURACY, BASELINE = "#333333", "#c44e52", "#4c72b0", "#888888"


def plot(path: Path, rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
    """Plot a run's metrics and result to a file, which appears complete or not at all.

    The extension of `path` chooses the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    right = left.twinx()
    offset = 0
    for phase in ("fit", "refit"):
        mine = [row for row in rows if row["phase"] == phase]
        if not mine:
            continue
        steps = [offset + int(row["step"]) for row in mine]
        left.plot(steps, [row["loss"] for row in mine], color=LOSS, linewidth=1)
        judged = [(s, r["validation_accuracy"]) for s, r in zip(steps, mine, strict=True)]
        judged = [(s, a) for s, a in judged if a is not None]
        if judged:
            right.plot(*zip(*judged, strict=True), color=ACCURACY, marker="o", markersize=4)
        offset = steps[-1]
        if phase == "fit" and result.get("refit"):
            left.axvline(offset, color=BASELINE, linewidth=0.8, linestyle=":")
            left.annotate(
                " fit again with validation", (offset, 1), (2, -10), ("data", "axes fraction"),
                textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip
    right.plot([offset], [result["test_accuracy"]], "*", color=ACCURACY, markersize=12)
    right.annotate(
        f"test {result['test_accuracy']:.3f}  ", (offset, result["test_accuracy"]), ha="right",
        va="bottom", color=ACCURACY,
    )  # fmt: skip
    for name, value in result["baselines"].items():
        right.axhline(value, color=BASELINE, linewidth=0.8, linestyle="--")
        right.annotate(
            f"{name.replace('_', ' ')} {value:.3f}", (0, value), (2, 2), va="bottom", fontsize=8,
            textcoords="offset points", color=BASELINE,
        )  # fmt: skip
    left.set_xlabel("step")
    left.set_ylabel("training loss (nats)", color=LOSS)
    right.set_ylabel("accuracy (validation; ★ test)", color=ACCURACY)
    title = f"{result['data']}: {result['parameters']:,} parameters, seed {result['seed']}"
    left.set_title(title, parse_math=False)  # a file's name may hold a dollar
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # in scripts that the font lacks
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=120, format=path.suffix[1:])
    write_files(path.parent, {path.name: drawn.getvalue()})
