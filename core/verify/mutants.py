"""How many small faults a contract sees: every mutant of an operator is judged by its cases.

Everything slow is done once: torch, triton and hypothesis are imported, the cases drawn, their
truths computed and each case timed on the code as it is. Then a process is forked for each mutant;
it loads the changed file in the place of the right one and runs the cases, cheapest first, until
one is broken. A mutant that keeps every case survives: the contract has a gap, or nothing about
the change can be seen, and `equivalents` says why.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import importlib.util
import json
import linecache
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.core.ops import Side
from twofold.core.verify import equivalents, mutation, report
from twofold.core.verify.contract import Contract, Violation, drawn, fitting, hold
from twofold.core.verify.mutation import Mutant

KILLED, TIMEOUT, SURVIVED, EQUIVALENT = "killed", "timeout", "survived", "equivalent"
FOLDERS = {"triton": "kernels", "reference": "reference"}
# Functions that another operator's contract runs than that of their file.
ELSEWHERE = {("kernels/dropout.py", "attention_keep"): "attention"}


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        mutant: the fault.
        fate: "killed" by a fault found, "timeout" (it did not end: killed too), "survived", or
            "equivalent": it stands on the list, and is not run.
        by: what was found, or the reason on the list.
        seconds: how long that took.
    """

    mutant: Mutant
    fate: str
    by: str
    seconds: float


def of_operator(operator: str, side: str) -> list[Mutant]:
    """Return the mutants of an operator's kernels, or of its backward functions in NumPy."""
    folder = FOLDERS[side]
    spec = importlib.util.find_spec(f"twofold.{folder}.{operator}")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin)
    mine, theirs, found = [path], [], []
    if side == "triton":
        mine += sorted(path.parent.glob(f"{operator}_*.py"))
        top = path.parent.parent
        theirs = [top / file for (file, _), owner in ELSEWHERE.items() if owner == operator]
    for part in dict.fromkeys((*mine, *theirs)):
        source, file = part.read_text(), f"{part.parent.name}/{part.name}"
        chosen = mutation.jitted if side == "triton" else mutation.differentiates(source)
        owner = operator if part in mine else ""
        found += [
            mutant
            for mutant in mutation.mutants(source, file, chosen)
            if ELSEWHERE.get((file, mutant.function), owner) == operator
        ]
    return found


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """Draw `size` mutants, from every function about as many, in the order of the file."""
    rng = random.Random(seed)
    groups: dict[tuple[str, str], list[Mutant]] = {}
    for mutant in mutants:
        groups.setdefault((mutant.file, mutant.function), []).append(mutant)
    for group in groups.values():
        rng.shuffle(group)
    drawn: list[Mutant] = []
    while len(drawn) < min(size, len(mutants)):
        drawn += [group.pop() for group in groups.values() if group]
    chosen = set(drawn[:size])
    return [m for m in mutants if m in chosen]


class Trial:
    """A contract's cases on a side, made ready for many mutants.

    Args:
        contract: says what is right.
        side: what the mutants are of. In the interpreter, enter `strict_interpreter` first.
        examples: how many cases are drawn beside the pinned ones.

    Raises:
        ValueError: the side is a GPU's.
        Violation: the side leaves its contract as it is.
    """

    def __init__(self, contract: Contract, side: Side, examples: int) -> None:
        if side.device == "cuda":
            raise ValueError("CUDA does not outlive a fork; set TRITON_INTERPRET=1 for mutants")
        self.side = side
        # A mutant changes neither a case's inputs nor what is true of them.
        made = functools.cache(contract.inputs)
        truths = functools.cache(lambda case: contract.truth(case, made(case)))
        self.contract = dataclasses.replace(
            contract, inputs=made, truth=lambda case, given: truths(case)
        )
        cases = [*contract.pinned, *drawn(contract, examples)]
        timed = []
        for case in dict.fromkeys(fitting(side, case) for case in cases):
            start = time.process_time()
            hold(self.contract, side, case)
            timed.append((time.process_time() - start, case))
        self.cases = sorted(timed, key=lambda x: x[0])
        self.kills: Counter[Any] = Counter()

    def verdict(self, mutant: Mutant) -> Verdict:
        """Judge a mutant in a process of its own, unless it stands on the list."""
        start = time.perf_counter()
        if reason := equivalents.reason(mutant):
            return Verdict(mutant, EQUIVALENT, reason, 0.0)
        fate, by, index = _forked(lambda: self._judge(mutant))
        if index is not None:  # first the cases that see the most faults for their time
            self.kills[self.cases[index][1]] += 1
            self.cases.sort(key=lambda x: x[0] / (1 + self.kills[x[1]]))
        return Verdict(mutant, fate, by, time.perf_counter() - start)

    def _judge(self, mutant: Mutant) -> tuple[str, str, int | None]:
        for index, (seconds, case) in enumerate(self.cases):
            # Processor time, so that a busy machine kills no mutant; the default action ends us.
            signal.setitimer(signal.ITIMER_PROF, 2.0 + 10.0 * seconds)
            try:
                if index == 0:
                    _install(mutant, self.side)
                hold(self.contract, self.side, case)
            except Violation as violation:
                return KILLED, violation.findings[0].fault, index
            except Exception as error:
                return KILLED, f"{type(error).__name__}: {error}", index
        return SURVIVED, "", None


def judge(
    operator: str,
    side: Side,
    *,
    examples: int,
    size: int | None = None,
    seed: int = 0,
    observe: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Judge an operator's mutants on a side, or a sample of `size`; `observe` sees each verdict."""
    found = of_operator(operator, side.name)
    if size is not None:
        found = sample(found, size, seed)
    if not found:
        return []
    trial = Trial(report.contract(operator), side, examples)
    verdicts = []
    for mutant in found:
        verdicts.append(trial.verdict(mutant))
        observe(verdicts[-1])
    return verdicts


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many there are of each fate; a timeout is counted as killed, too."""
    fates = [v.fate for v in verdicts]
    counts = {fate: fates.count(fate) for fate in (KILLED, TIMEOUT, EQUIVALENT, SURVIVED)}
    counts[KILLED] += counts[TIMEOUT]
    return {"mutants": len(fates), **counts}


def _install(mutant: Mutant, side: Side) -> None:
    """Load a mutant in its module's place; what imported that module is loaded again, too."""
    package = importlib.import_module(side.package)
    for name in [n for n in sys.modules if n.startswith(f"{side.package}.")]:
        del sys.modules[name]
        vars(package).pop(name.rpartition(".")[2], None)
    stem = Path(mutant.file).stem
    name = f"{side.package}.{stem}"
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # The interpreter rewrites a kernel's source, which it gets from here: without a time of
    # change this entry is not compared with the file.
    lines = mutant.source.splitlines(keepends=True)
    linecache.cache[spec.origin] = (len(mutant.source), None, lines, spec.origin)
    exec(compile(mutant.source, spec.origin, "exec"), vars(module))
    setattr(package, stem, module)


def _forked(work: Callable[[], tuple[str, str, int | None]]) -> tuple[str, str, int | None]:
    """Do the work in a fork of this process, which cannot change anything here."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: none holds a lock
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            gc.freeze()  # or a collection would copy every page it looks at
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
            warnings.simplefilter("ignore")
            with os.fdopen(write, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        return (TIMEOUT, "does not end", None) if name == "SIGPROF" else (KILLED, name, None)
    if status:
        return KILLED, "the process ended", None
    fate, by, index = json.loads(said)
    return fate, by, index
