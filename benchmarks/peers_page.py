"""Write PEERS.md from the committed result of `twofold verify peers`.

python benchmarks/peers_page.py            writes benchmarks/PEERS.md
python benchmarks/peers_page.py --check    exits with status 1 if that would change anything
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pages

from twofold.core.verify.peers.findings import BY_HAND

HERE = Path(__file__).resolve().parent
PAGE, RESULT = HERE / "PEERS.md", HERE / "results" / "peers.json"

KINDS = {
    "fault": "wrong by any reading, such as a wrong gradient, NaN, or access to memory not its own",
    "precision": "less accurate than float32 arithmetic with one rounding of each stored result "
    "allows",
    "undefined": "right only by relying on behaviour that the language leaves undefined",
    "unexplained": "not yet investigated",
}
# A note that only counts cases: how many were accepted, or refused and why.
COUNTS = re.compile(r"(mostly refused, .*: )?\d+ of \d+ cases were taken$|refused \d+ cases, ")


def result() -> dict[str, Any]:
    """Return the committed result."""
    found: dict[str, Any] = json.loads(RESULT.read_text())
    return found


def page() -> str:
    """Return the page."""
    found = result()
    peers, on = found["peers"], found["ran_on"]
    versions = {p["distribution"]: p["version"] for p in peers if p["version"]}
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join(
        [
            "# Other libraries before the same contracts",
            "",
            pages.wrapped(
                "Each function is judged as twofold's own are: by random cases against the "
                "derived error bounds, and by properties that need no reference (see "
                "[TRUST.md](TRUST.md)). Without a GPU, Triton kernels run in the strict "
                "interpreter. The bound is that of a kernel that computes in float32 and rounds "
                "each stored result once; a function that exceeds it may still be good enough "
                "for its purpose, and the reason given says what it does instead."
            ),
            "",
            pages.wrapped(
                f"`twofold verify peers --json benchmarks/results/{RESULT.name}` on "
                f"{on['device']}, Python {on['python']}, NumPy {on['numpy']}, Triton "
                f"{on['triton']}; {said}. This page is written by "
                f"`python benchmarks/{Path(__file__).name}`."
            ),
            "",
            *(f"- **{kind}**: {words}" for kind, words in KINDS.items()),
            "",
            *by_library(peers),
            "",
            "A function counts once, by the worst found in any precision; one that is judged in "
            "several ways counts once for each.",
            "",
            "| peer | operator | dtype | cases | forward | backward | properties | verdict |",
            "|---|---|---|--:|--:|--:|--:|---|",
            *(line for peer in peers for line in rows(peer)),
            "",
            "Forward and backward: the worst |computed − truth| ÷ bound. Properties: how many hold "
            "(to within the last bits).",
            "",
            "## What was found",
            "",
            *findings(peers),
            "## Found by hand",
            "",
            "What no contract checks:",
            "",
            *(item(f"{words}: {linked(script)}") for script, words in BY_HAND.items()),
            "",
            "## What definitions leave open",
            "",
            "| | ours | theirs |",
            "|---|---|---|",
            *conventions(found["ours"], peers),
            "",
            "## Not judged",
            "",
            *(item(f"{p['peer']} ({p['what']}): {p['missing']}") for p in peers if p["missing"]),
            *not_judged(peers),
            "",
            "## Refused cases",
            "",
            pages.wrapped(
                "How many of its cases a function took, and the first of those that it refused "
                "for each reason; a case refused in one form may have been taken in another. "
                "Functions not listed refused none."
            ),
            "",
            *refused(peers),
            "",
        ]
    )


def by_library(peers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table: how many functions of each library hold, and the worst found in the others."""
    kinds = [kind for kind in KINDS if any(kind == _worst(p) for p in peers)]
    yield f"| functions of | judged | hold | {' | '.join(kinds)} |"
    yield f"|---|--:|--:|{'--:|' * len(kinds)}"
    for library in dict.fromkeys(p["distribution"] for p in peers):
        judged = [p for p in peers if p["distribution"] == library and not p["missing"]]
        if judged:
            worst = [_worst(p) for p in judged]
            cells = (worst.count(kind) or "" for kind in ("", *kinds))
            name = f"{library} {judged[0]['version']}"
            yield f"| {name} | {len(judged)} | {' | '.join(map(str, cells))} |"


def _worst(peer: dict[str, Any]) -> str:
    """Return the worst kind of finding about a peer, "" if there is none."""
    found = {failure["kind"] for failure in peer["failures"]}
    return next((kind for kind in KINDS if kind in found), "")


def rows(peer: dict[str, Any]) -> Iterator[str]:
    """Return a line for each precision of a peer that was judged."""
    for row in peer["precisions"]:
        if row["missing"]:
            continue
        shares = (f"{row[p]:.2f}" if row[p] else "" for p in ("forward", "backward"))
        held = row["properties"] + row["bits"]
        cells = (
            peer["peer"],
            peer["operator"],
            row["precision"],
            row["cases"] or "",
            *shares,
            held or "",
            ", ".join(f"**{kind}**" for kind in row["kinds"]) or "holds",
        )
        yield f"| {' | '.join(map(str, cells))} |"


def item(words: str) -> str:
    """Return an item of a list, wrapped."""
    return pages.wrapped(f"- {words}", indent="  ")


def linked(script: str) -> str:
    """Return a link to a script that reproduces a finding."""
    return f"[{script}.py](peer_faults/{script}.py)"


def listed(names: Iterable[str]) -> str:
    """Return the names of peers, which contain commas, in one string."""
    return "; ".join(dict.fromkeys(names))


def findings(peers: list[dict[str, Any]]) -> Iterator[str]:
    """Return each reason with where it shows, its smallest inputs and reproductions."""
    reasons: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for peer in peers:
        for f in peer["failures"]:
            reasons.setdefault((f["kind"], f["reason"]), []).append((peer["peer"], f))
    for (kind, reason), failures in sorted(
        reasons.items(), key=lambda one: (list(KINDS).index(one[0][0]), one[1][0][0])
    ):
        names = listed(name for name, _ in failures)
        scripts = dict.fromkeys(f["reproduction"] for _, f in failures if f["reproduction"])
        said = f"**{kind}** ({names}): {reason or KINDS['unexplained']}."
        yield pages.wrapped(" ".join((said, ", ".join(map(linked, scripts)))))
        yield ""
        for name, script in dict.fromkeys((name, f["reproduction"]) for name, f in failures):
            found = [f for peer, f in failures if (peer, f["reproduction"]) == (name, script)]
            yield shown(name, found)
        yield ""


def shown(peer: str, failures: list[dict[str, Any]]) -> str:
    """Return the first of a peer's failures with one cause with its input, the others by name."""
    first, *others = failures
    where = ", ".join(filter(None, (first["precision"], first["output"])))
    of = f"{peer} ({where})" if where else peer
    line = f"- {of}: {' '.join(first['words'].split())}; `{first['again']}`"
    places: dict[str, list[str]] = {}
    for other in others:
        places.setdefault(other["output"], []).append(other["precision"])
    if not places:
        return line
    also = (f"{output} in {', '.join(precisions)}" for output, precisions in places.items())
    return f"{line}; also {'; '.join(also)}"


def not_judged(peers: list[dict[str, Any]]) -> Iterator[str]:
    """Return a line for each thing that was not judged, with the peers it concerns."""
    names: dict[str, list[str]] = {}
    for peer in peers:
        for note in peer["notes"]:
            if not COUNTS.match(note):
                names.setdefault(note, []).append(peer["peer"])
    yield from (item(f"{listed(of)}: {note}") for note, of in names.items())


def refused(peers: list[dict[str, Any]]) -> Iterator[str]:
    """Return how many cases each peer accepted, and below that what it refused."""
    names: dict[tuple[str, ...], list[str]] = {}
    for peer in peers:
        if counts := tuple(note.strip() for note in peer["notes"] if COUNTS.match(note)):
            names.setdefault(counts, []).append(peer["peer"])
    for (first, *others), of in names.items():
        yield f"- {listed(of)}: {first}"
        yield from (f"  - {other}" for other in others)


def conventions(ours: dict[str, str], peers: list[dict[str, Any]]) -> Iterator[str]:
    """Return a line for each question: our answer, and each answer with those who give it."""
    for words, answer in ours.items():
        given: dict[str, list[str]] = {}
        for peer in peers:
            if words in peer["conventions"]:
                given.setdefault(peer["conventions"][words], []).append(peer["peer"])
        theirs = "<br>".join(f"{said}: {listed(names)}" for said, names in given.items())
        yield f"| {words} | {answer} | {theirs} |"


def main() -> None:
    """Write the page, or check it."""
    pages.put(PAGE, page(), __file__)


if __name__ == "__main__":
    main()
