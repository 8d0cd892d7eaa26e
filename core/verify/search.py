"""Cases that are drawn: the same ones every time, and the smallest that leaves a contract."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify.contract import Contract, Finding, Violation, fitting, hold

FEW_PROPERTIES = 2  # of each drawn case


def derandomised(examples: int, *phases: Phase, report_multiple_bugs: bool = True) -> settings:
    """Return the settings of a search that is the same every time, however long a case takes."""
    return settings(
        max_examples=examples,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
        report_multiple_bugs=report_multiple_bugs,
    )


def search(contract: Contract, side: Side, examples: int) -> list[Finding]:
    """Judge `examples` drawn cases; a violation is shrunk and ends the search.

    Each case is asked for a few of the properties, which are drawn, too. The draw is derandomised:
    the same contract gives the same cases.
    """
    found: list[Finding] = []
    if not examples:  # which Hypothesis would not take
        return found

    @derandomised(examples, Phase.generate, Phase.shrink)
    @given(contract.cases, some_properties(contract))
    def judged(case: Any, names: list[str]) -> None:
        found.extend(hold(contract, side, fitting(side, case), names))

    try:
        judged()
    except Violation as violation:
        found.extend(violation.findings)
    return found


def drawn(contract: Contract, examples: int) -> list[Any]:
    """Draw cases, the same ones every time."""
    found: list[Any] = []
    if not examples:
        return found

    @derandomised(examples, Phase.generate)
    @given(contract.cases)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


def some_properties(contract: Contract) -> st.SearchStrategy[list[str]]:
    """Draw the names of a few properties."""
    return st.lists(
        st.sampled_from(tuple(contract.claims())),
        min_size=FEW_PROPERTIES,
        max_size=FEW_PROPERTIES,
    )
