"""Committed results: the newest of a kind, and in words what it ran on and what command made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
from harness import RESULTS

Result = tuple[Path, dict[str, Any]]
Race = dict[str, Any]


def newest(kind: str, folder: Path = RESULTS) -> Result:
    """Return path and content of the latest result of a kind: names end with a date."""
    return _results(kind, folder)[0]


def every(kind: str, folder: Path = RESULTS) -> list[Result]:
    """Return path and content of the latest result of each machine, the latest first.

    Those for which OpenBLAS was told which kernels to use come last: their names are longer.
    Each result is taken whole: earlier races of its machine are not added. `raced` adds them.
    """
    return [results[0] for results in of_machines(kind, folder)]


def of_machines(kind: str, folder: Path = RESULTS) -> list[list[Result]]:
    """Return the results of a kind, those of a machine together, the latest first.

    A machine is a GPU, or a processor together with the kernels that OpenBLAS uses on it.
    """
    found: dict[tuple[str, ...], list[Result]] = {}
    for path, result in _results(kind, folder):
        on = ran_on(result)
        kernels = on.get("blas", "").split()[-1:]
        key = (on["gpu"],) if "gpu" in on else (on["cpu"], *kernels)
        found.setdefault(key, []).append((path, result))
    return list(found.values())


def _results(kind: str, folder: Path) -> list[Result]:
    paths = sorted(folder.glob(f"{kind}-*.json"), key=lambda p: (len(p.stem), p.stem))
    paths.sort(key=lambda p: p.stem[-10:], reverse=True)
    return [(path, json.loads(path.read_text())) for path in paths]


class Raced(NamedTuple):
    """Races of one machine, and the results they are from, the latest first."""

    results: list[Result]
    races: list[Race]


def raced(
    kind: str,
    folder: Path,
    races: Callable[[dict[str, Any]], Iterable[Race]],
    named_by: Sequence[str],
) -> list[Raced]:
    """Return each machine's races, each race from the latest result that has it.

    A result may cover only some races, such as one operator's, or be cut short by a time limit:
    its races replace the same ones of older results, and the others stay as they were.

    Args:
        kind: of result.
        folder: where they lie.
        races: returns those of a result.
        named_by: the fields by which two races are the same.
    """
    found = []
    for results in of_machines(kind, folder):
        kept: dict[tuple[Any, ...], Race] = {}
        used = []
        for path, result in results:
            new = {tuple(race.get(n) for n in named_by): race for race in races(result)}
            if new.keys() - kept.keys():
                used.append((path, result))
            kept = new | kept
        if kept:
            found.append(Raced(used, list(kept.values())))
    return found


def source(path: Path) -> str:
    """Say which result figures are from; one outside the results folder is named in full."""
    root = RESULTS.parent.parent
    return f"from `{path.relative_to(root) if path.is_relative_to(root) else path}`"


def ran_on(found: dict[str, Any]) -> dict[str, Any]:
    """Return the machine and versions of a result, including one of `twofold bench`."""
    return dict(found["ran_on"] if "ran_on" in found else found["bench"]["ran_on"])


def machine(on: dict[str, Any]) -> str:
    """Say in words what a result ran on."""
    return ", ".join(_phrases(on))


def machines(found: Iterable[dict[str, Any]]) -> str:
    """Say in words what results ran on, naming what all have in common once."""
    each = list(dict.fromkeys(_phrases(ran_on(result)) for result in found))
    if len(each) == 1:
        return ", ".join(each[0])
    common = [phrase for phrase in each[0] if all(phrase in other for other in each)]
    apart = "; ".join(", ".join(p for p in phrases if p not in common) for phrases in each)
    return f"{apart}; all with {', '.join(common)}" if common else apart


def _phrases(on: dict[str, Any]) -> tuple[str, ...]:
    driver = (f"driver {on['driver']}",) if "driver" in on else ()
    blas = f" with {on['blas']}" if "blas" in on else ""
    return (
        on.get("gpu", on["cpu"]), *driver, f"{on['threads']} threads", f"Python {on['python']}",
        f"NumPy {on['numpy']}{blas}", f"PyTorch {on['torch']}", f"Triton {on['triton']}",
        on["date"],
    )  # fmt: skip


def made(found: dict[str, Any], program: str) -> str:
    """Say which command made a result; if it names none, what else it says about that.

    That is its note or, for whole models, how often each contender was called.
    """
    if commands := list(dict.fromkeys(_commands(found))):
        return "; ".join(f"`{command}`" for command in commands)
    if "note" in found:
        return f"“{found['note'].rstrip('.')}”"
    said = f"`{program}`, whose result does not say with which options"
    calls = [times["calls"] for of in found.get("races", {}).values() for times in of.values()]
    return f"{said} ({min(calls)} to {max(calls)} calls of each contender)" if calls else said


def _commands(found: dict[str, Any]) -> Iterator[str]:
    """Yield the commands of a result and of its parts."""
    for name, value in found.items():
        if name == "command" and isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _commands(value)


def products(found: dict[str, Any]) -> str:
    """Say how fast each side's library multiplied in the same run."""
    rates = found.get("product_rates")
    return f"; {harness.multiply(rates)}" if rates else ""


def elsewhere(kind: str, ours: str) -> list[str]:
    """Return a table of our ratios on other machines and with other OpenBLAS kernels."""
    others = every(kind)[1:]
    if not others:
        return []
    races = list(dict.fromkeys(race for _, found in others for race in found["races"]))
    lines = [
        f"| ratio of “{ours}” on | Gflop/s: {', '.join(others[0][1]['product_rates'])} "
        f"| {' | '.join(races)} |",
        "|---|--:|" + "--:|" * len(races),
    ]
    for path, found in others:
        on, rates = found["ran_on"], found["product_rates"].values()
        ratios = (found["races"].get(race, {}).get(ours, {}).get("ratio") for race in races)
        cells = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        each = ", ".join(f"{rate * 1e-9:.0f}" for rate in rates)
        lines.append(
            f"| [{on['cpu']}, {on['blas']}](results/{path.name}) | {each} | {' | '.join(cells)} |"
        )
    return ["", *lines]


def rows(races: Mapping[str, Any], digits: int = 2) -> Iterator[str]:
    """Yield a line for each contender of each race: median in milliseconds, and ratio."""
    for race, contenders in races.items():
        for who, times in contenders.items():
            ratio = f"{times['ratio']:.2f}" if is_to_another(contenders) else ""
            yield f"| {race} | {who} | {times['median_ms']:.{digits}f} | {ratio} |"


def is_to_another(contenders: Mapping[str, Any]) -> bool:
    """Return whether a race's ratios are to another contender's time than ours."""
    return any(
        times.get("ratio") == 1.0 and not who.startswith("twofold")
        for who, times in contenders.items()
    )


def ends(ratios: Iterable[float]) -> str:
    """Return the least and the most, in words."""
    found = sorted(ratios)
    return " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (*found[:1], *found[-1:])))
