"""`twofold verify operators`: a side's operators judged by their contracts."""

from __future__ import annotations

import typer

from twofold.core.commands import options
from twofold.core.commands.common import FAILED, Json, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import (
    EXAMPLES,
    Examples,
    Jobs,
    SideName,
    chosen,
    cores,
    judged_side,
    left,
)


def command(
    operators: options.Operators = None,
    examples: Examples = EXAMPLES,
    side: SideName = "triton",
    jobs: Jobs = None,
    json: Json = None,
) -> None:
    """Judge operators by their contracts: every random and pinned case within its error bound.

    Without a GPU the kernels run in the strict interpreter. A result is written after every
    operator; it names those that are left.
    """
    with plain_errors():
        names = chosen(operators)
        # They need hypothesis, as only verification does.
        from twofold.core.verify import report
        from twofold.core.verify.processes import processes

        rows: list[report.Row] = []
        with judged_side(side) as judged, processes(judged, jobs or cores()) as pool:
            for done, name in enumerate(names, 1):
                with console.status(f"{name} …"):
                    rows += report.verify(name, judged, examples, pool)
                found = {"holds": not any(x.faults for x in rows), "rows": report.as_json(rows)}
                write_json(json, {"operators": {**found, **left(names[done:])}})
        console.print(report.table(rows))
        faults = [(row, fault) for row in rows for fault in row.faults]
        for row, fault in faults:
            console.print(
                f"[red]FAIL[/red] {row.operator} {row.pass_} {row.precision}: {escaped(fault)}",
                highlight=False,
                soft_wrap=True,
            )
    if faults:
        raise typer.Exit(FAILED)
