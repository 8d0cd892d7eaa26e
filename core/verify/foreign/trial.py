"""The trial of an implementation under its contract: cases, properties, and what it refuses."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
from hypothesis import Phase, assume, given, seed
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from twofold.core.verify import report
from twofold.core.verify.contract import (
    PROPERTY,
    Bits,
    Finding,
    Inapplicable,
    Violation,
    precision_name,
)
from twofold.core.verify.contract import (
    judge as judge_case,
)
from twofold.core.verify.contract import (
    subject as subject_of,
)
from twofold.core.verify.foreign import cases as foreign_cases
from twofold.core.verify.foreign.gradients import NOTHING
from twofold.core.verify.foreign.operators import Operator
from twofold.core.verify.foreign.refusals import Refused, where
from twofold.core.verify.foreign.subjects import Function
from twofold.core.verify.foreign.verdict import (
    BITS,
    FAILS,
    HOLDS,
    UNASKED,
    UNSAID,
    Claim,
    Failure,
    alike,
    is_far_off,
    keys,
    outputs_of,
    own_words,
    raised,
)
from twofold.core.verify.search import derandomised

SHRINKING, LEAST_SHRINKING = 15.0, 2.0  # seconds for each failure; the latter once time is up
# The share of a precision's time for drawn cases, and for bounds in all; properties have the rest.
DRAWN, BOUNDS = 0.4, 0.7
SIZES = (16, 32, 64)  # head_dims
NOT_OURS = "foreign"  # the name that properties know it by
MORE = 3  # at most so many times the cases wanted are drawn: some do not apply
REFUSED = 6  # at most so many times the cases wanted are refused


class Trial:
    """An implementation under its contract, and what it refused."""

    def __init__(
        self,
        judged: Function | Operator,
        line: Callable[[Any], str],
        observe: Callable[[str | list[Failure]], None],
    ) -> None:
        self.judged, self.contract = judged, judged.contract
        self.line, self.observe = line, observe
        shown = replace(self.contract, run=judged.shown)
        self.subject = replace(subject_of(shown, judged.side), name=NOT_OURS)
        self.refused: dict[str, dict[Any, str]] = {}
        # By precision: the cases for bounds, and what is violated in each.
        self.tried: dict[str, dict[Any, Violation | None]] = {}
        self.long = list(judged.long)  # those not yet run
        self.taken: set[Any] = set()
        self.turned_away: set[Any] = set()  # refused cases, in every form tried
        self.implied: set[str] = set()  # those of `Function.implied` that it computes
        self.unlike: set[str] = set()  # those that were tried, and that it does differently
        self.implied_asked = False  # whether they were tried in any precision
        self.asked: set[str] = set()  # properties
        self.until = np.inf  # the time after which no case is begun
        self.unasked: dict[str, list[str]] = {}  # by precision: what there was no time for

    def bound(self, case: Any) -> list[Finding]:
        """Judge a case; any exception except a refusal is a violation, too."""
        self.observe(self.line(case))
        with self._violations(next(iter(self.contract.passes)), case):
            findings = judge_case(self.contract, self.judged.side, case)
        findings = [
            replace(f, fault=f"{f.output} is None: {NOTHING}")
            if f.output in self.judged.absent and f.fault
            else f
            for f in findings
        ]
        self.judged.judged(case)
        if any(f.fault for f in findings):
            raise Violation(findings)
        return findings

    def claim(self, name: str, case: Any) -> list[Finding]:
        """Check one property of a case; a `Violation` is caused by `Bits` if only bits differ."""
        small = self.contract.of_properties(case)
        self.observe(self.line(small))
        with self._violations(name, small), np.errstate(all="ignore"):
            self.contract.claims()[name](self.subject, small)
        return []

    @contextlib.contextmanager
    def _violations(self, output: str, case: Any) -> Iterator[None]:
        outer = sys.exception()
        try:
            yield
        except (Violation, Refused, Inapplicable):
            raise
        except (Exception, SystemExit) as error:
            ours = own_words(error)
            fault = str(error) if ours else f"{type(error).__name__}: {error}"
            if at := "" if ours else where(error, outer):
                fault += f" (at {at})"
            pass_ = self.contract.passes.get(output, PROPERTY)
            broken = Finding(
                self.contract.operator, pass_, output, precision_name(case), case, np.inf, np.inf,
                0.0, fault,
            )  # fmt: skip
            raise Violation([broken]) from error

    def bounds(
        self, precision: str, examples: int
    ) -> tuple[list[Finding], list[Finding], list[Failure]]:
        """Judge drawn and pinned cases; return what held, and the failures of the smallest case.

        Failures that only other cases have come with their own smallest case.
        """
        began, end = time.monotonic(), self.until
        self.until = began + DRAWN * (end - began)
        held: list[Finding] = []
        tried = self.tried[precision] = {}

        def check(case: Any) -> None:
            held.extend(self.bound(case))

        asked, violation = self._search(precision, examples, check, tried)
        if self._over() and violation is None:
            self._pass_over(precision, f"{examples - asked} of {examples} drawn cases")
        self.until, left = began + BOUNDS * (end - began), 0
        pinned = [*self.contract.pinned, *self.long]
        for one in pinned:
            case = self.judged.fitting(one, precision)
            if self.judged.skips(case):
                continue
            if self._over():
                left += 1
                continue
            if one in self.long:
                self.long.remove(one)
            try:
                check(case)
                self.taken.add(case)
                tried[case] = None
            except Refused as refusal:
                self.turned_away.add(case)
                self.refuse(refusal, case)
            except Inapplicable:
                continue
            except Violation as found:
                tried[case] = found
                if violation is None or is_far_off(found) > is_far_off(violation):
                    violation = self._smallest(case, precision, found, keys(found)[0])
        if left:
            self._pass_over(precision, f"{left} of {len(pinned)} pinned cases")
        if violation is None and not self._over():
            violation = self._imply(precision, held)
            self.implied_asked = True
        self.until = end
        violations = [] if violation is None else [violation, *self._others(precision, violation)]
        findings = [f for v in violations for f in v.findings]
        return held, findings, [f for v in violations for f in self._failures(v)]

    def _others(self, precision: str, first: Violation) -> Iterator[Violation]:
        """Yield further violations, each with something that none before it has."""
        said = set(outputs_of(first))
        for case, found in list(self.tried[precision].items()):
            new = [i for i, x in enumerate(outputs_of(found)) if x not in said] if found else []
            if found and new:
                found = self._smallest(case, precision, found, keys(found)[new[0]])
                said.update(outputs_of(found))
                yield found

    def _over(self) -> bool:
        return time.monotonic() > self.until

    def _pass_over(self, precision: str, what: str) -> None:
        self.unasked.setdefault(precision, []).append(what)

    def _shrinking(self) -> float:
        """Return for how many seconds a failure may be shrunk."""
        return max(LEAST_SHRINKING, min(SHRINKING, self.until - time.monotonic()))

    def _smallest(self, case: Any, precision: str, violation: Violation, key: str) -> Violation:
        """Return a violation with this key on a smaller case, if there is one."""
        known: dict[Any, Violation | None] = {case: violation}

        def fails(smaller: Any) -> Any:
            smaller = self.judged.fitting(smaller, precision)
            if smaller not in known:
                known[smaller] = None
                try:
                    self.bound(smaller)
                except Violation as found:
                    if key in keys(found):
                        known[smaller] = found
                except (Refused, Inapplicable):
                    pass
            return smaller if known[smaller] else None

        smallest = foreign_cases.smaller(case, fails, self._shrinking())
        return known[smallest] or violation

    def _failures(self, violation: Violation, again: str = "", meaning: str = "") -> list[Failure]:
        """Return what is wrong in words, and pass it to the observer."""
        failures = [
            Failure(
                f.pass_, f.output, f.dtype, f.fault, f.share, raised(violation),
                report.short(f.case), again or self.line(f.case), meaning,
            )
            for f in violation.findings
        ]  # fmt: skip
        self.observe(failures)
        return failures

    def _imply(self, precision: str, held: list[Finding]) -> Violation | None:
        """Judge options that the function may do without; exceptions there are no fault.

        Not on a GPU: a kernel that does not support one reads past its tensors there, and goes on.
        """
        for option in self.judged.implied if self.judged.side.device == "cpu" else ():
            try:
                held += self.bound(self.judged.implying(option, precision))
            except Refused:
                continue
            except Violation as violation:
                if violation.__cause__ is not None:
                    continue
                if option == "ignore_index":  # a function without it need not support it
                    self.unlike.add(option)
                    continue
                self.implied.add(option)
                return violation
            self.implied.add(option)
        return None

    def properties(self, precision: str, claimed: int) -> tuple[list[Claim], list[Failure]]:
        """Check every property on a few cases, first those not yet checked in any precision."""
        claims: list[Claim] = []
        failures: list[Failure] = []
        known = self.contract.claims() if claimed else {}
        for name in sorted(known, key=self.asked.__contains__):
            claim = known[name]
            if self._over():
                claims.append(Claim(name, precision, UNASKED, 0))
                continue
            self.asked.add(name)
            check = functools.partial(self.claim, name)
            asked, violation = self._search(precision, claimed, check)
            if violation is None:
                outcome = HOLDS if asked else UNASKED if self._over() else UNSAID
                claims.append(Claim(name, precision, outcome, asked))
                continue
            finding = violation.findings[0]
            line = self.line(finding.case)[:-1] + f", claim={name!r})"
            outcome = BITS if isinstance(violation.__cause__, Bits) else FAILS
            claims.append(Claim(name, precision, outcome, asked, finding.fault, line))
            if outcome == FAILS:
                one = replace(finding, pass_=PROPERTY, output=name)
                meaning = (claim.__doc__ or "").partition("\n")[0]
                violation.findings = [one]
                failures += self._failures(violation, line, meaning)
        if left := sum(claim.outcome == UNASKED for claim in claims):
            self._pass_over(precision, f"{left} of {len(claims)} properties")
        return claims, failures

    def _search(
        self,
        precision: str,
        examples: int,
        check: Callable[[Any], object],
        tried: dict[Any, Violation | None] | None = None,
    ) -> tuple[int, Violation | None]:
        """Check drawn cases; return how many applied, and the violation of the smallest, if any.

        All are checked, to see which fail; then the first failing one is shrunk, preferably one
        that is far off. `tried` records all cases except those tried while shrinking.
        """
        search = _Search(self, precision, examples, check, tried)
        if examples:
            search.draw(Phase.generate)
        applied, failed = len(search.applied), search.failed
        return applied, search.smallest(self._shrinking()) if failed else None

    def refuse(self, refusal: Refused, case: Any) -> None:
        """Remember a refusal; those that differ in numbers alone are one."""
        words = str(refusal).splitlines()[0]
        self.refused.setdefault(alike(words), {}).setdefault(case, words)


class _Search:
    """Cases drawn for a check, and what became of each.

    Attributes:
        failed, applied, refused: the cases that were checked.
        seen: those that were begun, whatever came of them.
        wanted, until: how many are to be checked, and when none is begun any more.
        shrinking: whether those that fail are raised, for what draws them to make them smaller; of
            them those alone that are far off, if any is.
    """

    def __init__(
        self,
        trial: Trial,
        precision: str,
        examples: int,
        check: Callable[[Any], object],
        tried: dict[Any, Violation | None] | None,
    ) -> None:
        self.trial, self.judged, self.precision = trial, trial.judged, precision
        self.examples, self.check, self.tried = examples, check, tried
        self.failed: dict[Any, Violation] = {}
        self.applied, self.seen, self.refused = set[Any](), set[Any](), set[Any]()
        self.wanted, self.until = examples, trial.until
        self.shrinking, self.far = False, False

    def draw(self, *phases: Phase) -> None:
        """Draw cases, the same ones every time; whatever a check raises ends it."""

        @seed(crc32(self.precision.encode()))  # not the same cases again in another precision
        @derandomised(max(1, MORE * self.examples), *phases)
        @given(self.trial.contract.cases, st.sampled_from(SIZES))
        def drawn(case: Any, size: int) -> None:
            # As it is drawn, and where that is refused with a head_dim that more take.
            fits = (self.judged.fitting(case, self.precision, s) for s in (None, size))
            taken = any(self._attempt(one) for one in fits)
            if not taken:
                self.trial.turned_away.add(self.judged.fitting(case, self.precision))
            assume(taken)

        with contextlib.suppress(Unsatisfiable):  # everything was refused
            drawn()

    def smallest(self, seconds: float) -> Violation:
        """Return the violation of a case that fails, made smaller for so long."""
        self.shrinking, self.until = True, time.monotonic() + seconds
        self.far = any(map(is_far_off, self.failed.values()))
        self.wanted += MORE * self.examples  # to shrink needs more
        try:
            self.draw(Phase.generate, Phase.shrink)
        except Violation as violation:
            return violation
        return max(self.failed.values(), key=is_far_off)

    def _attempt(self, case: Any) -> bool:
        """Check a case that was not; return whether it is taken."""
        if case in self.failed and self._is_looked_for(self.failed[case]):
            raise self.failed[case]
        if case in self.refused:
            return False
        asked = len(self.applied) + len(self.failed)
        enough = asked >= self.wanted or len(self.refused) >= REFUSED * self.examples
        if case in self.seen or enough or time.monotonic() > self.until:
            return True
        self.seen.add(case)
        try:
            self.check(case)
        except Refused as refusal:
            self.refused.add(case)
            self.trial.refuse(refusal, case)
            return False
        except Inapplicable:
            return True
        except Violation as violation:
            self.failed[case] = violation
            if self._is_looked_for(violation):
                raise
        else:
            self.applied.add(case)
            self.trial.taken.add(case)
        if self.tried is not None and not self.shrinking:
            self.tried[case] = self.failed.get(case)
        return True

    def _is_looked_for(self, violation: Violation) -> bool:
        return self.shrinking and is_far_off(violation) >= self.far
