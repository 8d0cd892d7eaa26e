"""`twofold verify compile`: every kernel compiled for GPUs that need not be there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from twofold.core.commands.common import FAILED, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import Json, Operators, chosen


def command(
    operators: Operators = None,
    target: Annotated[
        list[str] | None, typer.Option(help="sm_80, sm_90a, sm_100a, gfx942; all by default")
    ] = None,
    json: Json = None,
) -> None:
    """Compile, and show what each kernel needs at most, and everything that is wrong."""
    with plain_errors():
        names = chosen(operators)
        from twofold.core.verify import compiles

        for name in target or ():
            if name not in compiles.TARGETS:
                known = ", ".join(compiles.TARGETS)
                raise ValueError(f"--target is {name!r}; it must be one of {known}")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("kernel", "target", "matrix unit"):
            table.add_column(column, no_wrap=column != "matrix unit")
        for column in ("variants", "registers", "spilled", "shared"):
            table.add_column(column, justify="right")
        found: list[compiles.Compiled] = []
        for name in names:
            for chip in target or compiles.TARGETS:
                with console.status(f"{name} for {chip} …"):
                    made = compiles.compile_operator(name, chip)
                found += made
                for kernel in dict.fromkeys(c.kernel for c in made):
                    mine = [c for c in made if c.kernel == kernel]
                    matrix = sorted({m for c in mine for m in c.matrix})
                    largest = (
                        max(c.registers for c in mine),
                        max(c.spilled for c in mine),
                        max(c.shared for c in mine),
                    )
                    counts = (str(x) for x in (len(mine), *largest))
                    table.add_row(f"{name} {kernel}", chip, " ".join(matrix), *counts)
        console.print(table)
        faults = [(c, fault) for c in found for fault in c.faults()]
        for c, fault in faults:
            console.print(
                f"[red]FAIL[/red] {c.operator} {c.kernel} {c.target} {c.precision}: {fault} "
                f"({escaped(c.constants)})",
                highlight=False,
                soft_wrap=True,
            )
        rows = [{**asdict(c), "faults": c.faults()} for c in found]
        write_json(json, {"compile": {"holds": not faults, "kernels": rows}})
    if faults:
        raise typer.Exit(FAILED)
