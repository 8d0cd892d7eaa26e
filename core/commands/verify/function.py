"""`twofold verify module:function`: anyone's function judged by an operator's contract."""

from __future__ import annotations

from typing import Annotated

import typer

from twofold.core.commands.common import FAILED, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import EXAMPLES, Examples, Json

# So many times the examples of `operators`: no case is chosen by the function's tiles.
MORE = 2


def command(
    functions: Annotated[list[str], typer.Argument(help="module:function, yours or anyone's")],
    op: Annotated[str, typer.Option(help="the operator that it should be")] = "attention",
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, tf32, float16, bfloat16; all but tf32 by default"),
    ] = None,
    examples: Examples = MORE * EXAMPLES,
    json: Json = None,
) -> None:
    """Judge functions on torch tensors by an operator's contract: f(q, k, v, …) -> out.

    What fails comes as the smallest case that does, with a line of Python that runs it again.
    """
    with plain_errors():
        from twofold.core.verify import foreign, report

        result: dict[str, dict[str, object]] = {}
        for name in functions:
            with console.status(f"{name} …"):
                found = foreign.judge(name, op, examples, dtype)
            console.print(f"{name} as {op}", highlight=False)
            console.print(report.table(found.rows))
            for note in found.notes:
                console.print(escaped(note), highlight=False, soft_wrap=True)
            for fault in found.failures:
                console.print(f"[red]FAIL[/red] {escaped(fault)}", highlight=False, soft_wrap=True)
            if found.failures and found.rows:
                console.print("(from twofold.core.verify import foreign)", highlight=False)
            result[name] = {
                "holds": not found.failures,
                "operator": op,
                "rows": report.as_json(found.rows),
                "failures": found.failures,
                "notes": found.notes,
            }
        write_json(json, result)
    if not all(part["holds"] for part in result.values()):
        raise typer.Exit(FAILED)
