"""Anyone's function judged by an operator's contract, bound by bound and property by property.

The function takes tensors in the operator's order, such as `f(q, k, v)`, and by name those of the
options of `foreign_table.PLAIN` that its signature has (`autograd.Function.apply` shows none: wrap
it). It returns the output, or (output, lse) for attention. Options it does not have are left out
of the domain, and so is what conventions differ about: a query without keys, and causal with more
keys than queries or fewer. If the output requires grad, the gradients are judged too. A case that
the function refuses (`foreign_refusals.REFUSALS`) is counted, not held against it. An object with
`forward` and `backward` that take what ours do is judged as any operator. What fails is shrunk.

In here a function that hangs or crashes takes the judge with it; `foreign_apart` keeps them apart.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from hypothesis import Phase, assume, given, seed
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from twofold.core import ops
from twofold.core.verify import domains, report
from twofold.core.verify.contract import (
    PROPERTY,
    Bits,
    Finding,
    Inapplicable,
    Violation,
    derandomised,
    precision_name,
)
from twofold.core.verify.contract import (
    judge as judge_case,
)
from twofold.core.verify.contract import (
    subject as subject_of,
)
from twofold.core.verify.foreign_refusals import Refused, where
from twofold.core.verify.foreign_subjects import (
    Function,
    Operator,
    in_precision,
    load,
    subject,
)

PRECISIONS = (*domains.DTYPES, "tf32")
SHRINKING = 15.0  # seconds, for each failure
SIZES = (16, 32, 64)  # head_dims
MORE = 3  # so many times the cases wanted may be drawn: some do not apply
REFUSED = 6  # so many times the cases wanted may be refused
CLAIMED = 4  # cases for each property and precision
IMPLIED = {"enable_gqa": "grouped heads"}
HOLDS, FAILS, BITS, UNSAID = "holds", "fails", "bits differ", "does not apply"


@dataclass(frozen=True)
class Claim:
    """What became of a property in one precision.

    Attributes:
        name, precision: which.
        outcome: "holds"; "fails"; "bits differ", where the numbers keep their bound but are not
            the same bits, which is no fault; "does not apply", where no case could be asked.
        cases: how many were.
        fault: what is wrong.
        again: the line of Python that shows it again.
    """

    name: str
    precision: str
    outcome: str
    cases: int
    fault: str = ""
    again: str = ""


@dataclass
class Verdict:
    """What came of it: the table's rows, properties, failures, and what was not judged."""

    rows: list[report.Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def judge(
    function: str | Any,
    operator: str,
    examples: int,
    precisions: Sequence[str] | None = None,
    observe: Callable[[str], None] = lambda line: None,
    claimed: int = CLAIMED,
) -> Verdict:
    """Judge a function, an object, or what "module:function" names, as an operator.

    Args:
        function: what is judged.
        operator: what it should be.
        examples: cases in all for the bounds.
        precisions: of `PRECISIONS`; by default all but tf32.
        observe: is told the line that repeats a case before the case is run.
        claimed: cases for each property and precision; with 0, no property is asked.

    Raises:
        ValueError, TypeError: naming what cannot be judged, and why.
    """
    wanted = precisions or domains.DTYPES
    for precision in wanted:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"--dtype is {precision!r}; it must be one of {known}")
    judged = subject(load(function) if isinstance(function, str) else function, operator)
    if "tf32" in wanted and not hasattr(_case_type(judged)(), "allow_tf32"):
        raise ValueError(f"--dtype is 'tf32'; {operator} has no matrix product")
    trial = _Trial(judged, lambda case: _line(function, operator, case), observe)
    verdict, findings = Verdict(), []
    for precision in wanted:
        with strictly():
            found, faults = trial.bounds(precision, -(-examples // len(wanted)))
            verdict.claims += trial.properties(precision, claimed)
        findings += found + faults
        for f in faults:
            verdict.failures.append(f"{f.pass_} {f.dtype} {f.output}: {f.fault}")
        if faults:
            verdict.failures[-1] += f"\n  {_line(function, operator, faults[0].case)}"
    for claim in verdict.claims:
        if claim.outcome == FAILS:
            verdict.failures.append(
                f"{PROPERTY} {claim.precision} {claim.name}: {claim.fault}\n  {claim.again}"
            )
    verdict.rows = report.summarise(findings)
    verdict.notes = trial.notes()
    if trial.refused and not findings:
        verdict.failures.append("every case was refused")
    return verdict


def again(function: str | Any, operator: str, *, claim: str = "", **fields: Any) -> list[Finding]:
    """Judge the case of these fields, or one property of it; raises `Violation` where it fails."""
    judged = subject(load(function) if isinstance(function, str) else function, operator)
    trial = _Trial(judged, str, lambda line: None)
    with strictly():
        case = _case_type(judged)(**fields)
        return trial.claim(claim, case) if claim else trial.bound(case)


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """Be in the strict interpreter where there is no GPU."""
    with contextlib.ExitStack() as stack:
        if ops.triton_device() == "cpu":
            from twofold.core.verify.strict_interpreter import strict_interpreter

            stack.enter_context(strict_interpreter())
        yield


class _Trial:
    """An implementation before its contract, and what it refused."""

    def __init__(
        self,
        judged: Function | Operator,
        line: Callable[[Any], str],
        observe: Callable[[str], None],
    ) -> None:
        self.judged, self.contract = judged, judged.contract
        self.line, self.observe = line, observe
        self.subject = subject_of(self.contract, judged.side)
        self.refused: dict[str, dict[Any, str]] = {}
        self.taken: set[Any] = set()
        self.turned_away: set[Any] = set()  # in every form that they were tried in
        self.implied: set[str] = set()  # those of `Function.implied` that it can be asked for

    def bound(self, case: Any) -> list[Finding]:
        """Judge a case; whatever is raised, but a refusal, is a violation too."""
        self.observe(self.line(case))
        with self._violations(next(iter(self.contract.passes)), case):
            findings = judge_case(self.contract, self.judged.side, case)
        self.judged.judged(case)
        if any(f.fault for f in findings):
            raise Violation(findings)
        return findings

    def claim(self, name: str, case: Any) -> list[Finding]:
        """Check one property of a case; a `Violation` says `Bits` where only they differ."""
        small = self.contract.small(case)
        self.observe(self.line(small))
        with self._violations(name, small), np.errstate(all="ignore"):
            self.contract.claims()[name](self.subject, small)
        return []

    @contextlib.contextmanager
    def _violations(self, output: str, case: Any) -> Iterator[None]:
        try:
            yield
        except (Violation, Refused, Inapplicable):
            raise
        except Exception as error:
            own_words = type(error) in (AssertionError, Bits)
            fault = str(error) if own_words else f"{type(error).__name__}: {error}"
            if at := "" if own_words else where(error):
                fault += f" (at {at})"
            pass_ = self.contract.passes.get(output, PROPERTY)
            broken = Finding(
                self.contract.operator, pass_, output, precision_name(case), case, np.inf, np.inf,
                0.0, fault,
            )  # fmt: skip
            raise Violation([broken]) from error

    def bounds(self, precision: str, examples: int) -> tuple[list[Finding], list[Finding]]:
        """Judge drawn and pinned cases; return what held, and the faults of the smallest case."""
        held: list[Finding] = []

        def check(case: Any) -> None:
            held.extend(self.bound(case))

        _, violation = self._search(precision, examples, check)
        for case in () if violation else self.contract.pinned:
            case = self.judged.fitting(case, precision)
            try:
                held.extend(self.bound(case))
                self.taken.add(case)
            except Refused as refusal:
                self.turned_away.add(case)
                self._refuse(refusal, case)
            except Violation as found:
                violation = found
                break
        if violation is None:
            violation = self._imply(precision, held)
        return held, violation.findings if violation else []

    def _imply(self, precision: str, held: list[Finding]) -> Violation | None:
        """Judge what the function may do without being told; what it raises there is no fault.

        Not on a GPU: a kernel that knows nothing of it leaves its tensors there, and goes on.
        """
        for option, case in self.judged.implied.items() if self.judged.side.device == "cpu" else ():
            try:
                held += self.bound(in_precision(case, precision, {}))
            except Refused:
                continue
            except Violation as violation:
                if violation.__cause__ is not None:
                    continue
                self.implied.add(option)
                return violation
            self.implied.add(option)
        return None

    def properties(self, precision: str, claimed: int) -> list[Claim]:
        """Ask every property of a few cases."""
        found = []
        for name in self.contract.claims() if claimed else ():
            check = functools.partial(self.claim, name)
            asked, violation = self._search(precision, claimed, check)
            if violation is None:
                found.append(Claim(name, precision, HOLDS if asked else UNSAID, asked))
                continue
            finding = violation.findings[0]
            differ = isinstance(violation.__cause__, Bits)
            line = self.line(finding.case)[:-1] + f", claim={name!r})"
            outcome = BITS if differ else FAILS
            found.append(Claim(name, precision, outcome, asked, finding.fault, line))
        return found

    def _search(
        self, precision: str, examples: int, check: Callable[[Any], object]
    ) -> tuple[int, Violation | None]:
        """Check drawn cases; return how many applied, and the violation of the smallest."""
        failed: dict[Any, Violation] = {}
        applied: set[Any] = set()
        seen: set[Any] = set()
        refused: set[Any] = set()
        until = [np.inf]

        def attempt(case: Any) -> bool:
            """Check a case that was not; return whether it is taken."""
            if case in failed:
                raise failed[case]
            if case in refused:
                return False
            wanted = MORE * examples if failed else examples  # to shrink needs more
            enough = len(applied) >= wanted or len(refused) >= REFUSED * examples
            if case in seen or enough or time.monotonic() > until[0]:
                return True
            seen.add(case)
            try:
                check(case)
                applied.add(case)
                self.taken.add(case)
            except Refused as refusal:
                refused.add(case)
                self._refuse(refusal, case)
                return False
            except Inapplicable:
                return True
            except Violation as violation:
                failed[case] = violation
                until[0] = min(until[0], time.monotonic() + SHRINKING)
                raise
            return True

        phases = (Phase.generate, Phase.shrink)

        @seed(crc32(precision.encode()))  # not the same cases again in another precision
        @derandomised(max(1, MORE * examples), *phases, report_multiple_bugs=False)
        @given(self.contract.cases, st.sampled_from(SIZES))
        def search(case: Any, size: int) -> None:
            # As it is drawn, and where that is refused with a head_dim that more functions take.
            fits = (self.judged.fitting(case, precision, s) for s in (None, size))
            taken = any(attempt(one) for one in fits)
            if not taken:
                self.turned_away.add(self.judged.fitting(case, precision))
            assume(taken)

        try:
            if examples:
                with contextlib.suppress(Unsatisfiable):  # everything was refused
                    search()
        except Violation as violation:
            return len(applied), violation
        return len(applied), None

    def notes(self) -> list[str]:
        """Say what was not judged."""
        judged, passes = self.judged, self.contract.passes
        notes = []
        if missing := [o for o in judged.missing if o not in judged.implied]:
            notes.append(f"not judged, for it takes none of them: {', '.join(missing)}")
        for option in judged.implied:
            asked = f"not judged: add {option}=…"
            if option in self.implied:
                asked = f"judged, though it takes no {option}"
            notes.append(f"{IMPLIED[option]} {asked}")
        if judged.unpassed:
            notes.append(f"never passed: {', '.join(judged.unpassed)}")
        if judged.unexercised:
            notes.append(f"never exercised: {', '.join(judged.unexercised)}")
        lost = {n: pass_ for n, pass_ in passes.items() if n not in judged.ever}
        if judged.ever and {n for n in passes if passes[n] == "backward"} <= lost.keys():
            notes.append("forward only: the output requires no grad")
            lost = {n: pass_ for n, pass_ in lost.items() if pass_ == "forward"}
        if judged.ever and lost:
            notes.append(f"not judged, for it is not computed: {', '.join(lost)}")
        if outside := judged.outside():
            notes.append(f"not in the domain: {'; '.join(outside)}")
        notes += sorted(judged.remarks)
        taken, away = len(self.taken), len(self.turned_away)
        if away:
            mostly = "mostly refused, which says little: " if away > taken else ""
            notes.append(f"{mostly}{taken} of {taken + away} cases were taken")
        for refusals in self.refused.values():
            case, words = next(iter(refusals.items()))
            first = f"{case.dtype} {report.short(case)}"
            notes.append(f"refused {len(refusals)} cases, such as {first}: {words}")
        return notes

    def _refuse(self, refusal: Refused, case: Any) -> None:
        """Remember a refusal; those that differ in numbers alone are one."""
        words = str(refusal).splitlines()[0]
        alike = self.refused.setdefault(re.sub(r"\d+", "", words), {})
        alike.setdefault(case, words)


def _case_type(judged: Function | Operator) -> Any:
    return type(judged.contract.pinned[0])


def _line(function: str | Any, operator: str, case: Any) -> str:
    """Return the line of Python that judges this case again."""
    default = type(case)()
    changed = {n: x for n, x in vars(case).items() if x != getattr(default, n) or n == "dtype"}
    fields = ", ".join(f"{n}={x!r}" for n, x in changed.items())
    name = (
        repr(function) if isinstance(function, str) else getattr(function, "__name__", "function")
    )
    return f"foreign.again({name}, {operator!r}, {fields})"
