"""Anyone's function judged by an operator's contract: a plain call on torch tensors.

The function takes tensors in the operator's order, such as `f(q, k, v)`, and by name those of the
options of `foreign_calls.PLAIN` that its signature has (`autograd.Function.apply` shows none: wrap
it). It returns the output, or (output, lse) for attention. Options it does not have are left out
of the domain, and so is what conventions differ about: a query without keys, and causal with more
keys than queries or fewer. If the output requires grad, the gradients are judged too. A case that
the function refuses (`REFUSALS`) is counted, not held against it. A failing case is shrunk.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from twofold.core import ops
from twofold.core.verify import domains, report
from twofold.core.verify.contract import Contract, Finding, Violation, hold, precision_name
from twofold.core.verify.foreign_calls import ALIASES, PLAIN, contract_module
from twofold.core.verify.strict_memory import Fault

PRECISIONS = (*domains.DTYPES, "tf32")
REFUSALS = (ValueError, AssertionError, NotImplementedError)
SHRINKING = 15.0  # seconds, for each precision


class Refused(Exception):
    """The function does not take a case, in its own words."""


@dataclass
class Verdict:
    """What came of it: the table's rows, failures, and what was not judged."""

    rows: list[report.Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_function(name: str) -> Callable[..., Any]:
    """Import "module:function", from the current folder too.

    Raises:
        ValueError: there is no such module or function.
    """
    ops.triton_device()  # before Triton is imported
    module_name, _, function_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        raise ValueError(f"{name!r} cannot be imported: {missing}") from missing
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def judge(
    name: str, operator: str, examples: int, precisions: Sequence[str] | None = None
) -> Verdict:
    """Judge "module:function" as an operator: `examples` cases, and the pinned ones."""
    if operator not in PLAIN:
        raise ValueError(f"--op is {operator!r}; it must be one of {', '.join(PLAIN)}")
    wanted = precisions or domains.DTYPES
    if "tf32" in wanted and operator != "attention":
        raise ValueError(f"--dtype is 'tf32'; {operator} has no matrix product")
    for precision in wanted:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"--dtype is {precision!r}; it must be one of {known}")
    judged = _Judged(operator, load_function(name))
    verdict, findings = Verdict(), []
    for precision in wanted:
        with strictly():
            found, faults = judged.explore(precision, -(-examples // len(wanted)))
        findings += found + faults
        for f in faults:
            verdict.failures.append(f"{f.pass_} {f.dtype} {f.output}: {f.fault}")
        if faults:
            verdict.failures[-1] += f"\n  {_line(name, operator, faults[0].case)}"
    verdict.rows = report.summarise(findings)
    verdict.notes = judged.notes()
    if judged.refused and not findings:
        verdict.failures.append("every case was refused")
    return verdict


def again(name: str, operator: str, **fields: Any) -> list[Finding]:
    """Judge the case of these fields; raises `Violation` where it fails."""
    judged = _Judged(operator, load_function(name))
    with strictly():
        return judged.hold(judged.case_type(**fields))


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """Be in the strict interpreter where there is no GPU."""
    with contextlib.ExitStack() as stack:
        if ops.triton_device() == "cpu":
            from twofold.core.verify.strict_interpreter import strict_interpreter

            stack.enter_context(strict_interpreter())
        yield


class _Judged:
    """A function, the contract it is held to, and what it refused."""

    def __init__(self, operator: str, function: Callable[..., Any]) -> None:
        self.plain, self.function, self.operator = PLAIN[operator], function, operator
        self.side = ops.load("triton")
        self.names = _names(function, self.plain.options)
        self.missing = [option for option in self.plain.options if option not in self.names]
        module = contract_module(operator)
        self.case_type, truth = module.Case, self.plain.truth or module.truth
        self.computed: set[str] = set()  # by the last call
        self.ever: set[str] = set()
        self.refused: dict[str, list[tuple[str, Any]]] = {}
        self.contract = Contract(
            operator=operator,
            cases=module.CONTRACT.cases,
            run=self.run,
            truth=lambda case: {n: x for n, x in truth(case).items() if n in self.computed},
            passes=module.CONTRACT.passes,
        )

    def run(self, side: ops.Side, case: Any) -> dict[str, Any]:
        """Call the function, and its gradient where there is one."""
        import torch

        call = self.plain.call(side, case)
        tensors = {
            n: x.detach().requires_grad_() if x.is_floating_point() else x
            for n, x in call.tensors.items()
        }
        leaves = {n: x for n, x in tensors.items() if x.requires_grad}
        options = {self.names[n]: x for n, x in call.options.items() if n in self.names}
        try:
            returned = self.function(*tensors.values(), **options)
            outputs = returned if isinstance(returned, tuple) else (returned,)
            found = dict(zip(self.plain.outputs, outputs, strict=False))
            out = outputs[0]
            if out.requires_grad and out.shape == call.dout.shape:
                dout = call.dout.to(out.dtype)
                gradients = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
                for (n, x), d in zip(leaves.items(), gradients, strict=True):
                    found[f"d{n}"] = torch.full_like(x, torch.nan) if d is None else d
        except Exception as error:
            causes = list(_causes(error))
            faults = [e for e in causes if isinstance(e, Fault)]
            if faults:
                raise faults[0] from error
            if isinstance(causes[-1], REFUSALS):
                raise Refused(f"{type(causes[-1]).__name__}: {causes[-1]}") from error
            raise
        self.computed = set(found)
        self.ever |= self.computed
        return found

    def hold(self, case: Any) -> list[Finding]:
        """Judge a case; whatever the function raises, but a refusal, is a violation too."""
        try:
            return hold(self.contract, self.side, case)
        except (Violation, Refused):
            raise
        except Exception as error:
            first, fault = self.plain.outputs[0], f"{type(error).__name__}: {error}"
            broken = Finding(
                operator=self.operator,
                pass_=self.contract.passes[first],
                output=first,
                dtype=precision_name(case),
                case=case,
                share=np.inf,
                median=np.inf,
                vacuous=0.0,
                fault=fault,
            )
            raise Violation([broken]) from error

    def fitting(self, case: Any, precision: str, size: int | None = None) -> Any:
        """Return the case in this precision, without what the function does not take."""
        fields = dict(self.plain.always)
        for option in self.missing:
            fields |= self.plain.options[option]
        tf32 = precision == "tf32"
        fields["dtype"] = "float32" if tf32 else precision
        fields["allow_tf32"] = tf32
        known = {n: x for n, x in fields.items() if hasattr(case, n)}
        return self.plain.narrowed(replace(case, **known), size)

    def explore(self, precision: str, examples: int) -> tuple[list[Finding], list[Finding]]:
        """Judge drawn and pinned cases; return what held, and the faults of the smallest case."""
        held: list[Finding] = []
        failed: dict[Any, Violation] = {}
        until = [np.inf]

        @settings(
            max_examples=examples,
            database=None,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
        )
        @given(self.contract.cases, st.sampled_from((None, 16, 32, 64)))
        def search(case: Any, size: int | None) -> None:
            case = self.fitting(case, precision, size)
            if case in failed:
                raise failed[case]
            if time.monotonic() > until[0]:
                return
            try:
                held.extend(self.hold(case))
            except Refused as refusal:
                self.refuse(refusal, case)
                assume(False)
            except Violation as violation:
                failed[case] = violation
                until[0] = min(until[0], time.monotonic() + SHRINKING)
                raise

        try:
            if examples:
                with contextlib.suppress(Unsatisfiable):  # everything was refused
                    search()
            for fields in self.plain.pinned:
                case = self.fitting(self.case_type(**fields), precision)
                try:
                    held.extend(self.hold(case))
                except Refused as refusal:
                    self.refuse(refusal, case)
        except Violation as violation:
            return held, violation.findings
        return held, []

    def notes(self) -> list[str]:
        """Say what was not judged."""
        notes, computed = [], self.ever
        if self.missing:
            notes.append(f"not judged, for it takes none of them: {', '.join(self.missing)}")
        if computed and not any(self.contract.passes[name] == "backward" for name in computed):
            notes.append("forward only: the output requires no grad")
        for output in self.plain.outputs:
            if computed and output not in computed:
                notes.append(f"not judged, for it is not returned: {output}")
        for refusals in self.refused.values():
            words, case = refusals[0]
            first = f"{case.dtype} {report.short(case)}"
            notes.append(f"refused {len(refusals)} cases, such as {first}: {words}")
        return notes

    def refuse(self, refusal: Refused, case: Any) -> None:
        """Remember a refusal; those that differ in numbers alone are one."""
        words = str(refusal).splitlines()[0]
        self.refused.setdefault(re.sub(r"\d+", "", words), []).append((words, case))


def _line(name: str, operator: str, case: Any) -> str:
    """Return the line of Python that judges this case again."""
    default = type(case)()
    changed = {n: x for n, x in vars(case).items() if x != getattr(default, n) or n == "dtype"}
    fields = ", ".join(f"{n}={x!r}" for n, x in changed.items())
    return f"foreign.again({name!r}, {operator!r}, {fields})"


def _names(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, str]:
    """Return what the function calls those options that it has."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin has no signature
        return {}
    return {
        option: name
        for option in options
        for name in ALIASES.get(option, (option,))
        if name in parameters
    }


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Go from an exception to what raised it: the interpreter wraps what a kernel raises."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
