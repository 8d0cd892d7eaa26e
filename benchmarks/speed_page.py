"""Write the figures of SPEED.md anew from the committed results.

python benchmarks/speed_page.py            rewrites what stands between the page's markers
python benchmarks/speed_page.py --check    exits with status 1 where that would change anything
"""

from __future__ import annotations

from collections.abc import Callable

import gpu_tables
import pages
from committed import elsewhere, ends, every, machine, newest, products, rows, source
from harness import RESULTS

PAGE = RESULTS.parent / "SPEED.md"
OURS = "twofold, NumPy"
LEAST_SHARE = 0.01  # of a step, for a part to be shown


def races(kind: str, heading: str) -> list[str]:
    """The races of a benchmark, and where they come from."""
    path, found = newest(kind)
    lines = [f"| {heading} | contender | median ms | ratio |", "|---|---|--:|--:|"]
    lines += rows(found["races"])
    made = f"`python benchmarks/bench_{kind}.py --save`, {source(path)}"
    lines += ["", f"{made}: {machine(found['ran_on'])}{products(found)}."]
    return lines + elsewhere(kind, OURS)


def operator_by_operator() -> list[str]:
    """The NumPy side's time as a multiple of torch's, from the least to the most of the sizes."""
    results = every("bench")
    lines = ["| NumPy ÷ torch eager | forward | backward |", "|---|--:|--:|"]
    races = [race for _, found in results for race in found["bench"]["races"]]
    for operator in dict.fromkeys(race["operator"] for race in races):
        cells = []
        for passes in (("forward", "forward and backward", "step"), ("backward",)):
            ratios = (
                race["contenders"]["twofold"]["ratio"]
                for race in races
                if race["operator"] == operator and race["pass"] in passes
            )
            cells.append(ends(ratios))
        lines.append(f"| {operator} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Cross-entropy is both passes, an optimizer a step.",
        *(
            f"`{found['bench']['command']} --json …`, {source(path)}: "
            f"{machine(found['bench']['ran_on'])}."
            for path, found in results
        ),
    ]


def bert() -> list[str]:
    """How fast a BERT is beside transformers' on PyTorch."""
    path, found = newest("bert")
    rates = ", ".join(f"{who} {n:.0f}" for who, n in found["sentences_per_second"].items())
    return [
        "| race | contender | median ms | ratio |",
        "|---|---|--:|--:|",
        *rows(found["races"], digits=0),
        "",
        f"Sentences a second: {rates}. `python benchmarks/bench_bert.py --save`, "
        f"{source(path)}: {machine(found['ran_on'])}{products(found)}.",
        *elsewhere("bert", OURS),
    ]


def profile() -> list[str]:
    """Where the time of a training step goes, the most first; and how long it waits for data."""
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
        f"Parts of at least {LEAST_SHARE:.0%}, {source(path)}. The step waits for its batch: "
        + ", ".join(f"{share['waited']:.1%} of its time ({race})" for race, share in waits.items())
        + ".",
    ]


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "steps": lambda: races("train_step", "training step"),
    "profile": profile,
    "predictions": lambda: races("inference", "prediction"),
    "bert": bert,
    "operators": operator_by_operator,
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
