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

# So many times the examples of `operators`: no case is chosen by the function's tiles.
MORE = 12
SECONDS = 60.0


def command(
    functions: Annotated[list[str], typer.Argument(help="module:function, yours or anyone's")],
    op: Annotated[str, typer.Option(help="the operator that it should be")] = "attention",
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, tf32, float16, bfloat16; all but tf32 by default"),
    ] = None,
    examples: Examples = MORE * EXAMPLES,
    limit: Annotated[
        float, typer.Option(min=1.0, help="seconds that the import, or one case, may take")
    ] = LIMIT,
    seconds: Annotated[
        float, typer.Option(min=1.0, help="after which no case is begun; what is left is said")
    ] = SECONDS,
    everything: Annotated[
        bool, typer.Option("--all", help="of what fails every failure and table, not each fault")
    ] = False,
    json: Json = None,
) -> None:
    """Judge functions on torch tensors by an operator's contract: f(q, k, v, …) -> out.

    What is named may also be an nn.Module (an instance, whose weight, bias, eps and the like are
    set for every case), a class derived from torch.autograd.Function (its apply is called) or from
    torch.optim.Optimizer, or an object or module with forward(…) -> (out, cache) and
    backward(dout, cache); with forward alone, that is the function. Norms may take normalized_shape
    as torch's do, gated activations one tensor of gate and up side by side, rotations q alone. What
    is written into an argument `out`, or over the input, is taken as if it were returned. In which
    order axes are is found out. What fails comes as the smallest case that does, with a line that
    runs it again. Each function has a process of its own: one that hangs or crashes is a failure,
    and the rest goes on. The exit status is 1 where one fails, else 2 where one cannot be judged:
    it is not imported or called so, or refuses every case or raises in it.
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
    """Print the bounds, the properties and what was not judged; of what fails each fault, first."""
    from twofold.core.verify import report
    from twofold.core.verify.foreign import verdict as foreign_verdict

    def said(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    verdict = "[red]FAIL[/red]" if found.failures else "holds"
    verdict = "[red]not judged:[/red]" if found.unjudged else verdict
    said(f"{verdict} {name} as {operator}{', in what was asked' if found.unasked else ''}")
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
        said(f"--seconds were over, not asked: {found.unasked}")
    if everything and found.failures:
        for fault in found.failures:
            said(f"[red]FAIL[/red] {escaped(fault)}")
        said(f"({foreign_verdict.IMPORT})")
    elif len(found.failures) > 1:
        said(f"--all shows all {len(found.failures)} failures and the tables, --json keeps them")


def properties(found: Verdict) -> Table:
    """Lay out what became of every property in every precision."""
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
