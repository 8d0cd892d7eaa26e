"""How many small faults a contract sees: every mutant of an operator is judged by its cases.

The mutants are syntactic ones (`mutation`), and faults that shipped elsewhere (`faults`).
A mutant that passes every case (`trial`) survives: either the contract has a gap, or the change
cannot be seen, and `equivalents` says why.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from twofold.core.ops import OPERATORS, Side
from twofold.core.verify import equivalents, faults, mutation, report
from twofold.core.verify.mutation import Mutant
from twofold.core.verify.trial import KILLED, SURVIVED, TIMEOUT, Trial, Verdict

__all__ = ["BEYOND", "EQUIVALENT", "KILLED", "MISJUDGED", "SURVIVED", "TIMEOUT", "Trial", "Verdict"]
__all__ += ["count", "judge", "of_operator", "sample"]

# On the list, because no test can see it or no case goes so far; on the list, but killed.
EQUIVALENT, BEYOND, MISJUDGED = "equivalent", "beyond", "misjudged"
FOLDERS = {"triton": "kernels", "reference": "reference"}
# Functions that are run by the contract of another operator than their file's.
ELSEWHERE = {
    ("kernels/dropout.py", "attention_keep"): "attention",
    ("kernels/attention_parts.py", "turned"): "attention_fp8",
    ("reference/normal.py", "density"): "activation",
    # With a scale and dropout, which embedding does not have.
    ("reference/embedding.py", "scatter_add"): "positional_encoding",
    ("kernels/embedding.py", "add_places"): "positional_encoding",
    ("kernels/embedding.py", "chunk_kernel"): "positional_encoding",
    ("kernels/embedding.py", "row_kernel"): "positional_encoding",
}
# What the interpreter does not run (tests have a simulated machine for it); and a model of how long
# products take: whatever it chooses computes the same.
LEFT_OUT = ("attention_hopper", "attention_hopper_kernel", "linear_tiles")
# Where the gradient is computed, if not in `backward`.
GRADIENT = {"softmax_cross_entropy": "forward"}


def of_operator(operator: str, side: str) -> list[Mutant]:
    """Return the mutants of an operator's kernels, or of its backward functions in NumPy.

    An operator without a kernel of its own (multi-head attention) has its backward function mutated
    on both sides. The faults of the catalogue follow.
    """
    folder = FOLDERS[side]
    spec = importlib.util.find_spec(f"twofold.{folder}.{operator}")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin)
    top = path.parent.parent
    mine = [path]
    if side == "triton":
        parts = sorted(path.parent.glob(f"{operator}_*.py"))
        mine += [
            part for part in parts if _operator(part.stem) == operator and part.stem not in LEFT_OUT
        ]
    theirs = [
        top / file
        for (file, _), owner in ELSEWHERE.items()
        if owner == operator and file.startswith(folder)
    ]
    found = []
    for part in dict.fromkeys((*mine, *theirs)):
        source, file = part.read_text(), f"{part.parent.name}/{part.name}"
        chosen: mutation.Chosen = mutation.jitted
        if side != "triton" or "@triton.jit" not in source:
            chosen = mutation.differentiates(source, GRADIENT.get(operator, "backward"))
        owner = operator if part in mine else ""
        found += [
            mutant
            for mutant in mutation.mutants(source, file, chosen)
            if ELSEWHERE.get((file, mutant.function), owner) == operator
        ]
    return [*found, *faults.mutants(operator, top, folder)]


def _operator(stem: str) -> str:
    """Return the operator that a file belongs to: the longest name that its own begins with."""
    mine = [o for o in OPERATORS if stem == o or stem.startswith(f"{o}_")]
    return max(mine, key=len, default="")


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """Draw `size` mutants, in the file's order.

    Each function contributes about equally many, and within a function the kinds take turns.
    """
    rng = random.Random(seed)
    shuffled = rng.sample(list(mutants), len(mutants))
    kinds: Counter[tuple[str, str, str]] = Counter()
    functions: dict[tuple[str, str], list[tuple[int, Mutant]]] = {}
    for mutant in shuffled:
        kind = (mutant.file, mutant.function, mutant.kind)
        kinds[kind] += 1  # the n-th of its kind comes in the n-th turn
        functions.setdefault(kind[:2], []).append((kinds[kind], mutant))
    queues = [
        [m for _, m in sorted(group, key=lambda x: x[0], reverse=True)]
        for group in functions.values()
    ]
    drawn: list[Mutant] = []
    while len(drawn) < min(size, len(mutants)):
        drawn += [queue.pop() for queue in queues if queue]
    chosen = set(drawn[:size])
    return [m for m in mutants if m in chosen]


def judge(
    operator: str,
    side: Side,
    *,
    examples: int,
    size: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    listed: bool = False,
    observe: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Judge an operator's mutants on a side, or a sample of `size`, `jobs` at a time.

    Mutants on the list of equivalents are not run, unless `listed`: then they must survive, and
    one that does not is "misjudged". `observe` is called with each verdict.
    """

    def on_the_list(reason: str) -> str:
        return BEYOND if equivalents.is_beyond(reason) else EQUIVALENT

    found = of_operator(operator, side.name)
    if size is not None:
        found = sample(found, size, seed)
    reasons = {m: reason for m in found if (reason := equivalents.reason(m))}
    verdicts = [Verdict(m, on_the_list(why), why, 0.0) for m, why in reasons.items() if not listed]
    if ahead := [m for m in found if listed or m not in reasons]:
        trial = Trial(report.contract(operator), side, examples)
        for verdict in trial.verdicts(ahead, jobs):
            if verdict.mutant in reasons:
                survived = verdict.fate == SURVIVED
                by = reasons[verdict.mutant] if survived else verdict.by
                fate = on_the_list(by) if survived else MISJUDGED
                verdict = dataclasses.replace(verdict, fate=fate, by=by)
            verdicts.append(verdict)
            observe(verdict)
    order = {m: i for i, m in enumerate(found)}
    return sorted(verdicts, key=lambda v: order[v.mutant])


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many mutants met each fate; a timeout also counts as killed."""
    fates = [v.fate for v in verdicts]
    known = (KILLED, TIMEOUT, EQUIVALENT, BEYOND, MISJUDGED, SURVIVED)
    counts = {fate: fates.count(fate) for fate in known}
    counts[KILLED] += counts[TIMEOUT]
    return {"mutants": len(fates), **counts}
