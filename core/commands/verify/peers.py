"""`twofold verify peers`: other libraries' functions judged by our operators' contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from twofold.core.commands.common import FAILED, Json, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import Jobs, cores, left

if TYPE_CHECKING:
    from twofold.core.verify.peers.judging import Judged, Row

EXAMPLES = 120
LIMIT = 300.0  # a case may have to be compiled


def command(
    peers: Annotated[list[str] | None, typer.Argument(help="names; all by default")] = None,
    examples: Annotated[int, typer.Option(min=1, help="random cases for a fast peer")] = EXAMPLES,
    limit: Annotated[float, typer.Option(min=1.0, help="seconds allowed for one case")] = LIMIT,
    jobs: Jobs = None,
    json: Json = None,
) -> None:
    """Judge other libraries' functions, and list those that do not run here.

    A failure is shown with its smallest input, and with its kind (fault, precision, undefined) and
    reason as listed in `core/verify/peers/findings.py`. Exit status 1 if a failure is not listed.
    The result is written after every function, and names those that are left.
    """
    with plain_errors():
        from twofold.core.verify.peers import finding, findings, judging
        from twofold.core.verify.peers.table import named

        chosen, judged = named(peers), []
        coming = judging.judge(chosen, examples, limit, jobs or cores())
        for peer in chosen:
            with console.status(f"{peer.name} …"):
                judged.append(next(coming))
            show(judged[-1])
            names = [other.name for other in chosen[len(judged) :]]
            write_json(json, {**report(judged), **left(names)})
        console.print(table(judged))
        for words, ours, answers in differing(judged):
            console.print(f"convention: {words} {ours}; {answers}", soft_wrap=True)
        failures = [f for one in judged for f in one.failures()]
        ran = [one.peer.name for one in judged if not one.missing]
        gone = findings.gone(ran, [f.known for f in failures if f.known])
        for known in gone:
            console.print(f"gone: {known.peer} {known.outputs}: {known.reason}", soft_wrap=True)
    if any(f.kind == finding.UNEXPLAINED for f in failures):
        raise typer.Exit(FAILED)


def show(judged: Judged) -> None:
    """Print what is wrong with a peer, and the reason if known."""
    for f in judged.failures():
        where = " ".join(filter(None, (judged.peer.name, f.precision, f.output)))
        console.print(
            f"[red]{f.kind}[/red] {escaped(where)}: {escaped(f.words)}\n  {escaped(f.again)}",
            highlight=False,
            soft_wrap=True,
        )
        if f.known:
            console.print(f"  {escaped(f.known.reason)}", highlight=False, soft_wrap=True)


def table(judged: list[Judged]) -> Table:
    """Return a table with a row for each peer and precision."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("peer", "operator", "dtype"):
        view.add_column(column, no_wrap=True)
    for column in ("cases", "forward", "backward", "properties"):
        view.add_column(column, justify="right", no_wrap=True)
    view.add_column("verdict")
    for one in judged:
        for row in one.rows():
            view.add_row(one.peer.name, one.peer.operator, *cells(row))
    return view


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's cells, from the dtype on."""
    if row.missing:
        return ("", "", "", "", "", row.missing)
    held = f"{row.properties + row.bits}" if row.properties + row.bits else ""
    verdict = ", ".join(f"[red]{kind}[/red]" for kind in row.kinds) or "holds"
    shares = (f"{share:.2f}" if share else "" for share in (row.forward, row.backward))
    return (row.precision, str(row.cases), *shares, held, verdict)


def differing(judged: list[Judged]) -> list[tuple[str, str, str]]:
    """Return questions that definitions leave open: words, our answer, others with their peers."""
    from twofold.core.verify.peers.conventions import QUESTIONS

    lines = []
    for question in QUESTIONS:
        others: dict[str, list[str]] = {}
        for one in judged:
            answer = one.answers.get(question.words, question.ours)
            if answer != question.ours:
                others.setdefault(answer, []).append(one.peer.name)
        if others:
            said = "; ".join(f"{a}: {', '.join(names)}" for a, names in others.items())
            lines.append((question.words, question.ours, said))
    return lines


def report(judged: list[Judged]) -> dict[str, object]:
    """Return all results for JSON, and what they ran on."""
    import platform

    import numpy as np
    import torch
    import triton

    from twofold.core.verify.peers.conventions import QUESTIONS

    return {
        "ran_on": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "ours": {question.words: question.ours for question in QUESTIONS},
        "peers": [one.as_json() for one in judged],
    }
