"""`twofold bench`: operators raced against their peers."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from twofold.core.commands.common import console, escaped, plain_errors, write_json

Operators = Annotated[list[str] | None, typer.Argument(help="operators, all by default")]


def command(
    operators: Operators = None,
    against: Annotated[
        list[str] | None, typer.Option(help="module:function to race besides; may be repeated")
    ] = None,
    seconds: Annotated[float, typer.Option(help="for each pass of each problem", min=0.0)] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="one problem each, few repeats")] = False,
    threads: Annotated[int, typer.Option(help="of every contender, on a CPU", min=1)] = 2,
    judge: Annotated[
        bool, typer.Option("--judge/--no-judge", help="hold contenders to the contract first")
    ] = True,
    json: Annotated[Path | None, typer.Option(help="write the result to this file")] = None,
) -> None:
    """Race operators against torch and others, beside the least time that the machine allows.

    On a GPU kernels race; on a CPU the NumPy side does. Contenders are interleaved. A result is
    written after every problem, so that nothing is lost.
    """
    with plain_errors():
        from rich.progress import Progress

        from twofold.core import ops
        from twofold.core.bench import contenders, machine, problems, races

        device = "cuda" if ops.cuda_available() else "cpu"
        listed = problems.on_gpu() if device == "cuda" else problems.on_cpu()
        listed = _chosen(listed, operators)
        if quick:
            listed = [next(p for p in listed if p.operator == o) for o in _operators(listed)]
            seconds = min(seconds, 0.1)
        entered = {o: list(contenders.of(o, device, against or ())) for o in _operators(listed)}
        judged = races.Judge() if judge else lambda contender, problem: ""
        with machine.threads(threads), Progress(console=console, transient=True) as progress:
            task = progress.add_task("ceilings", total=len(listed))
            top = machine.ceilings(device, 0.2 if quick else 2.0)
            result: dict[str, Any] = {
                "ran_on": machine.ran_on(threads, device),
                "command": _command(operators, against, seconds, quick),
                "ceilings": top._asdict(),
                "gauges": {"before": machine.gauges()} if device == "cuda" else {},
                "races": [],
            }
            for problem in listed:
                progress.update(task, description=problem.name)
                result["races"] += races.run(
                    problem, entered[problem.operator], top, device, seconds, judged
                )
                write_json(json, {"bench": result})
                progress.advance(task)
            if device == "cuda":
                result["gauges"]["after"] = machine.gauges()
        result["until"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(json, {"bench": result})
        _show(result)


def _operators(listed: list[Any]) -> list[str]:
    return list(dict.fromkeys(problem.operator for problem in listed))


def _chosen(listed: list[Any], operators: list[str] | None) -> list[Any]:
    known = _operators(listed)
    for name in operators or ():
        if name not in known:
            raise ValueError(f"operator is {name!r}; it must be one of {', '.join(known)}")
    return [p for p in listed if not operators or p.operator in operators]


def _command(
    operators: list[str] | None, against: list[str] | None, seconds: float, quick: bool
) -> str:
    parts = ["twofold bench", *(operators or ()), *(f"--against {a}" for a in against or ())]
    return " ".join([*parts, *(["--quick"] if quick else [f"--seconds {seconds:g}"])])


def _show(result: dict[str, Any]) -> None:
    """Print a table of all races, the reasons of those that did not run, and the machine."""
    from rich.table import Table

    view = Table(box=None, pad_edge=False)
    for column in ("race", "pass", "contender"):
        view.add_column(column)
    for column in ("median ms", "p20", "p80", "GB/s", "TFLOP/s", "of limit", "÷ torch"):
        view.add_column(column, justify="right")
    reasons: dict[tuple[str, str, str], None] = {}
    for race in result["races"]:
        title = f"{race['operator']} {race['problem']} {race['dtype']}"
        for name, f in race["contenders"].items():
            view.add_row(
                title, race["pass"], name,
                *(f"{f[key]:.3f}" for key in ("median_ms", "p20_ms", "p80_ms")),
                f"{f['giga_bytes_per_second']:.1f}", f"{f['tera_operations_per_second']:.3f}",
                f"{f['share']:.0%}", f"{f['ratio']:.2f}",
            )  # fmt: skip
            title = ""
        for name, reason in race["reasons"].items():
            reasons[race["operator"], name, reason] = None
    console.print(view)
    for operator, name, reason in reasons:
        console.print(f"{operator}: {name}: {escaped(reason)}", highlight=False, soft_wrap=True)
    limit = result["ceilings"]
    console.print(
        f"limits measured in this run: {limit['bandwidth'] * 1e-9:.1f} GB/s copied, "
        f"{limit['rate'] * 1e-12:.3f} TFLOP/s of matrix products",
        highlight=False,
    )
    console.print(", ".join(f"{k} {v}" for k, v in result["ran_on"].items()), style="dim")
