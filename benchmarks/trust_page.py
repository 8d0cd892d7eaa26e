"""Write the figures in TRUST.md: how near kernels come to their bounds, which faults are caught.

python benchmarks/trust_page.py            rewrites what is between the page's markers
python benchmarks/trust_page.py --check    exits with status 1 if that would change anything
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pages
from committed import source
from harness import RESULTS

PAGE = RESULTS.parent / "TRUST.md"
TIGHTNESS, MUTANTS = RESULTS / "tightness.json", RESULTS / "mutants.json"


def tightness() -> str:
    """Return how much of their bounds the kernels use, by operator and precision."""
    found = json.loads(TIGHTNESS.read_text())["tightness"]
    rows = found["rows"]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = [
        f"| error ÷ bound | {' | '.join(precisions)} | undecided | outside |",
        "|---|" + "--:|" * (len(precisions) + 2),
    ]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        mine = [row for row in rows if row["operator"] == operator]
        cells = []
        for precision in precisions:
            some = [row for row in mine if row["precision"] == precision]
            medians = (
                f"{sorted(row[name] for row in some)[len(some) // 2]:.4f}"
                for name in ("median", "likely_median")
                if some
            )
            cells.append(" · ".join(dict.fromkeys(medians)))
        undecided = sum(row["vacuous"] * row["elements"] for row in mine)
        outside = sum(row["violations"] + row["likely_violations"] for row in mine)
        share = undecided / sum(row["elements"] for row in mine)
        lines.append(f"| {operator} | {' | '.join(cells)} | {share:.1%} | {outside} |")
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    lines += [
        "",
        "Each figure is the median over outputs of the median over elements; after the dot, the "
        "same for the probabilistic bound, where it differs. "
        f"{sum(row['elements'] for row in rows):,} elements; the largest error is "
        f"{max(row['worst'] for row in rows):.3f} of its bound. `twofold verify tightness --json "
        f"…`, {source(TIGHTNESS)}: {found['side']}, {versions}.",
    ]
    return "\n".join(lines)


def mutants() -> str:
    """Return how many of the small faults the contracts catch."""
    found = json.loads(MUTANTS.read_text())["mutants"]
    columns = {"mutants": "mutants", "killed": "killed", "equivalent": "equivalent"}
    columns |= {"beyond": "beyond these cases", "survived": "survived"}
    # Older results count those beyond the cases among the equivalent.
    fates = [name for name in columns if all(name in row for row in found["operators"])]
    lines = [
        f"| operator | {' | '.join(columns[fate] for fate in fates)} |",
        f"|---|{'--:|' * len(fates)}",
    ]
    names = dict.fromkeys(row["operator"] for row in found["operators"])
    for name, operators in (*((n, {n}) for n in names), ("**all**", set(names))):
        rows = [row for row in found["operators"] if row["operator"] in operators]
        lines.append(
            f"| {name} | " + " | ".join(str(sum(r[f] for r in rows)) for f in fates) + " |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines += [
        "",
        f"`{found['command']} --json …`, {source(MUTANTS)}: {found['seconds']} s with "
        f"{found['jobs']} processes, {versions}. *Killed*: caught by a contract. *Equivalent*: no "
        "input can show a difference. *Beyond these cases*: would show only in cases too large to "
        "run, mostly of more than 2³¹ elements. Each mutant of these two kinds is listed with its "
        "reason in [core/verify/equivalents](../core/verify/equivalents).",
    ]
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[], str]] = {"tightness": tightness, "mutants": mutants}


def main() -> None:
    """Write the page, or check it."""
    pages.put(PAGE, pages.filled(PAGE, SECTIONS), __file__)


if __name__ == "__main__":
    main()
