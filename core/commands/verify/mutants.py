"""`twofold verify mutants`: how many small faults the contracts see."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from twofold.core import ops
from twofold.core.commands.common import FAILED, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import EXAMPLES, Examples, Json, Operators, chosen


def command(
    operators: Operators = None,
    examples: Examples = EXAMPLES,
    sample: Annotated[
        int | None, typer.Option(help="judge so many of each operator and side", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="names the sample")] = 0,
    json: Json = None,
) -> None:
    """Judge the mutants of both sides, and show which of them nothing saw."""
    with plain_errors():
        names = chosen(operators)
        from twofold.core.verify import mutants

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("operator", "side"):
            table.add_column(column, no_wrap=True)
        for column in ("mutants", "killed", "equivalent", "survived"):
            table.add_column(column, justify="right")
        rows: list[dict[str, object]] = []
        sides = [ops.load(name) for name in reversed(ops.SIDES)]
        from twofold.core.verify.strict_interpreter import strict_interpreter

        with strict_interpreter():
            for name in names:
                for side in sides:
                    found = mutants.judge(name, side, examples=examples, size=sample, seed=seed)
                    counts = mutants.count(found)
                    survivors = [v.mutant for v in found if v.fate == mutants.SURVIVED]
                    for mutant in survivors:
                        said = f"[red]SURVIVED[/red] {escaped(f'{mutant} | {mutant.text}')}"
                        console.print(said, highlight=False, soft_wrap=True)
                    columns = ("mutants", mutants.KILLED, mutants.EQUIVALENT, mutants.SURVIVED)
                    table.add_row(name, side.name, *(str(counts[fate]) for fate in columns))
                    listed = [{"at": str(m), "text": m.text} for m in survivors]
                    rows.append(
                        {"operator": name, "side": side.name, **counts, "survivors": listed}
                    )
        console.print(table)
        holds = not any(row["survived"] for row in rows)
        write_json(json, {"mutants": {"holds": holds, "operators": rows}})
    if not holds:
        raise typer.Exit(FAILED)
