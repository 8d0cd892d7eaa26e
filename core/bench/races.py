"""A race: contenders judged, timed side by side, and compared with the least possible time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from twofold.core.bench import agreement, timing
from twofold.core.bench import contenders as entered
from twofold.core.bench.apart import Apart, Ended, LeftOut
from twofold.core.bench.contenders import Contender, Passes
from twofold.core.bench.costs import Ceilings, Cost
from twofold.core.bench.growth import peak
from twofold.core.bench.problems import Problem
from twofold.core.bench.settings import Settings

INPUTS = 2  # sets of tensors, used in rotation


class Judge:
    """Judges contenders, once for each contender, operator and dtype.

    `apart` has the processes for users' functions, in which each problem is tried.
    """

    def __init__(self, apart: Apart | None = None) -> None:
        self._apart = apart
        self._said: dict[tuple[str, str, str], str] = {}

    def __call__(self, contender: Contender, problem: Problem) -> str:
        """Return what is wrong, "" if nothing; raise `LeftOut` if the contender cannot race."""
        if contender.foreign and self._apart is not None:
            return self._apart.fault(contender, problem)
        key = (contender.name, problem.operator, problem.dtype)
        if key not in self._said:
            self._said[key] = contender.fault(problem)
        return self._said[key]


def run(
    problem: Problem,
    contenders: Sequence[Contender],
    ceilings: Ceilings,
    device: str,
    seconds: float,
    judge: Callable[[Contender, Problem], str],
    settings: Settings | None = None,
) -> Iterator[dict[str, Any]]:
    """Race one problem; yield the result of each pass.

    A contender that is missing, fails or violates its contract is in the result with the reason.
    One that violates it, crashes, hangs or, on the tensors of the race, does not compute what
    twofold does is wrong: if it is timed, it has no ratio. `settings` of torch, by default the
    present ones, are restored whenever a contender has changed them.
    """
    settings = settings or Settings()
    if any(contender.compiles for contender in contenders):
        entered.forget()
    draw = torch.Generator(device).manual_seed(0)
    inputs = [problem.make(draw, device) for _ in range(INPUTS)]
    start = _Start(problem, inputs, device, judge, settings)
    for contender in contenders:
        if reason := contender.missing or start.enter(contender):
            start.reasons[contender.name] = _short(reason)
    calls, reasons, wrong, memory = start.calls, start.reasons, start.wrong, start.memory
    for name, cost in problem.costs.items():
        lost: dict[str, str] = {}
        times = timing.race(calls[name], device, seconds, lost, settings.restore)
        figures = _figures(times, cost, ceilings, memory[name], wrong)
        if device == "cuda":
            for who, found in figures.items():
                try:
                    found["host_ms"] = timing.host(calls[name][who][0]) * 1e3
                except Exception as error:
                    lost[who] = f"{type(error).__name__}: {error}"
        settings.restore()
        reasons |= {who: _short(f"{name}: {why}") for who, why in lost.items()}
        yield {
            "operator": problem.operator,
            "problem": problem.title,
            "dtype": problem.dtype,
            "pass": name,
            "size": problem.size,
            "curve": problem.curve,
            "bytes": cost.bytes,
            "operations": cost.operations,
            "least_ms": ceilings.least(cost) * 1e3,
            "contenders": figures,
            "reasons": reasons,
            "wrong": wrong,
        }


class _Start:
    """Who is let into a race.

    Attributes:
        calls: what is timed, by pass and contender, one for each set of inputs.
        memory: what a call took at its peak, by pass and contender.
        reasons: by contender, why it does not race, or is wrong.
        wrong: who is.
    """

    def __init__(
        self,
        problem: Problem,
        inputs: Sequence[Mapping[str, torch.Tensor]],
        device: str,
        judge: Callable[[Contender, Problem], str],
        settings: Settings,
    ) -> None:
        self.problem, self.inputs, self.device = problem, inputs, device
        self.judge, self.settings = judge, settings
        self.calls: dict[str, dict[str, list[Callable[[], object]]]]
        self.calls = {n: {} for n in problem.costs}
        self.memory: dict[str, dict[str, int]] = {n: {} for n in problem.costs}
        self.reasons: dict[str, str] = {}
        self.wrong: list[str] = []
        self._compared = agreement.comparable(problem)
        self._twofolds: list[torch.Tensor] = []  # who is first

    def enter(self, contender: Contender) -> str:
        """Judge a contender and call it once for each pass; return what is wrong, if anything."""
        try:
            reason = self.judge(contender, self.problem)
            passes = [contender.passes(self.problem, tensors) for tensors in self.inputs]
            if self._compared and not reason:
                reason = self._stray(contender, passes[0])
        except LeftOut as error:
            self.wrong += [contender.name] if isinstance(error, Ended) else []
            return str(error)
        except Exception as error:  # its own, whatever it is: the others go on
            return f"{type(error).__name__}: {error}"
        finally:
            changed = self.settings.restore()
        if reason:
            self.wrong.append(contender.name)
        for name in self.problem.costs:
            try:
                numpy = contender.side is not None and self.device == "cpu"
                self.memory[name][contender.name] = peak(passes[0][name], self.device, numpy)
                self.calls[name][contender.name] = [p[name] for p in passes]
            except Exception as error:
                reason = reason or f"{name}: {type(error).__name__}: {error}"
        if changed := list(dict.fromkeys(changed + self.settings.restore())):
            said = f"it changes {' and '.join(changed)} for all, set back here"
            reason = f"{reason}; {said}" if reason else said
        return reason

    def _stray(self, contender: Contender, passes: Passes) -> str:
        """Return what of the tensors that are raced is not as twofold has it."""
        outputs = contender.outputs(self.problem, passes)
        if contender.name == entered.TWOFOLD:
            self._twofolds = outputs
        return agreement.stray(outputs, self._twofolds, self.problem)


def _short(reason: str) -> str:
    return " ".join(reason.split())[:300]


def _figures(
    times: Mapping[str, list[float]],
    cost: Cost,
    ceilings: Ceilings,
    memory: Mapping[str, int],
    wrong: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Return times and what follows from them, by contender; ratios are to torch, if it ran.

    A contender that is wrong has no ratio, except torch: ratios are to its time, right or wrong.
    """
    if not times:
        return {}
    right = [name for name in times if name not in wrong]
    against = entered.TORCH if entered.TORCH in times else (right or list(times))[0]
    found = timing.summary(times, against)
    for name, figures in found.items():
        if name in wrong and name != entered.TORCH:
            del figures["ratio"]
        seconds = figures["median_ms"] * 1e-3
        figures["giga_bytes_per_second"] = cost.bytes / seconds * 1e-9
        figures["tera_operations_per_second"] = cost.operations / seconds * 1e-12
        figures["share"] = ceilings.least(cost) / seconds
        if memory.get(name, 0) > 0:
            figures["peak_bytes"] = memory[name]
    return found
