"""Findings summarised as the table that `twofold verify` prints."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from twofold.core.ops import Side, check_operator
from twofold.core.verify.contract import PROPERTY, Contract, Finding, judge_pinned
from twofold.core.verify.search import search

if TYPE_CHECKING:
    from twofold.core.verify.processes import Pool


@dataclass(frozen=True)
class Row:
    """The result of one pass of one operator in one precision.

    Attributes:
        operator, pass_, precision: what was judged.
        cases: how many cases were run.
        share: the worst |kernel − truth| as a share of its bound; above 1 the contract is broken.
        output, case: where that was.
        median: the median over outputs of the median element's share.
        vacuous: the mean fraction of elements whose bound is infinite and so decides nothing.
        likely: the worst share of the probabilistic bound.
        faults: the faults, each with its case; empty if the contract holds.
    """

    operator: str
    pass_: str
    precision: str
    cases: int
    share: float
    output: str
    case: str
    median: float
    vacuous: float
    likely: float
    faults: tuple[str, ...]


def contract(operator: str) -> Contract:
    """Return an operator's contract by name."""
    check_operator("operator", operator)
    found: Contract = contract_module(operator).CONTRACT
    return found


def contract_module(operator: str) -> Any:
    """Return the module of an operator's contract: its cases, inputs, calls and truths."""
    return importlib.import_module(f"twofold.core.verify.contracts.{operator}")


def verify(operator: str, side: Side, examples: int, pool: Pool | None = None) -> list[Row]:
    """Judge a side by an operator's contract: the pinned cases and `examples` drawn ones.

    With a pool, its processes judge the pinned cases while this one draws.
    """
    contracted = contract(operator)
    pinned: Iterable[Finding]
    if pool is None:
        pinned = judge_pinned(contracted, side)
    else:
        pinned = pool.judge_pinned(contracted)  # begins here
    searched = search(contracted, side, examples)
    return summarise([*pinned, *searched])


def summarise(findings: Iterable[Finding]) -> list[Row]:
    """Group findings by operator, pass and precision."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        key = (finding.operator, finding.pass_, finding.dtype)
        groups.setdefault(key, []).append(finding)
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[str, str, str], group: list[Finding]) -> Row:
    worst = max(group, key=lambda f: f.share)
    return Row(
        *key,
        cases=len({repr(f.case) for f in group}),
        share=worst.share,
        output=worst.output,
        case=short(worst.case),
        median=float(np.median([f.median for f in group])),
        vacuous=sum(f.vacuous for f in group) / len(group),
        likely=max(f.likely for f in group),
        faults=tuple(dict.fromkeys(f"{f.fault} — {f.case}" for f in group if f.fault)),
    )


def short(case: Any) -> str:
    """Return a case's fields that differ from their defaults."""
    default = type(case)()
    return ", ".join(
        f"{name}={value}"
        for name, value in vars(case).items()
        if value != getattr(default, name) and name != "dtype"
    )


def table(rows: Iterable[Row]) -> Table:
    """Lay the rows out for a terminal."""
    view = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for column in ("operator", "pass", "dtype"):
        view.add_column(column, no_wrap=True)
    for column in ("cases", "worst/bound", "/likely", "median", "undecided"):
        view.add_column(column, justify="right", no_wrap=True)
    view.add_column("on", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        verdict = "[red]FAIL[/red] " if row.faults else ""
        figures = [
            f"{verdict}{row.share:.3f}", f"{row.likely:.3f}", f"{row.median:.4f}",
            f"{row.vacuous:.1%}", f"{row.output}: {row.case}",
        ]  # fmt: skip
        if row.pass_ == PROPERTY:
            broken = f"{row.output}: {row.case}" if row.faults else ""
            figures = [verdict.strip() or "holds", "", "", "", broken]
        view.add_row(row.operator, row.pass_, row.precision, str(row.cases), *figures)
    return view


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain data."""
    return [asdict(row) for row in rows]
