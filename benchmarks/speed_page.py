"""Write the figures in SPEED.md from the committed results.

python benchmarks/speed_page.py            rewrites what is between the page's markers
python benchmarks/speed_page.py --check    exits with status 1 if that would change anything
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_tables
import pages
import raced
from committed import elsewhere, ends, every, machine, made, newest, products, ran_on, rows, source
from harness import OF_GPUS, RESULTS

PAGE = RESULTS.parent / "SPEED.md"
OURS = "twofold, NumPy"
LEAST_SHARE = 0.01  # least share of a step for a part to be shown


def races(kind: str, heading: str) -> list[str]:
    """Return the races of a benchmark, and where they come from."""
    path, found = newest(kind)
    lines = [f"| {heading} | contender | median ms | ratio |", "|---|---|--:|--:|"]
    lines += rows(found["races"])
    lines += ["", f"{from_what(kind, path, found)}."]
    return lines + elsewhere(kind, OURS)


def from_what(kind: str, path: Path, found: dict[str, Any]) -> str:
    """Say which command made a result of whole models, where it lies and what it ran on."""
    how = made(found, f"benchmarks/bench_{kind}.py")
    return f"{how}, {source(path)}: {machine(found['ran_on'])}{products(found)}"


def operator_by_operator() -> list[str]:
    """Return the NumPy side's time as a multiple of torch's, from least to most over the sizes."""
    machines = raced.operators()
    lines = ["| NumPy ÷ torch | forward | backward |", "|---|--:|--:|"]
    races = [race for each in machines for race in each.races]
    for operator in dict.fromkeys(race["operator"] for race in races):
        cells = (
            ends(raced.ratios(raced.of(races, operator, *passes)))
            for passes in (raced.FIRST, raced.BACKWARD)
        )
        lines.append(f"| {operator} | {' | '.join(cells)} |")
    lines += ["", raced.PASSES]
    for each in machines:
        for path, found in each.results:
            on = machine(ran_on(found))
            lines.append(f"`{found['bench']['command']} --json …`, {source(path)}: {on}.")
        lines += raced.notes(each.races)
    return lines


def growth() -> list[str]:
    """Return how attention's time and memory grow: exponents fitted to the highest sizes."""
    results = [newest("growth"), *every("growth", OF_GPUS)]
    return [line for result in results for line in (*_growth(*result), "")][:-1]


def _growth(path: Path, found: dict[str, Any]) -> list[str]:
    curves = found["bench"]["growth"]
    who = list(dict.fromkeys(curve["contender"] for curve in curves))
    lines = [
        f"| attention, n | {' | '.join(f'{name}, time ∝ n^' for name in who)} | memory ∝ n^ |",
        "|---|" + "--:|" * (len(who) + 1),
    ]
    for axis, pass_ in dict.fromkeys((curve["axis"], curve["pass"]) for curve in curves):
        here = {c["contender"]: c for c in curves if (c["axis"], c["pass"]) == (axis, pass_)}
        sizes = here[who[0]]["sizes"]
        times = (f"{here[n]['time_exponent']:.2f}" if n in here else "" for n in who)
        counted = [c["memory_exponent"] for c in here.values() if c["memory_exponent"] is not None]
        memory = ", ".join(f"{x:.2f}" for x in counted)
        lines.append(
            f"| {axis}, {sizes[0]} to {sizes[-1]}, {pass_} | {' | '.join(times)} | {memory} |"
        )
    on = machine(ran_on(found))
    said = f"`{found['bench']['command']} --json … --plots …`, {source(path)}: {on}."
    on_gpu = "gpu" in ran_on(found)
    of = " and ".join(who) if on_gpu else f"{who[0]}; torch's is not counted on a CPU"
    return [*lines, "", f"Memory is that of {of}. {said}"]


def bert() -> list[str]:
    """Return how fast a BERT is beside transformers' on PyTorch."""
    path, found = newest("bert")
    rates = ", ".join(f"{who} {n:.0f}" for who, n in found["sentences_per_second"].items())
    return [
        "| race | contender | median ms | ratio |",
        "|---|---|--:|--:|",
        *rows(found["races"], digits=0),
        "",
        f"Sentences per second: {rates}. {from_what('bert', path, found)}.",
        *elsewhere("bert", OURS),
    ]


def profile() -> list[str]:
    """Return where a training step's time goes, the most first, and how long it waits for data."""
    path, found = newest("train_step")
    races, shares = list(found["profile"]), list(found["profile"].values())
    parts = {part: [of.get(part, 0.0) for of in shares] for of in shares for part in of}
    shown = sorted(parts.items(), key=lambda item: -max(item[1]))
    waits = found["share_of_the_step_for_its_batch"]
    return [
        f"| share of the step | {' | '.join(races)} |",
        "|---|" + "--:|" * len(races),
        *(
            f"| {part} | {' | '.join(f'{share:.1%}' for share in of)} |"
            for part, of in shown
            if max(of) >= LEAST_SHARE
        ),
        "",
        f"Parts of at least {LEAST_SHARE:.0%}, {source(path)}. The step waits for its batch for "
        + ", ".join(f"{share['waited']:.1%} of its time ({race})" for race, share in waits.items())
        + ".",
    ]


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "steps": lambda: races("train_step", "training step"),
    "profile": profile,
    "predictions": lambda: races("inference", "prediction"),
    "bert": bert,
    "operators": operator_by_operator,
    "growth": growth,
    "gpu attention": gpu_tables.attention,
    "gpu operators": gpu_tables.operators,
    "gpu steps": gpu_tables.steps,
    "gpu accuracy": gpu_tables.accuracy,
}


def main() -> None:
    """Write the page, or check it."""
    sections = {name: lambda of=of: "\n".join(of()).rstrip() for name, of in SECTIONS.items()}
    pages.put(PAGE, pages.filled(PAGE, sections), __file__)


if __name__ == "__main__":
    main()
