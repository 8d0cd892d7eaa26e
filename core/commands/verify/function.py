"""`twofold verify module:function`: anyone's function judged by an operator's contract."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from twofold.core import ops
from twofold.core.commands.common import (
    FAILED,
    REFUSED,
    Json,
    console,
    escaped,
    plain_errors,
    write_json,
)
from twofold.core.commands.verify.common import EXAMPLES, Examples
from twofold.core.verify.alone import LIMIT

if TYPE_CHECKING:
    from twofold.core.verify.foreign import Verdict

# Times the examples of `operators`, since no case is chosen to suit the function's tiles.
MORE = 12
SECONDS = 60.0


def command(
    functions: Annotated[list[str], typer.Argument(help="module:function, yours or any library's")],
    op: Annotated[str, typer.Option(help="the operator it implements")] = "attention",
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, tf32, float16, bfloat16; all but tf32 by default"),
    ] = None,
    examples: Examples = MORE * EXAMPLES,
    limit: Annotated[
        float, typer.Option(min=1.0, help="seconds allowed for the import, and for one case")
    ] = LIMIT,
    seconds: Annotated[
        float,
        typer.Option(min=1.0, help="seconds per function; cases left then are listed"),
    ] = SECONDS,
    everything: Annotated[
        bool, typer.Option("--all", help="show every failure and all tables, not one per fault")
    ] = False,
    json: Json = None,
) -> None:
    """Judge functions on torch tensors by an operator's contract: f(q, k, v, …) -> out.

    The name may also be that of an nn.Module (an instance, whose weight, bias, eps and the like are
    set for every case), of a class derived from torch.autograd.Function (its apply is called) or
    from torch.optim.Optimizer, or of an object or module with forward(…) -> (out, cache) and
    backward(dout, cache); if it has forward alone, that is the function. Norms may take
    normalized_shape as torch's do, gated activations one tensor of gate and up side by side,
    rotations q alone. What is written into an argument `out`, or over the input, counts as
    returned. The order of axes is found by trial. A failure is shown as the smallest case that
    fails, with a line that runs it again. Each function has a process of its own: one that hangs or
    crashes fails, and the others go on. The exit status is 1 if a function fails, else 2 if one
    cannot be judged: it cannot be imported or called, or refuses or raises in every case.
    """
    with plain_errors():
        ops.check_operator("--op", op)
        from twofold.core.verify import report
        from twofold.core.verify.foreign import apart
        from twofold.core.verify.foreign import verdict as foreign_verdict

        result: dict[str, dict[str, object]] = {}
        for name in functions:
            with console.status(f"{name} …"):
                found = apart.judge(name, op, examples, dtype, limit, seconds=seconds)
            show(name, op, found, everything)
            result[name] = {
                "holds": not found.failures,
                "judged": not found.unjudged,
                "complete": not (found.unasked or found.ended or found.unjudged),
                "operator": op,
                "rows": report.as_json(found.rows),
                "properties": [asdict(claim) for claim in found.claims],
                "summary": foreign_verdict.digest(found) if found.failures else [],
                "failures": found.failures,
                "taken": found.taken,
                "largest": found.largest,
                "notes": found.notes,
            }
        write_json(json, result)
    if any(part["judged"] and not part["holds"] for part in result.values()):
        raise typer.Exit(FAILED)
    if not all(part["judged"] for part in result.values()):
        raise typer.Exit(REFUSED)


def show(name: str, operator: str, found: Verdict, everything: bool) -> None:
    """Print bounds, properties and what was not judged; for a failure, first its faults."""
    from twofold.core.verify import report
    from twofold.core.verify.foreign import verdict as foreign_verdict

    def said(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    verdict = "[red]FAIL[/red]" if found.failures else "holds"
    verdict = "[red]not judged:[/red]" if found.unjudged else verdict
    said(f"{verdict} {name} as {operator}{', as far as it was checked' if found.unasked else ''}")
    if found.largest and not found.failures:
        said(f"the largest sizes tried: {found.largest}")
    for line in found.taken:
        said(escaped(line))
    if found.failures:
        for line in foreign_verdict.digest(found):
            said(escaped(line))
    if everything or not found.failures:
        if found.rows:
            console.print(report.table(found.rows))
        if found.claims:
            console.print(properties(found))
    for note in found.notes:
        said(escaped(note))
    if found.unasked:
        said(f"stopped by --seconds; not checked: {found.unasked}")
    if everything and found.failures:
        for fault in found.failures:
            said(f"[red]FAIL[/red] {escaped(fault)}")
        said(f"({foreign_verdict.IMPORT})")
    elif len(found.failures) > 1:
        said(f"--all shows all {len(found.failures)} failures and the tables; --json saves them")


def properties(found: Verdict) -> Table:
    """Return a table of the outcome of every property in every precision."""
    precisions = list(dict.fromkeys(claim.precision for claim in found.claims))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("property", no_wrap=True)
    for precision in precisions:
        table.add_column(precision, no_wrap=True)
    outcomes = {(claim.name, claim.precision): claim.outcome for claim in found.claims}
    for name in dict.fromkeys(claim.name for claim in found.claims):
        shown = (outcomes.get((name, precision), "") for precision in precisions)
        table.add_row(name, *(f"[red]{x}[/red]" if x == "fails" else x for x in shown))
    return table
