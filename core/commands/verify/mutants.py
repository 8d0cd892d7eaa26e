"""`twofold verify mutants`: how many small planted faults the contracts catch."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from twofold.core import ops
from twofold.core.commands import options
from twofold.core.commands.common import FAILED, Json, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import (
    EXAMPLES,
    Examples,
    Jobs,
    chosen,
    cores,
)

if TYPE_CHECKING:
    from twofold.core.verify.mutants import Verdict

FATES = ("killed", "equivalent", "beyond", "survived", "misjudged")


def command(
    operators: options.Operators = None,
    examples: Examples = EXAMPLES,
    sample: Annotated[
        int | None, typer.Option(help="judge only this many mutants per operator and side", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the sample")] = 0,
    jobs: Jobs = None,
    listed: Annotated[
        bool,
        typer.Option("--listed", help="also run mutants listed as equivalent: they must survive"),
    ] = False,
    json: Json = None,
) -> None:
    """Plant small faults in both sides, and show which of them no contract notices.

    Mutants are small changes of the kernels and of the NumPy backward functions, and faults that
    have shipped elsewhere. Exit status 1 if one survives that is not listed as equivalent.
    """
    with plain_errors():
        names, start = chosen(operators), time.perf_counter()
        from twofold.core.verify import mutants
        from twofold.core.verify.strict import strict_interpreter

        sides = [ops.load(name) for name in reversed(ops.SIDES)]
        processes = jobs or cores()
        rows = []
        with strict_interpreter():
            for name in names:
                for side in sides:
                    found = mutants.judge(
                        name, side, examples=examples, size=sample, seed=seed, jobs=processes,
                        listed=listed, observe=_say,
                    )  # fmt: skip
                    rows.append({"operator": name, "side": side.name, **_row(found)})
        console.print(_table(rows))
        holds = not any(row["survived"] or row["misjudged"] for row in rows)
        result = {
            "holds": holds,
            "command": _command(names, examples, sample, seed, listed),
            "seconds": round(time.perf_counter() - start),
            "jobs": processes,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "torch", "triton", "hypothesis")},
            },
            "operators": rows,
        }
        console.print(f"{result['seconds']} s with {processes} processes", style="dim")
        write_json(json, {"mutants": result})
    if not holds:
        raise typer.Exit(FAILED)


def _say(verdict: Verdict) -> None:
    """Print a mutant that survived or was misjudged."""
    if verdict.fate in ("survived", "misjudged"):
        said = f"{verdict.mutant} | {verdict.mutant.text} | {verdict.by}".rstrip(" |")
        line = f"[red]{verdict.fate.upper()}[/red] {escaped(said)}"
        console.print(line, highlight=False, soft_wrap=True)


def _row(found: list[Verdict]) -> dict[str, Any]:
    from twofold.core.verify import mutants

    return {
        **mutants.count(found),
        "seconds": round(sum(v.seconds for v in found), 1),
        "survivors": [
            {"at": str(v.mutant), "text": v.mutant.text}
            for v in found
            if v.fate == mutants.SURVIVED
        ],
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("operator", "side"):
        table.add_column(column, no_wrap=True)
    for column in ("mutants", *FATES):
        table.add_column(column, justify="right")
    for row in rows:
        counts = (str(row[fate]) for fate in ("mutants", *FATES))
        table.add_row(row["operator"], row["side"], *counts)
    total = (str(sum(row[fate] for row in rows)) for fate in ("mutants", *FATES))
    table.add_row("all", "", *total, style="bold")
    return table


def _command(names: list[str], examples: int, sample: int | None, seed: int, listed: bool) -> str:
    words = ["twofold verify mutants"]
    if tuple(names) != ops.OPERATORS:
        words += names
    if examples != EXAMPLES:
        words.append(f"--examples {examples}")
    if sample is not None:
        words.append(f"--sample {sample} --seed {seed}")
    if listed:
        words.append("--listed")
    return " ".join(words)
