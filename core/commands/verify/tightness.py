"""`twofold verify tightness`: how much of each bound the kernels use."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version

import typer
from rich.table import Table

from twofold.core.commands import options
from twofold.core.commands.common import FAILED, Json, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import SideName, chosen, judged_side


def command(
    operators: options.Operators = None, side: SideName = "triton", json: Json = None
) -> None:
    """Measure how much of each bound is used: error ÷ bound over all input modes and six shapes.

    Of two numbers the first is for the deterministic bound, the second for the probabilistic one.
    """
    with plain_errors():
        names = chosen(operators)
        from twofold.core.verify import tightness  # needs hypothesis, as only verification does

        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        for column in ("operator", "pass", "output", "precision"):
            table.add_column(column, no_wrap=True)
        for column in ("elements", "exact", "median", "", "worst", "", "undecided"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("worst on", no_wrap=True, overflow="ellipsis", ratio=1)
        found: list[tightness.Tightness] = []
        with judged_side(side) as judged:
            for name in names:
                with console.status(f"{name} …"):
                    found += tightness.measure(name, judged)
        for row in found:
            verdict = "[red]FAIL[/red] " if row.violations or row.likely_violations else ""
            table.add_row(
                row.operator,
                row.pass_,
                row.output,
                row.precision,
                str(row.elements),
                f"{row.exact / max(row.elements, 1):.0%}",
                f"{row.median:.4f}",
                f"{row.likely_median:.4f}",
                f"{verdict}{row.worst:.3f}",
                f"{row.likely_worst:.3f}",
                f"{row.vacuous:.2%}",
                escaped(row.case),
            )
        console.print(table)
        holds = not any(row.violations or row.likely_violations for row in found)
        elements = sum(row.elements for row in found)
        undecided = sum(row.elements * row.vacuous for row in found)
        console.print(
            f"{elements} elements, {sum(row.violations for row in found)} outside the "
            f"deterministic bound, {sum(row.likely_violations for row in found)} outside the "
            f"probabilistic one, {undecided / max(elements, 1):.2%} undecided",
            highlight=False,
        )
        write_json(
            json,
            {
                "tightness": {
                    "holds": holds,
                    "side": f"{judged.name} on {judged.device}",
                    "versions": {"python": platform.python_version()}
                    | {name: version(name) for name in ("numpy", "torch", "triton")},
                    "rows": [asdict(row) for row in found],
                }
            },
        )
    if not holds:
        raise typer.Exit(FAILED)
