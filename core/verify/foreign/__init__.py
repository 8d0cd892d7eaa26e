"""Judges anyone's function by an operator's contract: its bounds and its properties.

The function takes tensors in the operator's order, such as `f(q, k, v)`, and by name those options
of `table.PLAIN` that its signature has. It returns the output; for attention it may also return
(output, lse) or (output, weights), for norms (output, stream), the stream being x or its sum with a
residual. Options that it does not have are left out of the domain, and so are cases that
conventions differ on: a query without keys, and causal with more keys than queries or fewer. If the
output requires grad, the gradients are judged too. A case that the function refuses
(`refusals.REFUSALS`) is counted, not held against it. An object whose `forward` and `backward` take
the same arguments as ours is judged like our own operators. A failing case is shrunk.

In this process, a function that hangs or crashes takes the judge down with it; `apart` runs it in a
process of its own.

How a judgement proceeds, by file:

- *the function becomes a plain call*, f(tensors…, options…): `imports`, then `kinds` (function,
  module, class) and `forms`, with `joined`, `packed`, `pages`, `merging`, `rotary`, `optimizers`,
  `steps`, `sizes`, `written`; other orders of axes are in `orders`.
- *a contract's case becomes arguments of that call*: `plain` and `table` say what an operator's
  call is, `calls` makes it, for some operators with `attention`, `decoding`, `merging`, `pooling`.
- *what the signature leaves open is found by trial*: `meanings`.
- *cases are judged*: `trial`, of a `subjects.Function` or an `operators.Operator`; gradients are in
  `gradients`, what only training shows in `learning`, missing tensors in `lacking`.
- *the result is reported*: `refusals`, `cases` (what failures share), `verdict`, `notes`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twofold.core import ops
from twofold.core.verify import domains, report
from twofold.core.verify.contract import PROPERTY, Finding, Inapplicable, Violation
from twofold.core.verify.foreign import cases as foreign_cases
from twofold.core.verify.foreign import notes as foreign_notes
from twofold.core.verify.foreign.imports import load
from twofold.core.verify.foreign.operators import Operator
from twofold.core.verify.foreign.refusals import Refused
from twofold.core.verify.foreign.subjects import Function, subject
from twofold.core.verify.foreign.trial import Trial
from twofold.core.verify.foreign.verdict import (
    BITS,
    FAILS,
    HOLDS,
    LITTLE,
    UNASKED,
    UNSAID,
    Claim,
    Failure,
    Verdict,
    digest,
    keys,
    raised,
)
from twofold.core.verify.strict.memory import Fault

__all__ = [
    "BITS", "CLAIMED", "FAILS", "HOLDS", "UNASKED", "UNSAID", "Claim", "Failure", "Verdict",
    "again", "digest", "judge", "strictly",
]  # fmt: skip

PRECISIONS = (*domains.DTYPES, "tf32")
TF32 = "it holds as tf32: its products may be in that precision (--dtype tf32)"
CLAIMED = 4  # cases for each property and precision
RECOMPILED = 256  # times that torch.compile may compile a function in one precision


def judge(
    function: str | Any,
    operator: str,
    examples: int,
    precisions: Sequence[str] | None = None,
    observe: Callable[[str | list[Failure]], None] = lambda said: None,
    claimed: int = CLAIMED,
    seconds: float = math.inf,
) -> Verdict:
    """Judge a function, an object, or what "module:function" names, by an operator's contract.

    Args:
        function: what is judged.
        operator: the operator it implements.
        examples: total number of cases for the bounds.
        precisions: of `PRECISIONS`; by default all but tf32.
        observe: called with the line that repeats a case before the case is run, and with failures.
        claimed: cases for each property and precision; with 0, no property is checked.
        seconds: after which no case is begun; each precision has an equal share of them.

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
    trial = Trial(judged, lambda case: _line(function, operator, case), observe)
    verdict, findings = Verdict(), []
    wrong: list[tuple[Failure, Finding]] = []
    began = time.monotonic()
    with strictly():
        judged.find_out(lambda why, case: observe(f"{trial.line(case)}  # {why}"))
    for number, precision in enumerate(wanted, 1):
        trial.until = began + seconds * number / len(wanted)
        with strictly(), compiled_anew():
            held, faults, failures = trial.bounds(precision, -(-examples // len(wanted)))
            claims, broken = trial.properties(precision, claimed)
        findings += held + faults
        tried = {case: keys(violation) for case, violation in trial.tried[precision].items()}
        wrong += zip(failures, faults, strict=True)
        for failure, fault in zip(failures, faults, strict=True):
            if failure.again not in verdict.common:
                common = foreign_cases.common(tried, failure.key, fault.case)
                verdict.common[failure.again] = common
        verdict.found += failures + broken
        verdict.claims += claims
    if {failure.precision for failure, _ in wrong} == {"float32"} and _mostly_fails(trial):
        lines = {
            failure.again
            for failure, fault in wrong
            if failure.share >= LITTLE and _holds_in_tf32(trial, fault.case)
        }
        verdict.common |= {line: f"{verdict.common[line]}; {TF32}" for line in lines}
    _conclude(verdict, trial, findings)
    return verdict


def _conclude(verdict: Verdict, trial: Trial, findings: Sequence[Finding]) -> None:
    """Fill in what is known once all was tried."""
    verdict.holding = {
        precision: len(cases)
        for precision, cases in trial.tried.items()
        if cases and not any(cases.values())
    }
    verdict.failures = listed(verdict.found)
    verdict.rows = report.summarise(findings)
    verdict.taken, verdict.notes = trial.judged.found_out, foreign_notes.notes(trial)
    verdict.largest = foreign_cases.largest(trial.taken)
    verdict.unasked = "; ".join(f"{p}: {', '.join(what)}" for p, what in trial.unasked.items())
    if trial.refused and not findings:
        verdict.failures.append("every case was refused")
    verdict.unjudged = bool(verdict.failures) and _computes_nothing(trial)


def _computes_nothing(trial: Trial) -> bool:
    """Return whether every case was refused, or raised what no fault of a kernel would."""
    tried = [violation for cases in trial.tried.values() for violation in cases.values()]
    return all(v and raised(v) and not isinstance(v.__cause__, Fault) for v in tried)


def _mostly_fails(trial: Trial) -> bool:
    """Return whether most cases fail in float32, as they do where its products are not exact.

    The bound of tf32 products is so wide that even a missing block would be within it.
    """
    tried = trial.tried["float32"].values()
    return 2 * sum(v is not None for v in tried) >= len(tried)


def _holds_in_tf32(trial: Trial, case: Any) -> bool:
    """Return whether a case that fails in float32 is within the bound of tf32 products."""
    if not hasattr(case, "allow_tf32"):
        return False
    try:
        with strictly():
            trial.bound(trial.judged.fitting(case, "tf32"))
    except (Violation, Refused, Inapplicable):
        return False
    return True


def listed(found: Sequence[Failure]) -> list[str]:
    """Return every failure in words, bounds first; the last one of a case has its line."""
    said = []
    found = sorted(found, key=lambda f: f.pass_ == PROPERTY)
    for i, f in enumerate(found):
        words = f"{f.pass_} {f.precision} {f.name}: {f.fault}"
        last = i + 1 == len(found) or found[i + 1].again != f.again
        said.append(f"{words}\n  {f.again}" if last else words)
    return said


def again(function: str | Any, operator: str, *, claim: str = "", **fields: Any) -> list[Finding]:
    """Judge the case of these fields, or one property of it; raises `Violation` where it fails."""
    judged = subject(load(function) if isinstance(function, str) else function, operator)
    trial = Trial(judged, str, lambda said: None)
    with strictly():
        judged.find_out()
        case = _case_type(judged)(**fields)
        return trial.claim(claim, case) if claim else trial.bound(case)


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """Enter the strict interpreter where there is no GPU."""
    with contextlib.ExitStack() as stack:
        if ops.triton_device() == "cpu":
            from twofold.core.verify.strict import strict_interpreter

            stack.enter_context(strict_interpreter())
        yield


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """Let torch.compile compile for every kind of case, not give up after eight and run eagerly.

    What it compiled for other precisions is discarded.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return
    dynamo.reset()
    with dynamo.config.patch(recompile_limit=RECOMPILED):
        yield


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
