"""Functions that are not ours, tried in a process of their own before they race in this one.

There a function is held to its contract and called once for each pass on the tensors of the race.
One that crashes, exits or hangs ends only that process, and is left out of the race with the
reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import NamedTuple

import torch

from twofold.core.bench import problems
from twofold.core.bench.contenders import Contender, rival
from twofold.core.bench.problems import Problem
from twofold.core.verify import alone
from twofold.core.verify.foreign import imports, strictly
from twofold.core.verify.strict import launches

INTERPRETED = "its kernels are interpreted without a GPU, and there is nothing to time"


class LeftOut(Exception):
    """A contender cannot race a problem; the message says why."""


class Ended(LeftOut):
    """A contender crashed, exited or hung."""


class Said(NamedTuple):
    """A message from a process: its next step, or its result.

    Attributes:
        words: the step; in the result, what violates the contract, "" if nothing.
        done: whether this is the result.
        out: why the function cannot be raced, "" if it can.
    """

    words: str
    done: bool = False
    out: str = ""


class Apart:
    """Processes, one for each function that is not ours, which try one problem after another.

    A function that crashed or failed, which may leave a GPU unusable, gets a new process for the
    next problem; one that hung, for `limit` seconds in a case of the contract or a pass, is not
    tried again.
    """

    def __init__(self, device: str, limit: float = alone.LIMIT) -> None:
        self._device, self._limit = device, limit
        self._trials: dict[str, _Trial] = {}
        self._hung: dict[str, str] = {}

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for trial in self._trials.values():
            trial.end()

    def fault(self, contender: Contender, problem: Problem) -> str:
        """Judge by the contract and call every pass once; return what is wrong, "" if nothing.

        Raises:
            Ended: the function crashes, exits or hangs.
            LeftOut: it fails.
        """
        name = contender.name
        if name in self._hung:
            raise Ended(self._hung[name])
        trial = self._trials.pop(name, None) or _Trial(name, self._device)
        try:
            said = trial.ask(problem.name, self._limit)
        except TimeoutError as hung:
            trial.end()
            self._hung[name] = f"{hung}, in {problem.title}"
            raise Ended(self._hung[name]) from None
        except BaseException:
            trial.end()
            raise
        if said.out:
            trial.end()
            raise LeftOut(said.out)
        self._trials[name] = trial
        return said.words


class _Trial:
    """One function's process, seen from this one."""

    def __init__(self, name: str, device: str) -> None:
        self._process = alone.Alone(_child, name, device)
        self._patience = alone.STARTING
        self.end = self._process.end

    def ask(self, problem: str, limit: float) -> Said:
        """Return the result for a problem; raise `TimeoutError` or `Ended` if there is none."""
        step = "its process"
        self._process.ask(problem)
        try:
            while True:
                said: Said = self._process.hear(self._patience)
                self._patience = limit
                if said.done:
                    return said
                step = said.words
        except TimeoutError as hung:
            raise TimeoutError(f"{step} {hung}") from None
        except alone.Ended as gone:
            raise Ended(f"{step} {gone}") from None


def _child(pipe: Connection, name: str, device: str) -> None:
    listed = {p.name: p for p in (problems.on_gpu() if device == "cuda" else problems.on_cpu())}
    pipe.send(Said("its import"))
    loaded = imports.load(name)
    contenders: dict[str, Contender] = {}  # by operator
    judged: dict[tuple[str, str], str] = {}
    interpreted = False
    while True:
        problem = listed[pipe.recv()]
        key = (problem.operator, problem.dtype)
        try:
            if problem.operator not in contenders:
                contenders[problem.operator] = rival(name, loaded, problem.operator)
            contender = contenders[problem.operator]
            if key not in judged:
                judging = functools.partial(pipe.send, Said("a case of the contract"))
                before = launches()
                with strictly():
                    judged[key] = contender.fault(problem, judging)
                interpreted |= device == "cpu" and launches() > before
            if interpreted:
                more = f"; and {judged[key]}" if judged[key] else ""
                pipe.send(Said("", True, INTERPRETED + more))
                continue
            _try(contender, problem, device, pipe.send)
        except Exception as error:  # any, from the function itself
            pipe.send(Said("", True, f"{type(error).__name__}: {error}"))
        else:
            pipe.send(Said(judged[key], True))


def _try(
    contender: Contender, problem: Problem, device: str, say: Callable[[Said], object]
) -> None:
    """Call every pass once; only forward must not raise, as backward may be missing."""
    tensors = problem.make(torch.Generator(device).manual_seed(0), device)
    say(Said("the first call"))
    passes = contender.passes(problem, tensors)
    for name in problem.costs:
        say(Said(name))
        try:
            passes[name]()
        except Exception:
            if name == "forward":
                raise
        if device == "cuda":
            torch.cuda.synchronize()
