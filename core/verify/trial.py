"""A contract's cases prepared to judge many mutants of a side, each in a fork of this process.

Everything slow is done once: torch, triton and hypothesis are imported, the truths of the cases
computed, and each case run on the unchanged code. A fork then loads the mutated file in place of
the right one and asks question after question until one is answered wrongly. A question is one
claim about one case: the bounds, or a property. Questions that found the most faults for their
time, above all near the mutant, come first, so that a fault costs little; more questions are
prepared only for mutants that survive these. A question that does not run the changed line is not
asked: it could see nothing.
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
import signal
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any

from threadpoolctl import threadpool_limits

from twofold.core import ops
from twofold.core.ops import Side
from twofold.core.verify import executed, faults
from twofold.core.verify.contract import (
    Contract,
    Violation,
    check_properties,
    fitting,
    subject,
)
from twofold.core.verify.contract import judge as judge_case
from twofold.core.verify.machines import machine
from twofold.core.verify.mutation import Mutant
from twofold.core.verify.search import drawn

KILLED, TIMEOUT, SURVIVED = "killed", "timeout", "survived"
FIRST = 16  # questions prepared before the first mutant; as many again whenever one survives
MOST = 100  # properties are added up to this many questions; bounds are asked of every case
LEAST = 60  # properties asked, however many cases there are
TILES = 16  # how many, the smallest, of the pinned cases for a tile: all of them show a fault


@dataclass(frozen=True)
class Verdict:
    """The fate of a mutant.

    Attributes:
        mutant: the fault.
        fate: "killed" where a fault was found, "timeout" (it did not end: killed too), "survived";
            "equivalent", "beyond" or "misjudged" where `mutants.judge` consulted the list.
        by: what was found, or the reason on the list.
        seconds: how long the process took.
    """

    mutant: Mutant
    fate: str
    by: str
    seconds: float


@dataclass
class Question:
    """One claim about one case, "" for its bounds.

    Attributes:
        seconds: what it costs.
        lines: which lines of the side's files it runs.
        kills: where it found faults.
    """

    case: Any
    claim: str
    seconds: float
    lines: set[executed.Line]
    kills: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def price(self, mutant: Mutant) -> float:
        """Return the seconds per fault found, where a fault near the mutant counts for many."""
        near = sum(worth * self.kills[place] for place, worth in _places(mutant))
        return self.seconds / (1 + near)


@dataclass
class _Fork:
    """A process that judges a mutant, and how many questions were ready when it began."""

    mutant: Mutant
    process: int
    pipe: int
    start: float
    asked: int


class Trial:
    """A contract's questions on a side.

    Args:
        contract: says what is right.
        side: the side that is mutated. In the interpreter, enter `strict_interpreter` first.
        examples: how many cases are drawn besides the pinned ones.

    Raises:
        ValueError: the side is a GPU's.
        Violation: the unchanged side breaks its contract. (Cases are first run when they are
            needed, so `verdicts` may raise it, too.)
    """

    def __init__(self, contract: Contract, side: Side, examples: int) -> None:
        if side.device == "cuda":
            raise ValueError("CUDA does not outlive a fork; set TRITON_INTERPRET=1 for mutants")
        threadpool_limits(1)  # a fork inherits no threads, and would wait for them
        self.side = side
        self.folder = Path(next(iter(importlib.import_module(side.package).__path__)))
        # A mutant changes neither a case's inputs nor their truth.
        made = functools.cache(contract.inputs)

        @functools.cache
        def true(case: Any, confidence: float | None) -> Any:
            return contract.truth(case, made(case))

        self.contract = dataclasses.replace(
            contract,
            inputs=made,
            truth=lambda case, given: true(case, machine("float32").confidence),
        )
        self._ahead = deque(self._all(examples))
        self.questions: list[Question] = []
        self._prepare(FIRST)

    def verdicts(self, mutants: Iterable[Mutant], jobs: int = 1) -> Iterable[Verdict]:
        """Judge mutants, `jobs` at a time; verdicts come as they are found."""
        waiting = deque((mutant, 0) for mutant in mutants)
        parked: list[tuple[Mutant, int]] = []  # survivors, which wait until more are ready
        goal, forks = 0, dict[int, _Fork]()
        while waiting or parked or forks:
            while waiting and len(forks) < jobs:
                fork = self._fork(*waiting.popleft())
                forks[fork.pipe] = fork
            if parked and self._ahead and len(self.questions) < goal:
                self._prepare(1)
            else:
                waiting.extendleft(parked)
                parked = []
            for pipe in wait(list(forks), 0 if parked or not forks else None):
                assert isinstance(pipe, int)
                fork = forks.pop(pipe)
                fate, by, index = _end(fork)
                if index is not None:
                    places = _places(fork.mutant)
                    self.questions[index].kills.update(place for place, _ in places)
                if fate != SURVIVED or not (self._ahead or fork.asked < len(self.questions)):
                    yield Verdict(fork.mutant, fate, by, time.perf_counter() - fork.start)
                elif fork.asked < len(self.questions):
                    waiting.appendleft((fork.mutant, fork.asked))
                else:
                    goal = max(goal, 2 * fork.asked)
                    parked.append((fork.mutant, fork.asked))

    def _all(self, examples: int) -> list[tuple[Any, str]]:
        """Return the questions: bounds, small cases first; then properties, which cost more."""
        contract = self.contract
        found = [*drawn(contract, examples), *contract.pinned]
        cases = list(dict.fromkeys(fitting(self.side, case) for case in found))
        by_size = sorted(cases, key=functools.partial(_size, contract))
        tiled = [case for case in by_size if getattr(case, "tile", None) is not None]
        left_out = set(tiled[TILES:])
        bounds = [(case, "") for case in by_size if case not in left_out]
        small = list(dict.fromkeys(contract.of_properties(case) for case in cases))
        # Each property on a different case, and round again.
        claims = [
            (small[(turn + i) % len(small)], claim)
            for turn in range(len(small))
            for i, claim in enumerate(contract.claims())
        ]
        return bounds + claims[: max(LEAST, MOST - len(bounds))]

    def _prepare(self, number: int) -> None:
        """Ask the next questions of the unchanged code, which must answer them rightly."""
        for _ in range(min(number, len(self._ahead))):
            case, claim = self._ahead.popleft()
            start = time.process_time()
            with executed.lines(self.folder, self.side.name == "triton") as lines:
                _ask(self.contract, self.side, case, claim)
            self.questions.append(Question(case, claim, time.process_time() - start, lines))

    def _fork(self, mutant: Mutant, asked: int) -> _Fork:
        """Ask a mutant, in its own process, the questions that reach it, from number `asked` on."""
        reached = self._reached(mutant)
        questions = [
            (i, question)
            for i, question in list(enumerate(self.questions))[asked:]
            if not reached or not reached.isdisjoint(question.lines)
        ]
        questions.sort(key=lambda x: x[1].price(mutant))
        process, pipe = _start(lambda: self._judge(mutant, questions))
        return _Fork(mutant, process, pipe, time.perf_counter(), len(self.questions))

    def _reached(self, mutant: Mutant) -> set[executed.Line]:
        """Return lines of which one must run for a mutant to be seen; none if unknown."""
        source = (self.folder.parent / mutant.file).read_text()
        watched = self.side.name != "triton" or "@triton.jit" in source
        if mutant.kind == faults.KIND or not watched:  # may change several places
            return set()
        return {(mutant.file, line) for line in executed.statement(source, mutant.line)}

    def _judge(
        self, mutant: Mutant, questions: list[tuple[int, Question]]
    ) -> tuple[str, str, int | None]:
        installed = False
        for index, question in questions:
            # Processor time, so that a busy machine kills no mutant; by default it ends us.
            signal.setitimer(signal.ITIMER_PROF, 2.0 + 10.0 * question.seconds)
            try:
                if not installed:
                    _install(mutant, self.side)
                    installed = True
                _ask(self.contract, self.side, question.case, question.claim)
            except Violation as violation:
                return KILLED, violation.findings[0].fault, index
            except Exception as error:
                return KILLED, f"{type(error).__name__}: {error}", index
        return SURVIVED, "", None


def _ask(contract: Contract, side: Side, case: Any, claim: str) -> None:
    """Raise `Violation` where a claim about a case does not hold."""
    if claim:
        findings = check_properties(contract, subject(contract, side), case, (claim,))
    else:
        findings = judge_case(contract, side, case)
    if any(f.fault for f in findings):
        raise Violation(findings)


def _places(mutant: Mutant) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Return where a mutant is (anywhere, its function, its line) and a fault's weight there."""
    function = (mutant.file, mutant.function)
    return ((), 1), (function, 10), ((*function, mutant.text), 100)


def _size(contract: Contract, case: Any) -> int:
    """Return how many numbers the outputs of a case hold: small cases cost less."""
    reference = ops.load("reference")
    case = fitting(reference, case)
    outputs = contract.run(reference, case, contract.inputs(case))
    return sum(reference.to_numpy(x).size for x in outputs.values() if x is not None)


def _install(mutant: Mutant, side: Side) -> None:
    """Load a mutant in its module's place, and reload whatever imported that module."""
    package = importlib.import_module(side.package)
    stem = Path(mutant.file).stem
    name = f"{side.package}.{stem}"
    for other in _importers(name, side.package):
        del sys.modules[other]
        vars(package).pop(other.rpartition(".")[2], None)
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # The interpreter rewrites a kernel's source, which it reads from here: without a modification
    # time this entry is not compared with the file.
    lines = mutant.source.splitlines(keepends=True)
    linecache.cache[spec.origin] = (len(mutant.source), None, lines, spec.origin)
    exec(compile(mutant.source, spec.origin, "exec"), vars(module))
    setattr(package, stem, module)


def _importers(name: str, package: str) -> set[str]:
    """Return the loaded modules of a package that hold something of a module, and the module."""
    found = {name} & sys.modules.keys()
    ahead = list(found)
    while ahead:
        known = ahead.pop()
        for other in [n for n in sys.modules if n.startswith(f"{package}.") and n not in found]:
            for x in list(vars(sys.modules[other]).values()):
                if _module(x) == known:
                    found.add(other)
                    ahead.append(other)
                    break
    return found


def _module(x: Any) -> str | None:
    """Return the module that a module's global is or comes from."""
    if isinstance(x, ModuleType):
        return x.__name__
    found: str | None = getattr(getattr(x, "fn", x), "__module__", None)  # a kernel's function
    return found


def _start(work: Callable[[], tuple[str, str, int | None]]) -> tuple[int, int]:
    """Do the work in a fork of this process, so that it cannot change anything here.

    Returns:
        the process, and the pipe on which it reports what it found.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: none holds a lock
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            gc.freeze()  # or a collection would copy every page that it visits
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
            warnings.simplefilter("ignore")
            fate, by, index = work()
            with os.fdopen(write, "w") as pipe:
                json.dump((fate, by[:1000], index), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    return child, read


def _end(fork: _Fork) -> tuple[str, str, int | None]:
    """Return what a process found, or how it ended."""
    with os.fdopen(fork.pipe) as pipe:
        said = pipe.read()
    _, status = os.waitpid(fork.process, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        return (TIMEOUT, "does not end", None) if name == "SIGPROF" else (KILLED, name, None)
    if status:
        return KILLED, "the process ended", None
    fate, by, index = json.loads(said)
    return fate, by, index
