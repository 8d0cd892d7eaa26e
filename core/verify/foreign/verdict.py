"""The verdict on a function: rows, properties, failures, and which of these are shown first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from twofold.core.verify.claims import SPREAD
from twofold.core.verify.contract import PROPERTY, Bits, Violation
from twofold.core.verify.foreign.refusals import raised_by
from twofold.core.verify.report import Row

HOLDS, FAILS, BITS, UNSAID = "holds", "fails", "bits differ", "does not apply"
UNASKED = "not asked"
IMPORT = "from twofold.core.verify import foreign"
LITTLE = 4.0  # bounds; errors all below this are reported as roundings, and fail all the same
FAR_OFF = 64.0  # bounds; a case this far off is shown before others that fail
INPUTS = "inputs"  # the output that says whether they were written to
DENSE = (
    "it may be ignoring strides: it must use them, call .contiguous(), or refuse other "
    "layouts (assert x.is_contiguous())"
)
UNPACKED = (
    "with one leading axis it holds: code written for rows and columns must refuse more "
    "axes, as `R, C = x.shape` does"
)
ROUNDED = "an error this small may be one rounding more, or a difference that cancels"


@dataclass(frozen=True)
class Claim:
    """The outcome of a property in one precision.

    Attributes:
        name, precision: which.
        outcome: "holds"; "fails"; "bits differ", where the numbers keep their bound but are not
            the same bits, which is no fault; "does not apply", where it applied to no case; "not
            asked", where there was no time.
        cases: how many were checked.
        fault: what is wrong.
        again: the line of Python that shows it again.
    """

    name: str
    precision: str
    outcome: str
    cases: int
    fault: str = ""
    again: str = ""


@dataclass(frozen=True)
class Failure:
    """An output, a gradient or a property that fails in one precision, on the smallest case found.

    Attributes:
        pass_, name, precision: which.
        fault: what is wrong.
        share: how far it is off as a share of its bound; infinite where there is no number.
        raised: whether the function raised it.
        case: the fields of the case that are not their defaults.
        again: the line of Python that shows it again.
        meaning: what a property claims.
    """

    pass_: str
    name: str
    precision: str
    fault: str
    share: float
    raised: bool
    case: str
    again: str
    meaning: str = ""

    @property
    def key(self) -> str:
        """Return what fails and how, which is the same in every case of one fault."""
        return key_of(self.fault, self.name, self.share, self.raised)


@dataclass
class Verdict:
    """All that was found of a function.

    Attributes:
        rows: those of the table of bounds.
        claims: the outcomes of properties.
        failures: everything that is wrong, in words; the last output of a case has its line.
        taken: what the function was found to mean where its signature leaves it open.
        notes: what was not judged.
        largest: the largest of each size that was accepted, in words.
        found: the failures that have a case.
        holding: precisions in which every case keeps its bounds, and how many cases there were.
        common: by the line of the smallest case, in how many cases of its precision the same fails,
            and what these have in common.
        ended: how the process ended before there was a verdict, and in which case.
        unasked: what there was no time for, if anything.
        unjudged: whether it could not be judged at all, because it cannot be imported or called, or
            refuses every case or raises in it.
    """

    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    largest: str = ""
    found: list[Failure] = field(default_factory=list)
    holding: dict[str, int] = field(default_factory=dict)
    common: dict[str, str] = field(default_factory=dict)
    ended: str = ""
    unasked: str = ""
    unjudged: bool = False


def digest(verdict: Verdict) -> list[str]:
    """Return what is wrong in a few lines: each fault once, on the smallest input that shows it.

    Failures are one fault if they raise the same, if the same outputs leave their bounds, by
    numbers or by NaN and infinities, or if the same property fails. Of several precisions the one
    that is furthest off is shown, and those in which it holds are named.
    """
    causes: dict[tuple[str, ...], list[Failure]] = {}
    for case in _by_case(verdict.found):
        first = case[0]
        names = (first.pass_, str(np.isfinite(first.share)), *(f.name for f in case))
        causes.setdefault((first.key,) if first.raised else names, []).extend(case)
    said: list[str] = []
    if verdict.ended:
        words, _, line = verdict.ended.partition("\n  ")
        said += [words, f"  {_again(line)}" if line.startswith("foreign.") else f"  {line}"]
    properties: list[str] = []
    for failures in causes.values():
        if failures[0].pass_ == PROPERTY:
            properties += _of_property(failures, not said)
        else:
            said += _of_bound(failures, verdict.common)
    said += [
        f"{p} is within its bounds in all {n} cases" for p, n in verdict.holding.items() if said
    ]
    outcomes: dict[str, set[str]] = {}
    for claim in verdict.claims:
        outcomes.setdefault(claim.name, set()).add(claim.outcome)
    fail = sum(FAILS in found for found in outcomes.values())
    hold = sum({FAILS, HOLDS} & found == {HOLDS} for found in outcomes.values())
    if fail:
        said.append(f"of the properties, {fail} fail and {hold} hold")
    said += properties
    return said or verdict.failures


def key_of(fault: str, name: str, share: float, raised: bool) -> str:
    """Return what is raised, without numbers, or the output that is off, and whether by far."""
    if raised:
        return alike(fault)
    return f"{name} by far" if share >= FAR_OFF else name


def alike(words: str) -> str:
    """Return words without numbers: failures that differ only in numbers are one fault."""
    words = re.sub(r"\b(bfloat16|float(16|32))\b", "#", words)
    return re.sub(r"-?(\d+\.?\d*(e[-+]?\d+)?|\bnan\b|\binf\b)", "#", words)


def _again(line: str) -> str:
    """Return how to run a case again: as a command if the function can be imported by name."""
    if "again('" in line:
        return f'again: python -c "{IMPORT}; {line}"'
    return f"again: {line}  # {IMPORT}"


def _by_case(found: Iterable[Failure]) -> list[list[Failure]]:
    cases: dict[str, list[Failure]] = {}
    for failure in found:
        cases.setdefault(failure.again, []).append(failure)
    return list(cases.values())


def _of_bound(failures: Sequence[Failure], common: Mapping[str, str]) -> list[str]:
    """Return, in words, what leaves its bound or is raised, on the worst of these cases."""
    bounds = [f for f in failures if f.pass_ != PROPERTY]
    worst = min(bounds, key=lambda f: (-f.share, f.precision != "float32", len(f.again)))
    first = next(f for f in bounds if f.again == worst.again)
    shown = [f for f in failures if f.again == first.again]
    names = list(dict.fromkeys(f.name for f in failures if f.pass_ != PROPERTY))
    properties = list(dict.fromkeys(f.name for f in failures if f.pass_ == PROPERTY))
    exceed = "exceeds its bound" if len(names) == 1 else "exceed their bounds"
    what = "it raises" if first.raised else f"{', '.join(names)} {exceed}"
    if names == [INPUTS] and not first.raised:
        what = "it writes to its inputs without telling autograd"
    said = [f"{what} ({_precisions(failures)})", f"  {first.fault}"]
    if far := _far(first):
        said[-1] += f", {far}"
        if all(f.share < LITTLE for f in failures):
            said.append(f"  {ROUNDED}")
    if words := ", ".join(f"{f.name} by {far}" for f in shown[1:] if (far := _far(f))):
        said.append(f"  with it, {words}")
    said += [f"  with it, {f.fault}" for f in shown[1:] if f.name == INPUTS]
    said.append(f"  smallest case found: {first.precision}{first.case and ', '}{first.case}")
    said.append(f"  {_again(first.again)}")
    if words := common.get(first.again, ""):
        said.append(f"  {words}")
        if "layout" in words and "layout=far" not in words:  # its offsets are too small
            said.append(f"  {DENSE}")
    if properties:
        said.append(f"  {len(properties)} properties fail this way: {', '.join(properties)}")
    return said


def _of_property(failures: Sequence[Failure], alone: bool) -> list[str]:
    """Say which properties fail and how; if `alone`, nothing was reported before."""
    first = min(failures, key=lambda f: len(f.again))
    names = ", ".join(f"'{name}'" for name in dict.fromkeys(f.name for f in failures))
    said = [f"property {names} ({_precisions(failures)}): {first.fault}"]
    said += [f"  it means: {first.meaning}"] if alone and first.meaning else []
    said += [f"  {UNPACKED}"] if first.fault.startswith(SPREAD) and alone else []
    return [*said, f"  {_again(first.again) if alone else first.again}"]


def _precisions(failures: Sequence[Failure]) -> str:
    return ", ".join(dict.fromkeys(f.precision for f in failures))


def _far(failure: Failure) -> str:
    """Say how far a failure is off as a multiple of its bound, if that is a number."""
    if not 1 < failure.share < np.inf or failure.name == INPUTS:
        return ""
    times = f"{failure.share:,.0f}" if failure.share >= 100 else f"{failure.share:.3g}"
    return f"{times} times its bound"


def raised(violation: Violation) -> bool:
    """Return whether the function raised the violation, in words that are not ours."""
    cause = violation.__cause__
    return cause is not None and not own_words(cause)


def own_words(error: BaseException) -> bool:
    """Return whether a contract or property raised the error, not the function or its libraries."""
    return type(error) in (AssertionError, Bits) and raised_by(error) == "twofold"


def keys(violation: Violation | None) -> list[str]:
    """Return what fails, each as `Failure.key`."""
    if violation is None:
        return []
    whether = raised(violation)
    return [key_of(f.fault, f.output, f.share, whether) for f in violation.findings]


def outputs_of(violation: Violation) -> list[str]:
    """Return what is raised, without numbers, or the outputs that are off."""
    whether = raised(violation)
    return [alike(f.fault) if whether else f.output for f in violation.findings]


def is_far_off(violation: Violation) -> bool:
    """Return whether any of its errors is far off, or not a number."""
    return any(f.share >= FAR_OFF for f in violation.findings)
