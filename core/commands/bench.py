"""`twofold bench`: operators raced against their peers."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from twofold.core.commands import options
from twofold.core.commands.common import (
    FAILED,
    Json,
    check_folder,
    console,
    escaped,
    plain_errors,
    write_json,
)


def command(
    operators: options.Operators = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="a module:function to race as well, as for twofold verify; no optimizers; may be "
            "repeated"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="seconds per pass and problem", min=0.0)] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="one problem each, few repeats")] = False,
    threads: Annotated[int, typer.Option(help="threads of each contender, on a CPU", min=1)] = 2,
    judge: Annotated[
        bool,
        typer.Option("--judge/--no-judge", help="check contracts first, yours in its own process"),
    ] = True,
    growth: Annotated[
        bool, typer.Option("--growth", help="instead, race attention over length, batch and width")
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            help="seconds after which no race is begun; operators take turns, and those left are "
            "listed",
            min=0.0,
        ),
    ] = None,
    predict: Annotated[
        str | None,
        typer.Option(help="no race: least times on sm_80, sm_90a, H200, sm_100a or gfx942"),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="draw the result into this folder")] = None,
    json: Json = None,
) -> None:
    """Race operators against torch and others, beside the least time that the machine allows.

    On a GPU the kernels race, on a CPU the NumPy side. Contenders take turns. The result is written
    after every problem (with --growth after every axis), so that nothing is lost. The exit status
    is 1 if a function given by --against is wrong, or can be raced nowhere.
    """
    began = time.perf_counter()
    with plain_errors():
        from twofold.core.bench import machine, problems

        check_folder("--plots", plots)
        if predict is not None:
            _refuse("--predict", against=against, growth=growth, plots=plots, limit=limit)
            least = _least(_chosen(problems.on_gpu(), operators), *machine.published(predict))
            write_json(json, {"predict": least})
            _show_least(least)
            return
        if growth:
            _refuse("--growth", against=against, operators=operators)
        from twofold.core import ops
        from twofold.core.bench import apart, races
        from twofold.core.verify.alone import LIMIT
        from twofold.core.verify.foreign import apart as foreign_apart

        device = "cuda" if ops.cuda_available() else "cpu"
        listed = _chosen(problems.on_gpu() if device == "cuda" else problems.on_cpu(), operators)
        for name in against or ():
            rest = LIMIT if limit is None else began + limit - time.perf_counter()
            foreign_apart.check_import(name, max(1.0, min(rest, LIMIT)))
        if quick:
            listed = [next(p for p in listed if p.operator == o) for o in _operators(listed)]
            seconds = min(seconds, 0.1)
        if limit is not None:
            listed = _in_turns(listed)
        result: dict[str, Any] = {
            "ran_on": machine.ran_on(threads, device),
            "command": _command(operators, against, seconds, quick, judge, growth),
        }

        ends = math.inf if limit is None else began + limit

        def kept(name: str, found: Iterable[dict[str, Any]]) -> None:
            for one in found:
                result[name] = [*result.get(name, ()), one]
                write_json(json, {"bench": result})

        trials = apart.Apart(device)
        with machine.threads(threads), machine.gauged(result, device), trials:
            if growth:
                _grow(kept, device, seconds, quick, ends)
            else:
                result["ceilings"] = machine.ceilings(device, 0.2 if quick else 2.0)._asdict()
                judged = races.Judge(trials) if judge else lambda contender, problem: ""
                left = _race(
                    kept, listed, against or (), result["ceilings"], device, seconds, judged, ends
                )
                if left:
                    result["left"] = left
        write_json(json, {"bench": result})
        _show(result)
        if plots is not None:
            from twofold.core.bench.plots import draw

            for path in draw(result, plots):
                console.print(f"drawn: {path}", highlight=False)
    if _failed(result.get("races", ()), against or ()):
        raise typer.Exit(FAILED)


def _refuse(mode: str, **options: Any) -> None:
    """Refuse options that mean nothing with a mode's option."""
    for name, given in options.items():
        if given:
            named = f"--{name}" if name != "operators" else name
            raise ValueError(f"{named} is given; it must not be beside {mode}")


def _failed(races: Sequence[dict[str, Any]], against: Sequence[str]) -> bool:
    """Whether one of the user's functions is wrong anywhere, or raced nowhere."""
    wrong = {name for race in races for name in race["wrong"]}
    raced = {name for race in races for name in race["contenders"]}
    return bool(races) and any(name in wrong or name not in raced for name in against)


Keep = Callable[[str, Iterable[dict[str, Any]]], None]


def _race(
    kept: Keep,
    listed: list[Any],
    against: Sequence[str],
    ceilings: dict[str, float],
    device: str,
    seconds: float,
    judged: Any,
    ends: float,
) -> list[str]:
    """Race every problem, with a progress bar; return those for which no time was left."""
    from rich.progress import Progress

    from twofold.core.bench import contenders, races
    from twofold.core.bench.costs import Ceilings
    from twofold.core.bench.settings import Settings

    settings = Settings()  # before other people's code is imported
    entered = {o: list(contenders.of(o, device, against)) for o in _operators(listed)}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(listed))
        for done, problem in enumerate(listed):
            if time.perf_counter() > ends:
                return [p.name for p in listed[done:]]
            progress.update(task, description=problem.name)
            rivals = entered[problem.operator]
            limits = Ceilings(**ceilings)
            found = races.run(problem, rivals, limits, device, seconds, judged, settings)
            kept("races", found)
            progress.advance(task)
    return []


def _grow(kept: Keep, device: str, seconds: float, quick: bool, ends: float) -> None:
    from twofold.core.bench.growth import curves

    with console.status("growth …"):
        kept("growth", curves(device, seconds, quick, ends))


def _operators(listed: list[Any]) -> list[str]:
    return list(dict.fromkeys(problem.operator for problem in listed))


def _in_turns(listed: list[Any]) -> list[Any]:
    """Return problems operator by operator in turn: where time runs out, each has had its first."""
    each = ([p for p in listed if p.operator == o] for o in _operators(listed))
    return [p for turn in itertools.zip_longest(*each) for p in turn if p is not None]


def _chosen(listed: list[Any], operators: list[str] | None) -> list[Any]:
    known = _operators(listed)
    for name in operators or ():
        if name not in known:
            raise ValueError(f"operator is {name!r}; it must be one of {', '.join(known)}")
    return [p for p in listed if not operators or p.operator in operators]


def _command(
    operators: list[str] | None,
    against: list[str] | None,
    seconds: float,
    quick: bool,
    judge: bool,
    growth: bool,
) -> str:
    parts = ["twofold bench", *(operators or ()), *(f"--against {a}" for a in against or ())]
    parts += [*(["--growth"] if growth else []), *([] if judge else ["--no-judge"])]
    return " ".join([*parts, *(["--quick"] if quick else [f"--seconds {seconds:g}"])])


def _show(result: dict[str, Any]) -> None:
    """Print a table of all races or curves, with the machine."""
    if "races" in result:
        _show_races(result)
    for name in result.get("left", ()):
        console.print(f"no time left for {name}", highlight=False, soft_wrap=True)
    for curve in result.get("growth", ()):
        memory = curve["memory_exponent"]
        console.print(
            f"{curve['contender']} {curve['pass']} over {curve['axis']}, {curve['sizes'][0]} to "
            f"{curve['sizes'][-1]}: time ∝ n^{curve['time_exponent']:.2f}"
            + (f", memory ∝ n^{memory:.2f}" if memory is not None else ""),
            highlight=False,
        )
    console.print(", ".join(f"{k} {v}" for k, v in result["ran_on"].items()), style="dim")


def _least(listed: list[Any], chip: str, ceilings: Any) -> dict[str, Any]:
    """Return the least that each pass must move and compute on a chip, and the time it takes."""
    passes = [
        {
            "problem": problem.name,
            "pass": name,
            "bytes": cost.bytes,
            "operations": cost.operations,
            "least_ms": ceilings.least(cost) * 1e3,
        }
        for problem in listed
        for name, cost in problem.costs.items()
    ]
    return {"chip": chip, "published": ceilings._asdict(), "passes": passes}


def _show_least(least: dict[str, Any]) -> None:
    """Print what `_least` returned."""
    console.print(
        f"[bold]{'problem':64} {'pass':21} {'MB':>9} {'GFLOP':>10} {'least ms':>9}[/bold]",
        soft_wrap=True,
    )
    for one in least["passes"]:
        console.print(
            f"{one['problem']:64} {one['pass']:21} {one['bytes'] * 1e-6:9.2f} "
            f"{one['operations'] * 1e-9:10.2f} {one['least_ms']:9.4f}",
            highlight=False,
            soft_wrap=True,
        )
    peak = least["published"]
    console.print(
        f"{least['chip']}, published: {peak['bandwidth'] * 1e-12:.2f} TB/s, "
        f"{peak['rate'] * 1e-12:.0f} TFLOP/s; nothing was measured. What the compiler makes of "
        "the kernels: twofold verify compile",
        highlight=False,
        soft_wrap=True,
    )


def _show_races(result: dict[str, Any]) -> None:
    """Print all races, why contenders did not run, and the limits."""
    from rich.table import Table

    view = Table(box=None, pad_edge=False)
    for column in ("race", "pass", "contender"):
        view.add_column(column)
    on_gpu = "gpu" in result["ran_on"]
    numbers = ("median ms", "p20", "p80", "GB/s", "TFLOP/s", "of limit", "÷ torch")
    for column in (*numbers, *(("host ms",) if on_gpu else ())):
        view.add_column(column, justify="right")
    reasons: dict[tuple[str, str, str], None] = {}
    for race in result["races"]:
        title = f"{race['operator']} {race['problem']} {race['dtype']}"
        for name, f in race["contenders"].items():
            view.add_row(
                title, race["pass"], name,
                *(f"{f[key]:.3f}" for key in ("median_ms", "p20_ms", "p80_ms")),
                f"{f['giga_bytes_per_second']:.1f}", f"{f['tera_operations_per_second']:.3f}",
                f"{f['share']:.0%}", f"{f['ratio']:.2f}" if "ratio" in f else "[red]WRONG[/red]",
                *((f"{f['host_ms']:.3f}",) if on_gpu else ()),
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
