"""Drawn cases: the same ones every time, shrunk to the smallest that breaks a contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from twofold.core.ops import Side
from twofold.core.verify.contract import (
    PROPERTY,
    Contract,
    Finding,
    Violation,
    check_properties,
    fitting,
    hold,
    subject,
)

FEW_PROPERTIES = 2  # checked on each drawn case
LEAST = 3  # drawn cases on which each property is checked at least


def derandomised(examples: int, *phases: Phase) -> settings:
    """Return the settings of a search that is the same every time, however long a case takes."""
    return settings(
        max_examples=examples,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
        report_multiple_bugs=False,
    )


def search(contract: Contract, side: Side, examples: int) -> list[Finding]:
    """Judge `examples` drawn cases; a violation is shrunk and ends the search.

    A few properties, also drawn, are checked on each case; those drawn too seldom are checked on
    the last cases, since the first are single elements. The draw is derandomised: the same contract
    gives the same cases.
    """
    found: list[Finding] = []
    violations: list[Violation] = []

    def judged(case: Any, names: list[str]) -> None:
        try:
            found.extend(hold(contract, side, fitting(side, case), names))
        except Violation as violation:
            violations.append(violation)
            raise

    try:
        _draw(contract, examples, judged, Phase.generate, Phase.shrink)
    except (Violation, Flaky):  # where it fails in some runs only, the last failure counts
        return [*found, *violations[-1].findings]
    asked = Counter(f.output for f in found if f.pass_ == PROPERTY)
    left = [name for name in contract.claims() if asked[name] < LEAST]
    for case in drawn(contract, examples)[-LEAST:]:
        small = contract.of_properties(fitting(side, case))
        found += check_properties(contract, subject(contract, side), small, left)
    return found


def drawn(contract: Contract, examples: int) -> list[Any]:
    """Draw the cases that `search` judges."""
    found: list[Any] = []
    _draw(contract, examples, lambda case, names: found.append(case), Phase.generate)
    return found


def _draw(
    contract: Contract, examples: int, see: Callable[[Any, list[str]], None], *phases: Phase
) -> None:
    """Pass drawn cases and property names to `see`; only this function decides what is drawn."""
    if not examples:  # Hypothesis refuses 0
        return

    @derandomised(examples, *phases)
    @given(contract.cases, some_properties(contract))
    def draw(case: Any, names: list[str]) -> None:
        see(case, names)

    draw()


def some_properties(contract: Contract) -> st.SearchStrategy[list[str]]:
    """Draw the names of a few properties."""
    return st.lists(
        st.sampled_from(tuple(contract.claims())),
        min_size=FEW_PROPERTIES,
        max_size=FEW_PROPERTIES,
    )
